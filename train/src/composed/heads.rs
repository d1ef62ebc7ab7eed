//! What a student makes of its last state, and what that costs: one head for each task.

use super::dropout::{Factors, dropped, off};
use super::operations::activate;
use super::place::Place;
use super::rows::Rows;
use super::values::Values;
use super::vectors::{cosine_loss, output_losses, pool, rows_like, squared_loss, unit_length, upload};
use super::vocabulary::{Decoder, Losses, Targets, head_loss};
use crate::batcher::Batch;
use crate::kernels::{Activation, DropoutSite, HeadTargets};
use crate::loss::{Part, StepObjective};
use crate::student::decoder::DecoderRole;
use crate::student::family::Family;
use crate::student::{Role, StudentConfig};
use candle_core::{Result, Tensor};
use logitcache::target::{Problem, Task};

/// A student's head on the last state of a batch.
pub(super) struct Head<'a> {
    pub(super) config: &'a StudentConfig,
    pub(super) values: &'a Values,
    pub(super) place: &'a Place,
    pub(super) batch: &'a Batch,
    /// The rows that the last map reads; none where nothing is asked, since a GPU has no room for nothing.
    asked: Option<Rows>,
    /// What their logits are taught.
    targets: Option<Targets>,
}

impl<'a> Head<'a> {
    /// Uploads what is asked and, where there is a `step`, what is taught.
    pub(super) fn new(
        config: &'a StudentConfig,
        values: &'a Values,
        place: &'a Place,
        batch: &'a Batch,
        step: Option<&StepObjective>,
    ) -> Result<Self> {
        let mut head = Self { config, values, place, batch, asked: None, targets: None };
        if config.task == Task::SentenceEmbedding || batch.asked.is_empty() {
            return Ok(head);
        }
        let (device, dtype) = (values.device(), values.dtype());
        head.asked = Some(Rows::new(batch.asked.iter().map(|row| Some(*row as usize)), batch.input_ids.len(), device)?);
        let of_numbers = matches!(config.problem, Some(Problem::MultiLabel | Problem::Regression));
        if let Some(step) = step.filter(|step| step.weights.any(Part::is_of_logits) && !of_numbers) {
            let Batch { k, top_ids, log_probabilities, max_logit, labels, .. } = batch;
            let targets = HeadTargets { k: *k, top_ids, log_probabilities, max_logit, labels };
            head.targets = Some(Targets::new(&targets, head.decoder()?.weight.dim(0)?, step, dtype, device)?);
        }
        Ok(head)
    }

    /// `[asked, classes]` from `state` `[tokens, hidden]`.
    pub(super) fn logits(&self, state: &Tensor) -> Result<Tensor> {
        if self.config.task == Task::SentenceEmbedding {
            candle_core::bail!("the student gives vectors, not logits");
        }
        self.decoder()?.logits(&self.read(state, &off)?)
    }

    /// `[sequences, embedding]` from `state` `[tokens, hidden]`.
    pub(super) fn vectors(&self, state: &Tensor) -> Result<Tensor> {
        if self.config.task != Task::SentenceEmbedding {
            candle_core::bail!("the student gives logits, not vectors");
        }
        let mut vectors = pool(state, self.place, self.config.pooling)?;
        if self.config.embedding_output > 0 {
            vectors = self.values.linear(&vectors, Role::Projection)?;
        }
        if self.config.normalized { unit_length(&vectors) } else { Ok(vectors) }
    }

    /// What the parts that are no parts of the hidden states weigh, as a scalar to differentiate; none where there is nothing to teach. And the
    /// parts' values.
    pub(super) fn loss(&self, state: &Tensor, step: &StepObjective, factors: &Factors<'_>) -> Result<Option<Losses>> {
        let of_vectors = self.config.task == Task::SentenceEmbedding;
        let (logits, vectors) = (step.weights.any(Part::is_of_logits), step.weights.any(Part::is_of_embeddings));
        let foreign = if of_vectors { logits } else { vectors };
        if foreign {
            candle_core::bail!("a loss of {} for a student that has none", if of_vectors { "logits" } else { "vectors" });
        }
        let rows = if of_vectors { self.batch.sequence_ids.len() } else { self.batch.asked.len() };
        if !(logits || vectors) || rows == 0 {
            return Ok(None);
        }
        if of_vectors {
            return self.vector_loss(state, step).map(Some);
        }
        let (rows, decoder) = (self.read(state, factors)?, self.decoder()?);
        match self.config.problem {
            Some(problem @ (Problem::MultiLabel | Problem::Regression)) => {
                weighted(output_losses(&decoder.logits(&rows)?, self.batch, problem, step)?, step)
            }
            _ => match &self.targets {
                Some(targets) => head_loss(&rows, &decoder, targets, step).map(Some),
                None => candle_core::bail!("a head that was made to answer is asked for its loss"),
            },
        }
    }

