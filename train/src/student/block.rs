//! One transformer block: attention and a feed-forward part, each added to its input and normalised after.

use super::ParameterTable;
use super::attention::SelfAttention;
use super::config::StudentConfig;
use super::family::Family;
use super::names::{LayerPart, Role};
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
    family: Family,
    epsilon: f64,
}

impl Block {
    /// Layer `layer`, counted as the layers are run: an ALBERT's all use the same parameters, each with a dropout of its own.
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, layer: usize) -> Self {
        let own = layer.min(config.layers_with_parameters() - 1);
        let part = |part| table.affine(Role::Layer(own, part));
        Self {
            layer: layer as u32,
            attention: SelfAttention::new(table, config, layer, own),
            attention_norm: part(LayerPart::AttentionNorm),
            widen: part(LayerPart::Widen),
            narrow: part(LayerPart::Narrow),
            output_norm: part(LayerPart::OutputNorm),
            family: config.family,
            epsilon: config.layer_norm_eps,
        }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`. Where dropout stands is the family's: DistilBERT's attention output and ALBERT's
    /// feed-forward output have none of their own.
    pub(super) fn forward(&self, hidden: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let mut attended = self.attention.forward(hidden, packing, plan)?;
        if self.family != Family::DistilBert {
            attended = dropout(&attended, packing, plan, DropoutSite::AttentionOutput(self.layer))?;
        }
        let hidden = add_layer_norm(&attended, hidden, &self.attention_norm, self.epsilon)?;
        let mut widened = feed_forward(&hidden, &self.widen, &self.narrow)?;
        if self.family != Family::Albert {
            widened = dropout(&widened, packing, plan, DropoutSite::FeedForward(self.layer))?;
        }
        add_layer_norm(&widened, &hidden, &self.output_norm, self.epsilon)
    }
}
