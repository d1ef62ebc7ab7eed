//! What makes hidden states of ids: the layers of a student, whatever its head asks of the last of them.

use super::block::Block;
use super::config::StudentConfig;
use super::decoder::Decoder;
use super::embeddings::Embeddings;
use super::{ParameterTable, packing};
use crate::batcher::Batch;
use crate::kernels::DropoutPlan;
use candle_core::{Result, Tensor};

/// The layers of a family.
pub(super) enum Body {
    /// Embeddings, then blocks in which every token sees every other of its sequence.
    Encoder(Encoder),
    /// Embeddings, then blocks in which a token sees those before it.
    Decoder(Decoder),
}

impl Body {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        match &config.decoder {
            Some(decoder) => Self::Decoder(Decoder::new(table, config, decoder)),
            None => Self::Encoder(Encoder::new(table, config)),
        }
    }

    /// How many layers there are: one less than the states.
    pub(super) fn layers(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.blocks.len(),
            Self::Decoder(decoder) => decoder.layers(),
        }
    }

    /// `[tokens, hidden]` of every row after the embeddings and after each layer. Where `asked_alone`, an encoder computes the last of them for
    /// the asked rows alone, `[asked, hidden]`.
    pub(super) fn states(&self, batch: &Batch, dropout: &DropoutPlan, asked_alone: bool) -> Result<Vec<Tensor>> {
        match self {
            Self::Encoder(encoder) => encoder.states(batch, dropout, asked_alone.then_some(batch.asked.as_slice())),
            Self::Decoder(decoder) => decoder.states(batch, dropout),
        }
    }

    /// The last of [`states`](Self::states), without dropout and without keeping anything for a backward pass.
    pub(super) fn last_state(&self, batch: &Batch) -> Result<Tensor> {
        match self {
            Self::Encoder(encoder) => encoder.last_state(batch),
            Self::Decoder(decoder) => decoder.last_state(batch),
        }
    }
}

/// An encoder of one of the four families.
pub(super) struct Encoder {
    embeddings: Embeddings,
    pub(super) blocks: Vec<Block>,
}

impl Encoder {
    fn new(table: &ParameterTable<'_>, config: &StudentConfig) -> Self {
        let blocks = (0..config.num_hidden_layers).map(|layer| Block::new(table, config, layer)).collect();
        Self { embeddings: Embeddings::new(table, config), blocks }
    }

    fn states(&self, batch: &Batch, dropout: &DropoutPlan, asked: Option<&[u32]>) -> Result<Vec<Tensor>> {
        let packing = packing(batch)?;
        let mut states = Vec::with_capacity(self.blocks.len() + 1);
        let mut state = self.embeddings.forward(batch, &packing, dropout)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let asked = asked.filter(|_| layer + 1 == self.blocks.len());
            let next = block.forward(&state, &packing, dropout, asked)?;
            states.push(std::mem::replace(&mut state, next));
        }
        states.push(state);
        Ok(states)
    }

    fn last_state(&self, batch: &Batch) -> Result<Tensor> {
        let (packing, dropout) = (packing(batch)?, DropoutPlan::off());
        let embedded = self.embeddings.forward(batch, &packing, &dropout)?.detach();
        self.blocks.iter().try_fold(embedded, |hidden, block| block.forward(&hidden, &packing, &dropout, None))
    }
}
