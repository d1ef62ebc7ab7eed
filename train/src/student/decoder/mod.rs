//! Decoders: causal language models of the families Llama (Touvron et al. 2023) and GPT-2 (Radford et al. 2019) on packed rows.
//!
//! ```text
//! ids -> word (+ position -> dropout)                                                                              GPT-2 has positions
//!     -> num_hidden_layers x [ x = x + attention(norm(x)); x = x + feed_forward(norm(x)) ]                         block
//!     -> norm -> the asked rows -> word embeddings, transposed, or a map of its own                                head
//! ```
//!
//! A Llama's norms are RMSNorms, its positions turn queries and keys, its feed-forward part is gated; a GPT-2's are LayerNorms, learned
//! embeddings, and plain with the activation between. States are counted as in `transformers`: state i is what layer i reads, and the last one has
//! passed the final norm.

mod block;
mod head;
mod init;
mod roles;
pub mod settings;

use super::config::StudentConfig;
use super::names::Role;
use super::{ParameterTable, packing};
use crate::batcher::Batch;
use crate::kernels::{DropoutPlan, DropoutSite, Lookup, Packing, ParameterRef, Rotary, dropout, embeddings};
use block::{Block, Norm};
use candle_core::{Error, Result, Tensor};
use std::sync::Arc;

pub(super) use head::CausalLmHead;
pub use init::DecoderTensors;
pub(super) use roles::add_decoder;
pub use roles::{DecoderPart, DecoderRole};
pub use settings::{DecoderConfig, RotaryConfig, RotaryScaling};

/// Embeddings, blocks in which a token sees those before it, and the norm of what they give.
pub(super) struct Decoder {
    words: ParameterRef,
    positions: Option<ParameterRef>,
    longest: usize,
    blocks: Vec<Block>,
    final_norm: Norm,
}

impl Decoder {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, decoder: &DecoderConfig) -> Self {
        let longest = config.max_position_embeddings;
        let rotary = decoder.rotary.map(|rotary| Arc::new(Rotary::new(rotary.frequencies(decoder.head_width), longest)));
        let block = |layer| Block::new(table, config, decoder, layer, rotary.clone());
        Self {
            words: table.weight(Role::Decoder(DecoderRole::Words)),
            positions: decoder.rotary.is_none().then(|| table.weight(Role::Decoder(DecoderRole::Positions))),
            longest,
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            final_norm: Norm::new(table, config, DecoderRole::FinalNorm),
        }
    }

    pub(super) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// `[tokens, hidden]`: what each block reads, then the normalised result.
    pub(super) fn states(&self, batch: &Batch, plan: &DropoutPlan) -> Result<Vec<Tensor>> {
        let packing = packing(batch)?;
        let mut states = Vec::with_capacity(self.blocks.len() + 1);
        let mut state = self.embedded(batch, &packing, plan)?;
        for block in &self.blocks {
            let next = block.forward(&state, &packing, plan)?;
            states.push(std::mem::replace(&mut state, next));
        }
        states.push(self.final_norm.forward(&state)?);
        Ok(states)
    }

    /// The last of [`states`](Self::states), without dropout and without keeping anything for a backward pass.
    pub(super) fn last_state(&self, batch: &Batch) -> Result<Tensor> {
        let (packing, plan) = (packing(batch)?, DropoutPlan::off());
        let embedded = self.embedded(batch, &packing, &plan)?.detach();
        self.final_norm.forward(&self.blocks.iter().try_fold(embedded, |state, block| block.forward(&state, &packing, &plan))?)
    }

    fn embedded(&self, batch: &Batch, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let rows = batch.input_ids.len();
        if rows != packing.rows() {
            return Err(Error::Msg(format!("embeddings: {rows} ids for {} rows", packing.rows())));
        }
        if packing.longest() > self.longest {
            return Err(Error::Msg(format!("embeddings: a sequence of {} tokens for {} positions", packing.longest(), self.longest)));
        }
        let mut lookups = vec![Lookup { table: self.words.clone(), indices: batch.input_ids.clone() }];
        if let Some(table) = &self.positions {
            let places = (0..packing.sequences()).flat_map(|i| 0..packing.range(i).len() as u32);
            lookups.push(Lookup { table: table.clone(), indices: places.collect() });
        }
        dropout(&embeddings(lookups)?, packing, plan, DropoutSite::Embeddings)
    }
}

#[cfg(test)]
pub(crate) mod tests;
