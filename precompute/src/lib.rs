//! The teacher's side: from a corpus to Parquet shards.
//!
//! The order the data passes through:
//!
//! - [`cli`] -> [`config`]: what was typed, and what it means.
//! - [`corpus`] -> [`tokenize`] -> [`window`] -> [`masking`] or [`asked`] -> [`batch`]: from files to padded batches, masked or not.
//! - [`memory`] -> [`budget`]: how many tokens a batch may take.
//! - [`teacher`] -> [`topk`], [`pooling`]: the ONNX session and what is kept of its answers.
//! - [`pipeline`]: the one place that knows the order; [`resume`]: where a run goes on; [`progress`]: what it says meanwhile.
//! - [`task`]: what the teacher answers, which every stage may read.
//! - [`estimate`]: what a run would cost (`--dry-run`). [`speed`]: how fast models are (`precompute time`).
//! - [`compare`]: how far two caches are apart (`precompute compare`).
//!
//! A stage never calls a sibling: they meet in [`pipeline`] and [`estimate`]. Nothing here knows the student.

pub mod asked;
pub mod batch;
pub mod budget;
pub mod cli;
pub mod compare;
pub mod config;
pub mod corpus;
pub mod estimate;
pub mod masking;
pub mod memory;
pub mod pipeline;
pub mod pooling;
pub mod progress;
pub mod resume;
pub mod speed;
pub mod task;
pub mod teacher;
pub mod tokenize;
pub mod topk;
pub mod window;
