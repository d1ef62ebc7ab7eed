//! One transformer block: attention and a feed-forward part, each added to its input and normalised after.

use super::ParameterTable;
use super::attention::SelfAttention;
use super::config::LAYER_NORM_EPSILON;
use super::layout::LAYER_PREFIX;
use crate::kernels::{Affine, DropoutPlan, DropoutSite, Packing, add_layer_norm, dropout, feed_forward};
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) struct Block {
    layer: u32,
    attention: SelfAttention,
    attention_norm: Affine,
    widen: Affine,
    narrow: Affine,
    output_norm: Affine,
}

impl Block {
    pub(super) fn new(table: &ParameterTable<'_>, layer: usize, heads: usize) -> Self {
        let prefix = format!("{LAYER_PREFIX}{layer}");
        let part = |name: &str| table.affine(&format!("{prefix}.{name}"));
        Self {
            layer: layer as u32,
            attention: SelfAttention::new(table, &prefix, layer, heads),
            attention_norm: part("sa_layer_norm"),
            widen: part("ffn.lin1"),
            narrow: part("ffn.lin2"),
            output_norm: part("output_layer_norm"),
        }
    }

    /// `[tokens, dim]` to `[tokens, dim]`. As in DistilBERT, the attention's output projection has no dropout of its own.
    pub(super) fn forward(&self, hidden: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let attended = self.attention.forward(hidden, packing, plan)?;
        let hidden = add_layer_norm(&attended, hidden, &self.attention_norm, LAYER_NORM_EPSILON)?;
        let widened = feed_forward(&hidden, &self.widen, &self.narrow)?;
        let dropped = dropout(&widened, packing, plan, DropoutSite::FeedForward(self.layer))?;
        add_layer_norm(&dropped, &hidden, &self.output_norm, LAYER_NORM_EPSILON)
    }
}
