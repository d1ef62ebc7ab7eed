//! The class of a sequence, out of the state of its first token.
//!
//! | family | logits, of the first token's state x |
//! | --- | --- |
//! | DistilBERT | V dropout(relu(W x)) |
//! | BERT, ALBERT | V dropout(tanh(W x)) |
//! | RoBERTa | V dropout(tanh(W dropout(x))) |

use super::{asked_rows, head_targets};
use crate::batcher::Batch;
use crate::kernels::{
    Activation, Affine, DropoutPlan, DropoutSite, OutputTargets, Packing, dropout, head_loss, linear, linear_activated, output_loss,
};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::student::config::StudentConfig;
use crate::student::family::Family;
use crate::student::names::Role;
use crate::student::{ParameterTable, packing};
use candle_core::{Error, Result, Tensor};
use logitcache::target::Problem;
use std::sync::Arc;

pub(in crate::student) struct SequenceHead {
    pooler: Affine,
    classifier: Affine,
    family: Family,
    problem: Problem,
}

impl SequenceHead {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, problem: Problem) -> Self {
        let (pooler, classifier) = (table.affine(Role::Pooler), table.affine(Role::SequenceClassifier));
        Self { pooler, classifier, family: config.family, problem }
    }

    /// `[asked, hidden]`: what the classifier reads of the asked rows of `hidden` `[tokens, hidden]`, the first of their sequences,
    /// or of a `hidden` of those alone.
    fn pooled(&self, hidden: &Tensor, batch: &Batch, plan: &DropoutPlan) -> Result<Tensor> {
        let firsts = first_rows(batch)?;
        let mut rows = asked_rows(hidden, &batch.asked)?;
        if self.family == Family::Roberta {
            rows = dropout(&rows, &firsts, plan, DropoutSite::ClassifierInput)?;
        }
        let pooled = match self.family {
            Family::DistilBert => linear_activated(&rows, &self.pooler, Activation::Relu)?,
            _ => linear(&rows, &self.pooler)?.tanh()?,
        };
        dropout(&pooled, &firsts, plan, DropoutSite::Classifier)
    }

    /// `[asked, classes]`.
    pub(super) fn logits(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        linear(&self.pooled(hidden, batch, &DropoutPlan::off())?, &self.classifier)
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
        let rows = self.pooled(hidden, batch, plan)?;
        let (weighted, parts) = if self.problem == Problem::SingleLabel {
            head_loss(&rows, &self.classifier, &head_targets(batch), step)?
        } else {
            let Batch { top_ids, log_probabilities, max_logit, label_values, has_label_values, .. } = batch;
            let targets = OutputTargets { problem: self.problem, top_ids, log_probabilities, max_logit, label_values, has_label_values };
            output_loss(&linear(&rows, &self.classifier)?, &targets, step)?
        };
        Ok(((total + weighted)?, parts.values))
    }
}

/// The asked rows as sequences of one row each, for the dropout streams.
fn first_rows(batch: &Batch) -> Result<Arc<Packing>> {
    let all = packing(batch)?;
    let (mut ids, mut passes) = (Vec::with_capacity(batch.asked.len()), Vec::with_capacity(batch.asked.len()));
    for row in &batch.asked {
        let sequence = batch.offsets[..all.sequences()]
            .binary_search(&(*row as usize))
            .map_err(|_| Error::Msg(format!("a sequence's class is asked at its first token, and row {row} is no sequence's first")))?;
        let (id, pass) = all.identity(sequence);
        ids.push(id);
        passes.push(pass);
    }
    Packing::new(&(0..=ids.len()).collect::<Vec<_>>(), &ids, &passes)
}