    fn vector_loss(&self, state: &Tensor, step: &StepObjective) -> Result<Losses> {
        let vectors = self.vectors(state)?;
        let teacher = rows_like(&upload(&self.batch.embeddings, vectors.dtype(), vectors.device())?, &vectors)?;
        let count = step.normalisers.sequences;
        let mut losses = Vec::new();
        for (part, loss) in [(Part::EmbeddingCos, cosine_loss as RowLoss), (Part::EmbeddingMse, squared_loss)] {
            if step.weights.has(part) {
                losses.push((part, loss(&vectors, &teacher, count)?));
            }
        }
        let none = || candle_core::Error::Msg("no loss of vectors".to_owned());
        weighted(losses, step)?.ok_or_else(none)
    }

    /// `[asked, width]`: what the last map reads.
    fn read(&self, state: &Tensor, factors: &Factors<'_>) -> Result<Tensor> {
        let Self { config, values, .. } = *self;
        let none = || candle_core::Error::Msg("nothing is asked".to_owned());
        let rows = self.asked.as_ref().ok_or_else(none)?;
        let asked = |state: &Tensor| rows.of(state);
        match config.task {
            Task::TokenClassification => asked(&dropped(state, DropoutSite::Classifier, factors)?),
            Task::SequenceClassification => {
                let firsts = &self.batch.offsets[..self.batch.sequence_ids.len()];
                if let Some(row) = self.batch.asked.iter().find(|row| firsts.binary_search(&(**row as usize)).is_err()) {
                    candle_core::bail!("a sequence's class is asked at its first token, and row {row} is no sequence's first");
                }
                let mut rows = asked(state)?;
                if config.family == Family::Roberta {
                    rows = dropped(&rows, DropoutSite::ClassifierInput, factors)?;
                }
                let pooled = values.linear(&rows, Role::Pooler)?;
                let pooled = if config.family == Family::DistilBert { activate(&pooled, Activation::Relu)? } else { pooled.tanh()? };
                dropped(&pooled, DropoutSite::Classifier, factors)
            }
            _ if config.decoder.is_some() => asked(state),
            _ => {
                let transformed = activate(&values.linear(&asked(state)?, Role::HeadDense)?, config.head_activation())?;
                values.norm(&transformed, Role::HeadNorm, config.layer_norm_eps)
            }
        }
    }

    /// The last map.
    fn decoder(&self) -> Result<Decoder<'_>> {
        let (weight, bias) = match (&self.config.decoder, self.config.task) {
            (Some(decoder), _) if decoder.tied => (Role::Decoder(DecoderRole::Words), None),
            (Some(_), _) => (Role::Decoder(DecoderRole::Head), None),
            (None, Task::SequenceClassification) => (Role::SequenceClassifier, Some(Role::SequenceClassifier)),
            (None, Task::TokenClassification) => (Role::TokenClassifier, Some(Role::TokenClassifier)),
            (None, _) => (Role::WordEmbeddings, Some(Role::DecoderBias)),
        };
        let bias = bias.and_then(|role| self.values.bias(role));
        Ok(Decoder { weight: self.values.weight(weight)?, bias, precision: self.values.precision() })
    }
}

/// A loss of rows against a teacher's, divided by a count.
pub(super) type RowLoss = fn(&Tensor, &Tensor, usize) -> Result<Tensor>;

/// The weighted sum of losses, to differentiate, and their values; none of none.
pub(super) fn weighted(losses: Vec<(Part, Tensor)>, step: &StepObjective) -> Result<Option<Losses>> {
    let sum = losses.iter().map(|(part, loss)| loss * step.weights.get(*part)).reduce(|a, b| a? + b?).transpose()?;
    let values = losses.into_iter().map(|(part, loss)| (part, loss.detach())).collect();
    Ok(sum.map(|sum| (sum, values)))
}
