//! A batch on the device: ids and positions, and the rows that padding, attention and heads choose. Whatever could be out of range is checked
//! first, since a GPU would not say what was wrong.

use super::lookup::Lookup;
use super::rows::Rows;
use crate::batcher::Batch;
use crate::kernels::Packing;
use crate::student::StudentConfig;
use crate::student::family::Family;
use crate::student::places_of;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// Rows of the tables that a batch is looked up in, where their gradients will be asked for: of words, of token types, of positions.
pub(super) type Tables = [Option<usize>; 3];

/// The layout of a batch.
pub(super) struct Place {
    /// Which rows are whose.
    pub(super) packing: Arc<Packing>,
    /// `[tokens]`: input ids.
    pub(super) ids: Lookup,
    /// `[tokens]`: token types, where the family has them.
    pub(super) types: Option<Lookup>,
    /// `[tokens]`: rows of the position embeddings, where the family has them.
    pub(super) positions: Option<Lookup>,
    /// From rows `[tokens]` to `[sequences * longest]`, each sequence followed by rows of zeros.
    pub(super) padded: Rows,
    /// What is added to scores: `[sequences, 1, 1, longest]`, -infinity where a sequence has no such key, or of a decoder `[1, 1, longest,
    /// longest]`, -infinity where the key comes after the query, as every key does that the query's sequence lacks.
    pub(super) mask: Tensor,
}

impl Place {
    /// The place of `batch` for a student of `config`.
    pub(super) fn new(config: &StudentConfig, batch: &Batch, tables: Tables, dtype: DType, device: &Device) -> Result<Self> {
        let packing = Packing::new(&batch.offsets, &batch.sequence_ids, &batch.passes)?;
        let (tokens, longest) = (batch.input_ids.len(), packing.longest());
        if tokens != packing.rows() {
            candle_core::bail!("{tokens} ids for {} rows", packing.rows());
        }
        if longest > config.longest_sequence() {
            candle_core::bail!("a sequence of {longest} tokens for {} positions", config.longest_sequence());
        }
        below("id", &batch.input_ids, config.vocab_size)?;
        let [words, of_types, of_positions] = tables;
        let types = match config.family.has_token_types() {
            true if batch.token_type_ids.is_empty() => Some(vec![0; tokens]),
            true => Some(batch.token_type_ids.clone()),
            false => None,
        };
        types.iter().try_for_each(|types| below("token type", types, config.type_vocab_size))?;
        let has_positions = config.decoder.as_ref().is_none_or(|decoder| decoder.rotary.is_none());
        let padding = config.pad_token_id.filter(|_| config.family == Family::Roberta);
        let places = || places_of(&batch.input_ids, &packing, config.family.first_position(config.pad_token_id) as u32, padding);
        let sequences = 0..packing.sequences();
        let row = |(sequence, place)| Some(packing.range(sequence)).filter(|range| place < range.len()).map(|range| range.start + place);
        let slots = sequences.clone().flat_map(|sequence| (0..longest).map(move |place| (sequence, place)));
        let padded = Rows::new(slots.map(row), tokens, device)?;
        let hidden = |is_hidden: bool| if is_hidden { f32::NEG_INFINITY } else { 0.0 };
        let (mask, shape): (Vec<f32>, _) = match config.decoder {
            Some(_) => {
                ((0..longest).flat_map(|query| (0..longest).map(move |key| hidden(key > query))).collect(), [1, 1, longest, longest])
            }
            None => {
                let lengths = sequences.map(|sequence| packing.range(sequence).len());
                (
                    lengths.flat_map(|length| (0..longest).map(move |key| hidden(key >= length))).collect(),
                    [packing.sequences(), 1, 1, longest],
                )
            }
        };
        Ok(Self {
            ids: Lookup::new(&batch.input_ids, words, device)?,
            types: types.map(|types| Lookup::new(&types, of_types, device)).transpose()?,
            positions: has_positions.then(places).map(|places| Lookup::new(&places, of_positions, device)).transpose()?,
            padded,
            mask: Tensor::from_vec(mask, &shape, device)?.to_dtype(dtype)?,
            packing,
        })
    }

    /// `[sequences, longest, width]` from `[tokens, width]`.
    pub(super) fn pad(&self, x: &Tensor) -> Result<Tensor> {
        self.padded.of(x)?.reshape((self.packing.sequences(), self.packing.longest(), ()))
    }

    /// The way back.
    pub(super) fn pack(&self, x: &Tensor) -> Result<Tensor> {
        self.padded.inverse().of(&x.flatten_to(1)?)
    }
}

/// Refuses a number that is `limit` or more.
pub(super) fn below(what: &str, numbers: &[u32], limit: usize) -> Result<()> {
    match numbers.iter().find(|number| **number as usize >= limit) {
        None => Ok(()),
        Some(number) => candle_core::bail!("{what} {number} of {limit}"),
    }
}
