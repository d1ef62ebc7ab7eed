//! Fused operations on packed rows, forward and backward.
//!
//! candle's autograd carries the activations; every operation here is a custom operation on them. Weights stay outside candle's graph: a
//! [`Parameter`] owns its value and a gradient buffer, and the backward pass of the operation that uses it adds to that buffer. So gradients
//! accumulate over micro-batches by themselves, and a weight that is used twice (the tied word embeddings) simply receives two additions.
//!
//! | file | operation |
//! | --- | --- |
//! | `element` | the two number types, their GEMM and the transcendental functions that vectorise |
//! | `level` | AVX-512, AVX2 or portable code, chosen at run time |
//! | `parameter` | values, gradient buffers |
//! | `packing` | which rows belong to which sequence |
//! | `embeddings` | sums of word, position and token-type rows |
//! | `activation`, `activate` | which function follows a linear map; it and its slope |
//! | `linear` | x W^T + b, alone or followed by an activation, or twice as a feed-forward block |
//! | `attention`, `self_attention` | packed variable-length attention; the block with its four projections |
//! | `encoder_block` | an encoder's block whole: attention, feed-forward, norms, dropout, for all rows or those asked |
//! | `projection`, `gated` | linear maps with or without a bias, either way round; a gated or plain feed-forward block of them |
//! | `causal`, `causal_attention` | causal attention with grouped heads; a decoder's block of it with its projections |
//! | `rotary` | rotary position embeddings |
//! | `layer_norm`, `rms_norm` | LayerNorm, with the residual added on the way; RMSNorm |
//! | `dropout` | masks that depend on (seed, step, sequence, pass, site) alone |
//! | `gather_rows` | the rows that are asked |
//! | `head_loss`, `head_row`, `head_objectives` | tied decoder and the losses over the vocabulary, in chunks: the default pair, any others |
//! | `head_tiles`, `head_tile` | a chunk's logits and slopes, in tiles that stay in a core's cache |
//! | `cosine` | 1 - cos against the teacher's hidden states |
//! | `hidden_mse` | mean squared difference from the teacher's hidden states |
//! | `pooling` | one vector for each sequence: mean, first or largest; length 1 |
//! | `output_loss` | losses of classes that are each for themselves, and of real numbers |
//! | `matrix`, `storage`, `precomputed` | products of strided matrices; buffers; scalars that bring their gradient along |
//! | `precision`, `gemm` | what the linear maps' products read, fp32 or bf16; the product of rounded operands |
//!
//! Rules that hold for all of them:
//! - Activations are contiguous `[rows, width]` tensors on the CPU, `f32` for training or `f64` for proofs; anything else is a
//!   `candle_core::Error` that names the operation.
//! - Every result is a function of its inputs and the number of threads, never of their timing: reductions have a fixed partition.
//! - An operation whose input is not tracked (see `Tensor::track_op`) stores nothing for a backward pass.
//! - `backward()` may run once per forward pass; buffers are handed over, not copied.

#[macro_use]
pub mod level;

pub mod activate;
pub mod activation;
pub mod attention;
mod causal;
pub mod causal_attention;
pub mod cosine;
pub mod dropout;
pub mod element;
pub mod embeddings;
pub mod encoder_block;
pub mod gated;
pub mod gather_rows;
mod gemm;
mod head_ids;
pub mod head_loss;
mod head_objectives;
mod head_row;
mod head_tile;
mod head_tiles;
pub mod hidden_mse;
pub mod layer_norm;
pub mod linear;
pub mod matrix;
pub mod output_loss;
pub mod packing;
pub mod parameter;
pub mod pooling;
pub mod precision;
mod precomputed;
pub mod projection;
#[cfg(test)]
pub(crate) mod proof;
pub mod rms_norm;
pub mod rotary;
pub mod self_attention;
mod storage;

pub use activate::activate;
pub use activation::Activation;
pub use causal_attention::{CausalParameters, causal_attention};
pub use cosine::cosine_loss;
pub use dropout::{DropoutPlan, DropoutSite, dropout};
pub use element::Element;
pub use embeddings::{Lookup, embeddings};
pub use encoder_block::{BlockParameters, BlockSettings, encoder_block};
pub use gated::{GatedParameters, gated_feed_forward};
pub use gather_rows::gather_rows;
pub use head_loss::{HeadTargets, head_loss, head_loss_without_bias};
pub use hidden_mse::hidden_mse_loss;
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::{feed_forward, linear, linear_activated};
pub use output_loss::{OutputTargets, output_loss};
pub use packing::Packing;
pub use parameter::{Affine, Parameter, ParameterRef};
pub use pooling::{pool, unit_length};
pub use precision::Precision;
pub use projection::{Projection, project};
pub use rms_norm::rms_norm;
pub use rotary::Rotary;
pub use self_attention::{AttentionParameters, self_attention};
