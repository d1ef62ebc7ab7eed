//! What a decoder's last state says about the next token, and what it costs.

use super::roles::DecoderRole;
use super::settings::DecoderConfig;
use crate::batcher::Batch;
use crate::kernels::{ParameterRef, Projection, gather_rows, head_loss_without_bias, project};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::student::ParameterTable;
use crate::student::heads::head_targets;
use crate::student::names::Role;
use candle_core::{Result, Tensor};

/// A map to the vocabulary without bias.
pub(in crate::student) struct CausalLmHead {
    /// `[vocabulary, hidden]`: the word embeddings', or its own.
    weight: ParameterRef,
}

impl CausalLmHead {
    pub(in crate::student) fn new(table: &ParameterTable<'_>, decoder: &DecoderConfig) -> Self {
        let role = if decoder.tied { DecoderRole::Words } else { DecoderRole::Head };
        Self { weight: table.weight(Role::Decoder(role)) }
    }

    /// `[asked, vocabulary]` from the last state `[tokens, hidden]`.
    pub(in crate::student) fn logits(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        project(&gather_rows(hidden, asked)?, &Projection { weight: self.weight.clone(), bias: None, inputs_first: false })
    }

    /// What the parts of the logits weigh in a micro-batch on top of `total`, and their values; see [`crate::student::Student::loss`].
    pub(in crate::student) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        step: &StepObjective,
        total: Tensor,
    ) -> Result<(Tensor, [f64; PARTS])> {
        if !step.weights.any(Part::is_of_logits) || batch.asked.is_empty() {
            return Ok((total, LossParts::default().values));
        }
        let rows = gather_rows(hidden, &batch.asked)?;
        let (weighted, parts) = head_loss_without_bias(&rows, &self.weight, &head_targets(batch), step)?;
        Ok(((total + weighted)?, parts.values))
    }
}
