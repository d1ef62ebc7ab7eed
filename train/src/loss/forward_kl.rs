//! KL(teacher || student): `ce`. Times T^2, so that its gradient keeps its size as T grows (Hinton et al. 2015).
//!
//! [`super::ghost_kl`] is the same with the ghost as its tail, for the kernel of the default objective.

use super::outcome::{Outcome, Probability};

/// t ln(t / p); nothing where t is 0.
pub fn forward_kl(teacher: Probability, student: Probability) -> Outcome {
    if teacher.value == 0.0 {
        return Outcome::default();
    }
    Outcome { loss: teacher.value * (teacher.log - student.log), slope: -teacher.value }
}
