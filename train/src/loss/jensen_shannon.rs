//! The generalised Jensen-Shannon divergence: `jsd`. Times T^2, as the divergences it is made of.
//!
//! With the mixture M = (1 - beta) p + beta t: beta KL(t || M) + (1 - beta) KL(p || M) (Agarwal et al. 2024). At beta = 0 and 1, where that
//! is 0, it is KL(t || p) and KL(p || t), to which it tends when divided by beta or by 1 - beta.

use super::forward_kl::forward_kl;
use super::outcome::{Outcome, Probability};
use super::reverse_kl::reverse_kl;

/// beta t ln(t / M) + (1 - beta) p ln(p / M).
pub fn jensen_shannon(beta: f64, teacher: Probability, student: Probability) -> Outcome {
    if beta == 0.0 {
        return forward_kl(teacher, student);
    }
    if beta == 1.0 {
        return reverse_kl(teacher, student);
    }
    let log_mixture = ((1.0 - beta) * student.value + beta * teacher.value).max(f64::MIN_POSITIVE).ln();
    // The derivatives of M cancel: d/dp = (1 - beta) ln(p / M).
    let slope = (1.0 - beta) * student.value * (student.log - log_mixture);
    Outcome { loss: slope + beta * teacher.value * (teacher.log - log_mixture), slope }
}
