//! The masked-language-model head: what a hidden state says about its token, and what it costs.

use crate::batcher::Batch;
use crate::kernels::{Activation, Affine, HeadTargets, gather_rows, head_loss, layer_norm, linear, linear_activated};
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

    /// `[asked, embedding]`: what the decoder reads of the asked rows of `hidden` `[tokens, hidden]`.
    fn transformed(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        layer_norm(&linear_activated(&gather_rows(hidden, asked)?, &self.transform, self.activation)?, &self.norm, self.epsilon)
    }

    /// `[asked, vocabulary]`.
    pub(super) fn logits(&self, hidden: &Tensor, asked: &[u32]) -> Result<Tensor> {
        linear(&self.transformed(hidden, asked)?, &self.decoder)
    }

    /// What the parts of the logits weigh in a micro-batch, and their values; see [`crate::student::Student::loss`]. `hidden` is `[tokens, hidden]`.
    pub(super) fn loss(&self, hidden: &Tensor, batch: &Batch, step: &StepObjective) -> Result<(Tensor, [f64; PARTS])> {
        // What a backward pass can start from even where a part is turned off or the batch asks nothing.
        let mut total = Tensor::zeros((), hidden.dtype(), hidden.device())?;
        let (weights, mut parts) = (&step.weights, LossParts::default());
        if weights.any(Part::is_of_logits) && !batch.asked.is_empty() {
            let Batch { k, top_ids, log_probabilities, max_logit, labels, .. } = batch;
            let targets = HeadTargets { k: *k, top_ids, log_probabilities, max_logit, labels };
            let rows = self.transformed(hidden, &batch.asked)?;
            let (weighted, of_logits) = head_loss(&rows, &self.decoder, &targets, step)?;
            parts = of_logits;
            total = (total + weighted)?;
        }
        Ok((total, parts.values))
    }
}
