//! The teacher: where its files are, which runtime runs it, what its graph gives, and its answers.
//!
//! [`locate`](locate::locate) finds the files of an export, [`runtime::load`] the ONNX Runtime library, [`prepare`](prepare::prepare) reads
//! the graph, tells what it answers and exposes the hidden states that were asked for (and has it compute the asked positions alone, or targets in
//! place of logits, or logits without their bias, or the states in front of the head, or attention as one operation), [`Teacher`] is the session,
//! [`Answer`] a view of one batch's outputs.
//! This is the one place that knows ort.

pub mod bias;
pub mod fuse;
pub mod gather;
pub mod head;
mod hidden;
mod inputs;
pub mod locate;
mod model_config;
pub mod outputs;
mod parameters;
pub mod prepare;
mod recognise;
pub mod reduce;
pub mod runtime;
mod sentence_files;
pub mod session;

pub use locate::{TeacherFiles, locate};
pub use outputs::Answer;
pub use prepare::{HiddenLayers, Prepared, Purpose, prepare, prepare_for};
pub use reduce::Reduction;
pub use runtime::Runtime;
pub use session::{PROVIDERS, Teacher, TeacherBatch};

#[cfg(test)]
mod tests;
