//! Multi-head self-attention within each sequence.

use super::ParameterTable;
use crate::kernels::{AttentionParameters, DropoutPlan, Packing, self_attention};
use candle_core::{Result, Tensor};
use std::sync::Arc;

pub(super) struct SelfAttention {
    parameters: AttentionParameters,
    heads: usize,
    layer: u32,
}

impl SelfAttention {
    /// `prefix` is the block's, `distilbert.transformer.layer.N`.
    pub(super) fn new(table: &ParameterTable<'_>, prefix: &str, layer: usize, heads: usize) -> Self {
        let projection = |name: &str| table.affine(&format!("{prefix}.attention.{name}"));
        let parameters = AttentionParameters {
            query: projection("q_lin"),
            key: projection("k_lin"),
            value: projection("v_lin"),
            output: projection("out_lin"),
        };
        Self { parameters, heads, layer: layer as u32 }
    }

    /// `[tokens, dim]` to `[tokens, dim]`; a row sees the rows of its own sequence only.
    pub(super) fn forward(&self, hidden: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan) -> Result<Tensor> {
        self_attention(hidden, &self.parameters, self.heads, packing, plan, self.layer)
    }
}
