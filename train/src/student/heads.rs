//! What a student makes of its hidden states: one head for each task.

mod masked_lm;

use super::ParameterTable;
use super::config::StudentConfig;
use super::decoder::CausalLmHead;
use crate::batcher::Batch;
use crate::kernels::DropoutPlan;
use crate::loss::{PARTS, StepObjective};
use candle_core::{Error, Result, Tensor};
use masked_lm::MaskedLmHead;

/// The head of a task.
pub(super) enum Head {
    /// The tied decoder.
    MaskedLm(MaskedLmHead),
    /// A decoder's map to the next token.
    CausalLm(CausalLmHead),
}

impl Head {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        match &config.decoder {
            Some(decoder) => Self::CausalLm(CausalLmHead::new(table, decoder)),
            None => Self::MaskedLm(MaskedLmHead::new(table, config)),
        }
    }

    /// `[asked, classes]` from the last state `[tokens, hidden]`.
    pub(super) fn logits(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        match self {
            Self::MaskedLm(head) => head.logits(hidden, &batch.asked),
            Self::CausalLm(head) => head.logits(hidden, &batch.asked),
        }
    }

    /// `[sequences, embedding]` from the last state `[tokens, hidden]`.
    pub(super) fn embeddings(&self, _hidden: &Tensor, _batch: &Batch) -> Result<Tensor> {
        match self {
            Self::MaskedLm(_) | Self::CausalLm(_) => Err(Error::Msg("embeddings: the student gives logits, not vectors".to_owned())),
        }
    }

    /// What the parts that are no parts of the hidden states weigh in a micro-batch, and the values of all parts; see [`super::Student::loss`].
    pub(super) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        step: &StepObjective,
        _dropout: &DropoutPlan,
    ) -> Result<(Tensor, [f64; PARTS])> {
        match self {
            Self::MaskedLm(head) => head.loss(hidden, batch, step),
            Self::CausalLm(head) => head.loss(hidden, batch, step),
        }
    }
}
