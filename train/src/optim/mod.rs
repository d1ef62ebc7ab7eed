//! From gradients to a step: measure and limit their norm, look up the rate, move the values.
//!
//! The three meet in the trainer: [`clip::measure`] gives the factor that [`adamw::AdamW::update`] scales every gradient by, at the rate that
//! [`schedule::Schedule::learning_rate`] gives for the step. Nothing here has a clock, a counter of its own or a hidden buffer.

pub mod adamw;
pub mod clip;
pub mod schedule;

pub use adamw::{AdamW, AdamWSettings, Moments};
pub use clip::{Clipped, measure};
pub use schedule::Schedule;

/// Numbers that one thread takes at a time. The partition is fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 16_384;
