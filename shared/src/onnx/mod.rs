//! ONNX graphs: understanding a teacher's (which tensors there are, exposing an inner one as an output), and writing a student's.
//!
//! - [`messages`]: the few fields of the protobuf messages that are read; everything else in a file is skipped.
//! - [`model`]: a file in memory, its parameters, and the same file with more outputs.
//! - [`outline`]: a file's graph without the values of its weights.
//! - [`graph`]: who makes a tensor, what it depends on.
//! - [`layer_norm`]: layer normalisations, whether one node, fused with a residual sum, or spelled out.
//! - [`attention`]: self-attention that is spelled out.
//! - [`position_wise`](mod@position_wise): the part of a graph that treats every position by itself.
//! - [`unread`](mod@unread): what nothing reads once nodes have been exchanged.
//! - [`edit`]: the same file with nodes put in, nodes taken out, inputs of nodes exchanged, inputs and outputs added.
//!
//! - [`builder`], [`written`], [`mod@write`]: a graph put together here, its messages, its file.
//!
//! A model that was read is never written anew, since the messages hold a part of it: bytes are appended to the file or exchanged in place, so that
//! whatever else it holds stays as it was. Field numbers are those of the ONNX protobuf definition, which never change.

pub mod attention;
pub mod builder;
pub mod edit;
pub mod graph;
pub mod layer_norm;
pub mod messages;
pub mod model;
pub mod outline;
pub mod position_wise;
pub mod unread;
pub mod write;
pub mod written;

pub use attention::{Attention, find_attentions};
pub use builder::GraphBuilder;
pub use edit::Edit;
pub use graph::Graph;
pub use layer_norm::{LayerNorm, find_layer_norms};
pub use model::Model;
pub use outline::read_outline;
pub use position_wise::{Region, position_wise};
pub use unread::{Unread, unread};
pub use write::write_model;
