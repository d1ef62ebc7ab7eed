//! The total variation distance: `tvd`. Times T: its gradient falls as 1 / T where that of a divergence falls as 1 / T^2.

use super::outcome::{Outcome, Probability};

/// |t - p| / 2; slope 0 where both are the same.
pub fn total_variation(teacher: Probability, student: Probability) -> Outcome {
    let difference = student.value - teacher.value;
    let sign = if difference == 0.0 { 0.0 } else { difference.signum() };
    Outcome { loss: 0.5 * difference.abs(), slope: 0.5 * student.value * sign }
}
