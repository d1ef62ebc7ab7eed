//! One transformer block: attention and a feed-forward part, each added to its input and normalised after.

use super::ParameterTable;
use super::config::StudentConfig;
use super::family::Family;
use super::names::{LayerPart, Role};
use crate::kernels::{AttentionParameters, BlockParameters, BlockSettings, DropoutPlan, Packing, encoder_block};
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) struct Block {
    parameters: BlockParameters,
    settings: BlockSettings,
}

impl Block {
    /// Layer `layer`, counted as the layers are run: an ALBERT's all use the same parameters, each with a dropout of its own. Where dropout
    /// stands is the family's: DistilBERT's attention output and ALBERT's feed-forward output have none of their own.
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, layer: usize) -> Self {
        let own = layer.min(config.layers_with_parameters() - 1);
        let part = |part| table.affine(Role::Layer(own, part));
        let attention = AttentionParameters {
            query: part(LayerPart::Query),
            key: part(LayerPart::Key),
            value: part(LayerPart::Value),
            output: part(LayerPart::AttentionOutput),
        };
        let parameters = BlockParameters {
            attention,
            attention_norm: part(LayerPart::AttentionNorm),
            widen: part(LayerPart::Widen),
            narrow: part(LayerPart::Narrow),
            output_norm: part(LayerPart::OutputNorm),
        };
        let settings = BlockSettings {
            heads: config.num_attention_heads,
            activation: config.activation,
            epsilon: config.layer_norm_eps,
            layer: layer as u32,
            drops_attended: config.family != Family::DistilBert,
            drops_narrowed: config.family != Family::Albert,
        };
        Self { parameters, settings }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`, or to `[asked, hidden]` where some rows alone are asked.
    pub(super) fn forward(&self, hidden: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan, asked: Option<&[u32]>) -> Result<Tensor> {
        encoder_block(hidden, &self.parameters, &self.settings, packing, plan, asked)
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
            assert!(Arc::ptr_eq(&block.parameters.widen.weight, &encoder.blocks[0].parameters.widen.weight));
            assert_eq!(block.settings.layer, layer as u32);
        }
        assert_eq!(encoder.blocks.len(), 3);
    }
}
