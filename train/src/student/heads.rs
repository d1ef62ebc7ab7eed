//! What a student makes of its hidden states: one head for each task.

mod embedding;
mod masked_lm;
mod sequence;
mod token;

use super::ParameterTable;
use super::config::StudentConfig;
use super::decoder::CausalLmHead;
use crate::batcher::Batch;
use crate::kernels::{DropoutPlan, HeadTargets, gather_rows};
use crate::loss::{PARTS, Part, StepObjective};
use candle_core::{Error, Result, Tensor};
use embedding::EmbeddingHead;
use logitcache::target::{Problem, Task};
use masked_lm::MaskedLmHead;
use sequence::SequenceHead;
use token::TokenHead;

/// The head of a task.
pub(super) enum Head {
    /// The tied decoder.
    MaskedLm(MaskedLmHead),
    /// A decoder's map to the next token.
    CausalLm(CausalLmHead),
    /// A class, or numbers, for the sequence.
    Sequence(SequenceHead),
    /// A class for each token.
    Token(TokenHead),
    /// A vector for the sequence.
    Embedding(EmbeddingHead),
}

impl Head {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        if let Some(decoder) = &config.decoder {
            return Self::CausalLm(CausalLmHead::new(table, decoder));
        }
        match config.task {
            Task::MaskedLm | Task::CausalLm => Self::MaskedLm(MaskedLmHead::new(table, config)),
            Task::SequenceClassification => {
                Self::Sequence(SequenceHead::new(table, config, config.problem.unwrap_or(Problem::SingleLabel)))
            }
            Task::TokenClassification => Self::Token(TokenHead::new(table)),
            Task::SentenceEmbedding => Self::Embedding(EmbeddingHead::new(table, config)),
        }
    }

    /// `[asked, classes]` from the last state `[tokens, hidden]`.
    pub(super) fn logits(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        match self {
            Self::MaskedLm(head) => head.logits(hidden, &batch.asked),
            Self::CausalLm(head) => head.logits(hidden, &batch.asked),
            Self::Sequence(head) => head.logits(hidden, batch),
            Self::Token(head) => head.logits(hidden, &batch.asked),
            Self::Embedding(_) => Err(Error::Msg("logits: the student gives vectors, not logits".to_owned())),
        }
    }

    /// `[sequences, embedding]` from the last state `[tokens, hidden]`.
    pub(super) fn embeddings(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        match self {
            Self::Embedding(head) => head.vectors(hidden, batch),
            _ => Err(Error::Msg("embeddings: the student gives logits, not vectors".to_owned())),
        }
    }

    /// Whether its loss looks at nothing but the asked rows of the last state.
    pub(super) fn reads_asked_rows_alone(&self) -> bool {
        matches!(self, Self::MaskedLm(_) | Self::Sequence(_))
    }

    /// What the parts that are no parts of the hidden states weigh in a micro-batch, and the values of all parts; see [`super::Student::loss`].
    /// `hidden` is the last state of every row, or, where the head reads no others, of those asked.
    pub(super) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        step: &StepObjective,
        dropout: &DropoutPlan,
    ) -> Result<(Tensor, [f64; PARTS])> {
        let of_vectors = matches!(self, Self::Embedding(_));
        let foreign = if of_vectors { Part::is_of_logits } else { Part::is_of_embeddings };
        if step.weights.any(foreign) {
            candle_core::bail!("a loss of {} for a student that has none", if of_vectors { "logits" } else { "vectors" });
        }
        // What a backward pass can start from even where a part is turned off or the batch asks nothing.
        let total = Tensor::zeros((), hidden.dtype(), hidden.device())?;
        match self {
            Self::MaskedLm(head) => head.loss(hidden, batch, step, total),
            Self::CausalLm(head) => head.loss(hidden, batch, step, total),
            Self::Sequence(head) => head.loss(hidden, batch, step, dropout, total),
            Self::Token(head) => head.loss(hidden, batch, step, dropout, total),
            Self::Embedding(head) => head.loss(hidden, batch, step, total),
        }
    }
}

/// The asked rows of a state of every row; a state of those alone comes back itself.
fn asked_rows(hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
    if hidden.dims()[0] == asked.len() { Ok(hidden.clone()) } else { gather_rows(hidden, asked) }
}

/// What the asked rows of a batch are taught of their logits.
pub(super) fn head_targets(batch: &Batch) -> HeadTargets<'_> {
    let Batch { k, top_ids, log_probabilities, max_logit, labels, .. } = batch;
    HeadTargets { k: *k, top_ids, log_probabilities, max_logit, labels }
}
