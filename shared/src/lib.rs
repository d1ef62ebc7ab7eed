//! The contract between `precompute`, which writes a teacher's answers down, and `train`, which reads them.
//!
//! - [`target`]: what a cache promises: temperatures, k, positions, hidden layers.
//! - [`cache`]: the directory of Parquet shards, its manifest, its writer and its reader.
//! - [`onnx`]: reading a model graph and exposing an inner tensor as an output.
//! - [`seed`]: random streams derived from a seed and a position.
//! - [`fingerprint`], [`atomic_file`], [`atomic_directory`], [`directory_lock`]: content hashes, durable writes, one writer per directory.
//! - [`oracle`]: slow float64 references of the targets and losses, for tests.
//! - [`error`]: errors that say where, what was expected, what was found and what to do.
//!
//! This crate depends on neither program and knows no model.

pub mod atomic_directory;
pub mod atomic_file;
pub mod cache;
pub mod directory_lock;
pub mod error;
pub mod fingerprint;
pub mod onnx;
pub mod oracle;
pub mod seed;
pub mod target;
