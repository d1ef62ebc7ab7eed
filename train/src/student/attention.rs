//! Multi-head self-attention within each sequence.

use super::ParameterTable;
use super::config::StudentConfig;
use super::names::{LayerPart, Role};
use crate::kernels::{AttentionParameters, DropoutPlan, Packing, self_attention};
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) struct SelfAttention {
    parameters: AttentionParameters,
    heads: usize,
    layer: u32,
}

impl SelfAttention {
    /// `layer` counts the layers as they are run; `own` is the one whose parameters it uses.
    pub(super) fn new(table: &ParameterTable<'_>, config: &StudentConfig, layer: usize, own: usize) -> Self {
        let projection = |part| table.affine(Role::Layer(own, part));
        let parameters = AttentionParameters {
            query: projection(LayerPart::Query),
            key: projection(LayerPart::Key),
            value: projection(LayerPart::Value),
            output: projection(LayerPart::AttentionOutput),
        };
        Self { parameters, heads: config.num_attention_heads, layer: layer as u32 }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`; a row sees the rows of its own sequence only.
    pub(super) fn forward(&self, hidden: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        self_attention(hidden, &self.parameters, self.heads, packing, plan, self.layer)
    }
}
