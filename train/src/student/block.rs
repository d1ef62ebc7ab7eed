//! One transformer block: attention and a feed-forward part, each added to its input and normalised after.

use super::ParameterTable;
use super::attention::SelfAttention;
use super::config::StudentConfig;
use super::family::Family;
use super::names::{LayerPart, Role};
use crate::kernels::{Activation, Affine, DropoutPlan, DropoutSite, Packing, add_layer_norm, dropout, feed_forward};
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
    activation: Activation,
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
            activation: config.activation,
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
        let mut widened = feed_forward(&hidden, &self.widen, &self.narrow, self.activation)?;
        if self.family != Family::Albert {
            widened = dropout(&widened, packing, plan, DropoutSite::FeedForward(self.layer))?;
        }
        add_layer_norm(&widened, &hidden, &self.output_norm, self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Student, StudentConfig, at_random};
    use super::*;

    #[test]
    fn an_alberts_layers_share_their_parameters_but_not_their_dropout() {
        let config = StudentConfig {
            family: Family::Albert,
            vocab_size: 5,
            hidden_size: 4,
            embedding_size: 2,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            intermediate_size: 6,
            max_position_embeddings: 5,
            type_vocab_size: 1,
            ..StudentConfig::default()
        };
        let student = Student::new(config.clone(), candle_core::DType::F32, &mut |spec| Ok(at_random(&config, 1, spec))).unwrap();
        let super::super::body::Body::Encoder(encoder) = &student.body else { panic!("an ALBERT is an encoder") };
        for (layer, block) in encoder.blocks.iter().enumerate() {
            assert!(Arc::ptr_eq(&block.widen.weight, &encoder.blocks[0].widen.weight));
            assert_eq!(block.layer, layer as u32);
        }
        assert_eq!(encoder.blocks.len(), 3);
    }
}
