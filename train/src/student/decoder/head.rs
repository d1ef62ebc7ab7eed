//! What a decoder's last state says about the next token, and what it costs.

use super::roles::DecoderRole;
use super::settings::DecoderConfig;
use crate::batcher::Batch;
use crate::kernels::{HeadTargets, ParameterRef, Projection, gather_rows, head_loss_without_bias, project};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::student::ParameterTable;
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

    /// What the parts of the logits weigh in a micro-batch, and their values; see [`crate::student::Student::loss`].
    pub(in crate::student) fn loss(&self, hidden: &Tensor, batch: &Batch, step: &StepObjective) -> Result<(Tensor, [f64; PARTS])> {
        // What a backward pass can start from even where a part is turned off or the batch asks nothing.
        let mut total = Tensor::zeros((), hidden.dtype(), hidden.device())?;
        let mut parts = LossParts::default();
        if step.weights.any(Part::is_of_logits) && !batch.asked.is_empty() {
            let Batch { k, top_ids, log_probabilities, max_logit, labels, .. } = batch;
            let targets = HeadTargets { k: *k, top_ids, log_probabilities, max_logit, labels };
            let (weighted, of_logits) = head_loss_without_bias(&gather_rows(hidden, &batch.asked)?, &self.weight, &targets, step)?;
            parts = of_logits;
            total = (total + weighted)?;
        }
        Ok((total, parts.values))
    }
}
