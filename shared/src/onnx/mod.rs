//! ONNX graphs, as far as a teacher's graph must be understood: which tensors there are, and exposing an inner one as an output.
//!
//! - [`messages`]: the few fields of the protobuf messages that are read; everything else in a file is skipped.
//! - [`model`]: a file in memory, its parameters, and the same file with more outputs.
//! - [`graph`]: who makes a tensor, what it depends on.
//! - [`layer_norm`]: layer normalisations, whether one node, fused with a residual sum, or spelled out.
//!
//! A model is never written anew from these messages, since they hold a part of it: an output is added by appending bytes to the file, so that
//! whatever else it holds stays as it was. Field numbers are those of the ONNX protobuf definition, which never change.

pub mod graph;
pub mod layer_norm;
pub mod messages;
pub mod model;

pub use graph::Graph;
pub use layer_norm::{LayerNorm, find_layer_norms};
pub use model::Model;
