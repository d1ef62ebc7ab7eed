//! A request to stop, seen by every thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Holds the number of the signal that asked the run to stop; 0 while none has. A clone is the same request.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// The cell a signal handler writes the signal's number to.
    pub fn cell(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }

    /// The signal, once there was one.
    pub fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
