//! KL(student || teacher): `reverse-kl`. Times T^2, as the forward divergence, whose second-order term it shares.
//!
//! Where the teacher's tail rounds to 0, its logarithm is taken of the least that single precision can tell from 0 beside 1.

use super::outcome::{Outcome, Probability};

/// p ln(p / t).
pub fn reverse_kl(teacher: Probability, student: Probability) -> Outcome {
    let loss = student.value * (student.log - teacher.log);
    Outcome { loss, slope: loss }
}
