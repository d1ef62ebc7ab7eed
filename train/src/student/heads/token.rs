//! The class of each token: V dropout(x), in every family.

use super::head_targets;
use crate::batcher::Batch;
use crate::kernels::{Affine, DropoutPlan, DropoutSite, dropout, gather_rows, head_loss, linear};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::student::names::Role;
use crate::student::{ParameterTable, packing};
use candle_core::{Result, Tensor};

pub(in crate::student) struct TokenHead {
    classifier: Affine,
}

impl TokenHead {
    pub(super) fn new(table: &ParameterTable<'_>) -> Self {
        Self { classifier: table.affine(Role::TokenClassifier) }
    }

    /// `[asked, classes]`.
    pub(super) fn logits(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        linear(&gather_rows(hidden, asked)?, &self.classifier)
    }

    /// See [`super::Head::loss`].
    pub(super) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        step: &StepObjective,
        plan: &DropoutPlan,
        total: Tensor,
    ) -> Result<(Tensor, [f64; PARTS])> {
        if !step.weights.any(Part::is_of_logits) || batch.asked.is_empty() {
            return Ok((total, LossParts::default().values));
        }
        let dropped = dropout(hidden, &packing(batch)?, plan, DropoutSite::Classifier)?;
        let rows = gather_rows(&dropped, &batch.asked)?;
        let (weighted, parts) = head_loss(&rows, &self.classifier, &head_targets(batch), step)?;
        Ok(((total + weighted)?, parts.values))
    }
}
