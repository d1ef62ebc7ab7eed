//! What a row starts as: its token's and its position's embedding, normalised.

use super::ParameterTable;
use super::config::LAYER_NORM_EPSILON;
use super::layout::{POSITION_EMBEDDINGS, WORD_EMBEDDINGS};
use crate::kernels::{Affine, DropoutPlan, DropoutSite, Packing, ParameterRef, dropout, embeddings, layer_norm};
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) struct Embeddings {
    word: ParameterRef,
    position: ParameterRef,
    norm: Affine,
}

impl Embeddings {
    pub(super) fn new(table: &ParameterTable<'_>) -> Self {
        Self {
            word: table.get(WORD_EMBEDDINGS),
            position: table.get(POSITION_EMBEDDINGS),
            norm: table.affine("distilbert.embeddings.LayerNorm"),
        }
    }

    /// `[tokens, dim]`; positions count from 0 in each sequence.
    pub(super) fn forward(&self, input_ids: &[u32], packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let summed = embeddings(&self.word, &self.position, input_ids, packing)?;
        dropout(&layer_norm(&summed, &self.norm, LAYER_NORM_EPSILON)?, packing, plan, DropoutSite::Embeddings)
    }
}
