//! One decoder block: attention and a feed-forward part, each on the normalised input and added to it.

use super::roles::{DecoderPart, DecoderRole};
use super::settings::DecoderConfig;
use crate::kernels::{
    Affine, CausalParameters, DropoutPlan, DropoutSite, GatedParameters, Packing, ParameterRef, Projection, Rotary, causal_attention,
    dropout, gated_feed_forward, layer_norm, rms_norm,
};
use crate::student::ParameterTable;
use crate::student::config::StudentConfig;
use crate::student::family::Family;
use crate::student::names::Role;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A LayerNorm or an RMSNorm.
pub(super) enum Norm {
    Layer(Affine, f64),
    Root(ParameterRef, f64),
}

impl Norm {
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, role: DecoderRole) -> Self {
        let (role, epsilon) = (Role::Decoder(role), config.layer_norm_eps);
        match config.family {
            Family::Gpt2 => Self::Layer(table.affine(role), epsilon),
            _ => Self::Root(table.weight(role), epsilon),
        }
    }

    /// `[tokens, hidden]` both.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(affine, epsilon) => layer_norm(x, affine, *epsilon),
            Self::Root(weight, epsilon) => rms_norm(x, weight, *epsilon),
        }
    }
}

pub(super) struct Block {
    layer: u32,
    attention_norm: Norm,
    attention: CausalParameters,
    feed_forward_norm: Norm,
    feed_forward: GatedParameters,
}

impl Block {
    pub(super) fn new(
        table: &ParameterTable<'_>,
        config: &StudentConfig,
        decoder: &DecoderConfig,
        layer: usize,
        rotary: Option<Arc<Rotary>>,
    ) -> Self {
        let family = config.family;
        let map = |part: DecoderPart| {
            let role = Role::Decoder(DecoderRole::Layer(layer, part));
            let bias = part.has_bias(family, decoder).then(|| table.bias(role));
            Projection { weight: table.weight(role), bias, inputs_first: family == Family::Gpt2 }
        };
        let inputs = match family {
            Family::Gpt2 => vec![map(DecoderPart::QueryKeyValue)],
            _ => vec![map(DecoderPart::Query), map(DecoderPart::Key), map(DecoderPart::Value)],
        };
        Self {
            layer: layer as u32,
            attention_norm: Norm::new(table, config, DecoderRole::Layer(layer, DecoderPart::AttentionNorm)),
            attention: CausalParameters {
                inputs,
                output: map(DecoderPart::AttentionOutput),
                heads: config.num_attention_heads,
                key_value_heads: decoder.key_value_heads,
                head_width: decoder.head_width,
                rotary,
            },
            feed_forward_norm: Norm::new(table, config, DecoderRole::Layer(layer, DecoderPart::FeedForwardNorm)),
            feed_forward: GatedParameters {
                gate: (family != Family::Gpt2).then(|| map(DecoderPart::Gate)),
                up: map(DecoderPart::Up),
                down: map(DecoderPart::Down),
                activation: config.activation,
            },
        }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`. Dropout stands behind both parts, as in a GPT-2; a Llama's settings have none there.
    pub(super) fn forward(&self, x: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        let attended = causal_attention(&self.attention_norm.forward(x)?, &self.attention, packing, plan, self.layer)?;
        let x = (x + dropout(&attended, packing, plan, DropoutSite::AttentionOutput(self.layer))?)?;
        let widened = gated_feed_forward(&self.feed_forward_norm.forward(&x)?, &self.feed_forward)?;
        &x + dropout(&widened, packing, plan, DropoutSite::FeedForward(self.layer))?
    }
}
