//! What a row starts as: its token's, its place's and its segment's embedding, summed and normalised.

use super::ParameterTable;
use super::config::StudentConfig;
use super::family::Family;
use super::names::Role;
use crate::batcher::Batch;
use crate::kernels::{Affine, DropoutPlan, DropoutSite, Lookup, Packing, ParameterRef, dropout, embeddings, layer_norm, linear};
use candle_core::{Error, Result, Tensor};
use std::sync::Arc;

pub(super) struct Embeddings {
    word: ParameterRef,
    position: ParameterRef,
    token_type: Option<ParameterRef>,
    norm: Affine,
    /// An ALBERT's map to the hidden states' width.
    mapping: Option<Affine>,
    epsilon: f64,
    first_position: u32,
    /// The id that takes no place of its own, for a RoBERTa.
    padding: Option<u32>,
}

impl Embeddings {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        Self {
            word: table.weight(Role::WordEmbeddings),
            position: table.weight(Role::PositionEmbeddings),
            token_type: config.family.has_token_types().then(|| table.weight(Role::TokenTypeEmbeddings)),
            norm: table.affine(Role::EmbeddingNorm),
            mapping: (config.family == Family::Albert).then(|| table.affine(Role::EmbeddingMapping)),
            epsilon: config.layer_norm_eps,
            first_position: config.family.first_position(config.pad_token_id) as u32,
            padding: config.pad_token_id.filter(|_| config.family == Family::Roberta),
        }
    }

    /// `[tokens, hidden]`; places count from the family's first in each sequence.
    pub(super) fn forward(&self, batch: &Batch, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let mut lookups = vec![Lookup { table: self.word.clone(), indices: batch.input_ids.clone() }];
        if let Some(table) = &self.token_type {
            let zeros = || vec![0; batch.input_ids.len()];
            let indices = if batch.token_type_ids.is_empty() { zeros() } else { batch.token_type_ids.clone() };
            lookups.push(Lookup { table: table.clone(), indices });
        }
        lookups.push(Lookup { table: self.position.clone(), indices: self.positions(batch, packing)? });
        let normalised = layer_norm(&embeddings(lookups)?, &self.norm, self.epsilon)?;
        let dropped = dropout(&normalised, packing, plan, DropoutSite::Embeddings)?;
        self.mapping.as_ref().map_or(Ok(dropped.clone()), |mapping| linear(&dropped, mapping))
    }

    /// A RoBERTa's padding token, should one stand among the others, takes its own row and is not counted.
    fn positions(&self, batch: &Batch, packing: &Packing) -> Result<Vec<u32>> {
        let rows = batch.input_ids.len();
        if rows != packing.rows() {
            return Err(Error::Msg(format!("embeddings: {rows} ids for {} rows", packing.rows())));
        }
        let fits = self.position.shape().dims2()?.0 - self.first_position as usize;
        if packing.longest() > fits {
            return Err(Error::Msg(format!("embeddings: a sequence of {} tokens for {fits} positions", packing.longest())));
        }
        Ok(places_of(&batch.input_ids, packing, self.first_position, self.padding))
    }
}

/// `[tokens]`: rows of the position embeddings, counted from `first` in each sequence; the id `padding`, where there is such, takes the row of its
/// own number and is not counted.
pub(crate) fn places_of(ids: &[u32], packing: &Packing, first: u32, padding: Option<u32>) -> Vec<u32> {
    let mut positions = Vec::with_capacity(ids.len());
    for sequence in 0..packing.sequences() {
        let mut next = first;
        for id in &ids[packing.range(sequence)] {
            match padding {
                Some(padding) if padding == *id => positions.push(padding),
                _ => {
                    positions.push(next);
                    next += 1;
                }
            }
        }
    }
    positions
}
