//! The masked-language-model head: what a hidden state says about its token, and what it costs.

use super::{asked_rows, head_targets};
use crate::batcher::Batch;
use crate::kernels::{Activation, Affine, head_loss, layer_norm, linear, linear_activated};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::student::ParameterTable;
use crate::student::config::StudentConfig;
use crate::student::names::Role;
use candle_core::{Result, Tensor};

pub(in crate::student) struct MaskedLmHead {
    transform: Affine,
    norm: Affine,
    /// The word embeddings as a map to the vocabulary, with a bias of their own.
    decoder: Affine,
    activation: Activation,
    epsilon: f64,
}

impl MaskedLmHead {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        let decoder = Affine { weight: table.weight(Role::WordEmbeddings), bias: table.bias(Role::DecoderBias) };
        let (activation, epsilon) = (config.head_activation(), config.layer_norm_eps);
        Self { transform: table.affine(Role::HeadDense), norm: table.affine(Role::HeadNorm), decoder, activation, epsilon }
    }

    /// `[asked, embedding]`: what the decoder reads of the asked rows of `hidden` `[tokens, hidden]`, or of a `hidden` of those alone.
    fn transformed(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        layer_norm(&linear_activated(&asked_rows(hidden, asked)?, &self.transform, self.activation)?, &self.norm, self.epsilon)
    }

    /// `[asked, vocabulary]`.
    pub(super) fn logits(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        linear(&self.transformed(hidden, asked)?, &self.decoder)
    }

    /// See [`super::Head::loss`].
    pub(super) fn loss(&self, hidden: &Tensor, batch: &Batch, step: &StepObjective, total: Tensor) -> Result<(Tensor, [f64; PARTS])> {
        if !step.weights.any(Part::is_of_logits) || batch.asked.is_empty() {
            return Ok((total, LossParts::default().values));
        }
        let rows = self.transformed(hidden, &batch.asked)?;
        let (weighted, parts) = head_loss(&rows, &self.decoder, &head_targets(batch), step)?;
        Ok(((total + weighted)?, parts.values))
    }
}
