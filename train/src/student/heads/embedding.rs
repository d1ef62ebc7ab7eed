//! The vector of a sequence: its tokens' states pooled, then mapped to the teacher's width where that differs, then scaled to length 1 where the
//! teacher's is.

use crate::batcher::Batch;
use crate::kernels::{Affine, cosine_loss, hidden_mse_loss, linear, pool, unit_length};
use crate::loss::{PARTS, Part, StepObjective};
use crate::student::config::StudentConfig;
use crate::student::names::Role;
use crate::student::{ParameterTable, packing};
use candle_core::{Result, Tensor};
use logitcache::target::Pooling;

/// Vectors `[rows, width]` of the student, the teacher's, a weight and the rows of the step: the weighted scalar and the number without its
/// weight.
type VectorLoss = fn(&Tensor, &[f32], f64, usize) -> Result<(Tensor, f64)>;

pub(in crate::student) struct EmbeddingHead {
    pooling: Pooling,
    projection: Option<Affine>,
    normalized: bool,
}

impl EmbeddingHead {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        let projection = (config.embedding_output > 0).then(|| table.affine(Role::Projection));
        Self { pooling: config.pooling, projection, normalized: config.normalized }
    }

    /// `[sequences, embedding]`.
    pub(super) fn vectors(&self, hidden: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut vectors = pool(hidden, &packing(batch)?, self.pooling)?;
        if let Some(projection) = &self.projection {
            vectors = linear(&vectors, projection)?;
        }
        if self.normalized { unit_length(&vectors) } else { Ok(vectors) }
    }

    /// See [`super::Head::loss`].
    pub(super) fn loss(&self, hidden: &Tensor, batch: &Batch, step: &StepObjective, mut total: Tensor) -> Result<(Tensor, [f64; PARTS])> {
        let mut values = [0.0; PARTS];
        if !step.weights.any(Part::is_of_embeddings) || batch.sequence_ids.is_empty() {
            return Ok((total, values));
        }
        let vectors = self.vectors(hidden, batch)?;
        let losses = [(Part::EmbeddingCos, cosine_loss as VectorLoss), (Part::EmbeddingMse, hidden_mse_loss)];
        for (part, loss) in losses.into_iter().filter(|(part, _)| step.weights.has(*part)) {
            let (weighted, value) = loss(&vectors, &batch.embeddings, step.weights.get(part), step.normalisers.sequences)?;
            values[part as usize] = value;
            total = (total + weighted)?;
        }
        Ok((total, values))
    }
}
