//! KL(teacher || student) where the teacher's tail is one bucket, the ghost.
//!
//! K are the stored ids, t the teacher's and p the student's probabilities at the training temperature, a and b their sums over K:
//!
//! ```text
//! loss = sum over K of t ln(t / p) + m ln(m / (1 - b)),   m = 1 - a
//! ```
//!
//! With e(j) = exp(logit(j) / T - c) for any shift c, E the sum of e outside K and Z = E + the sum of e in K: p(j) = e(j) / Z and
//! 1 - b = E / Z, which is a sum of what is outside and not a difference of numbers near 1. The gradient with respect to logit(j) / T is
//!
//! ```text
//! j in K:       (a + m) e(j) / Z - t(j)
//! j outside K:  (a + m) e(j) / Z - m e(j) / E
//! ```
//!
//! Rounded targets may sum to more than 1; then m is 0 and the factor (a + m) keeps the gradient that of the loss as it is computed.

/// The teacher's side of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeacherMass {
    /// a: the sum of the stored probabilities.
    pub stored: f64,
    /// m: what is outside, at least 0; exactly 0 where k is the vocabulary or a rounds to 1 in single precision.
    pub residual: f64,
}

impl TeacherMass {
    /// The masses of `log_probabilities` (natural logarithms); `whole` says that they cover the vocabulary.
    pub fn new(log_probabilities: &[f32], whole: bool) -> Self {
        let stored: f64 = log_probabilities.iter().map(|log| f64::from(*log).exp()).sum();
        let residual = residual_mass(stored.ln());
        Self { stored, residual: if whole || residual <= f64::from(f32::EPSILON) { 0.0 } else { residual } }
    }

    /// a + m: 1 but for rounding.
    pub fn total(&self) -> f64 {
        self.stored + self.residual
    }
}

/// 1 - a from ln a, never below 0, without the cancellation of 1 - exp(ln a).
fn residual_mass(log_stored: f64) -> f64 {
    const SMALLEST: f64 = 1e-12;
    -log_stored.min(-SMALLEST).exp_m1()
}

/// The loss in nats. `inside` gives (logit / T - c) of the stored ids in the order of `log_probabilities`; `outside` is E and `normaliser` Z,
/// both with the same shift c.
pub fn ghost_kl(log_probabilities: &[f32], inside: impl Iterator<Item = f64>, mass: TeacherMass, outside: f64, normaliser: f64) -> f64 {
    let log_normaliser = normaliser.ln();
    let stored: f64 = log_probabilities
        .iter()
        .zip(inside)
        .map(|(log_teacher, logit)| {
            let log_teacher = f64::from(*log_teacher);
            log_teacher.exp() * (log_teacher - (logit - log_normaliser))
        })
        .sum();
    if mass.residual == 0.0 {
        return stored;
    }
    stored + mass.residual * (mass.residual.ln() - (outside.max(f64::MIN_POSITIVE).ln() - log_normaliser))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Student logits (over T) and teacher logits of a vocabulary of five.
    const STUDENT: [f64; 5] = [0.3, -1.2, 2.0, 0.1, -0.5];
    const TEACHER: [f64; 5] = [1.5, -0.7, 1.1, 0.2, -2.0];

    fn log_softmax(logits: &[f64]) -> Vec<f64> {
        let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        logits.iter().map(|logit| logit - log_sum).collect()
    }

    fn loss(student: &[f64], ids: &[usize], log_probabilities: &[f32]) -> f64 {
        let mass = TeacherMass::new(log_probabilities, ids.len() == student.len());
        let normaliser = student.iter().map(|logit| logit.exp()).sum();
        let outside = (0..student.len()).filter(|id| !ids.contains(id)).map(|id| student[id].exp()).sum();
        ghost_kl(log_probabilities, ids.iter().map(|id| student[*id]), mass, outside, normaliser)
    }

    #[test]
    fn it_is_the_kl_of_the_merged_distributions() {
        let (teacher, student) = (log_softmax(&TEACHER), log_softmax(&STUDENT));
        let ids = [0, 2];
        let logs: Vec<f32> = ids.iter().map(|id| teacher[*id] as f32).collect();
        let merged = |logs: &[f64]| [logs[0].exp(), logs[2].exp(), logs[1].exp() + logs[3].exp() + logs[4].exp()];
        let expected: f64 = merged(&teacher).iter().zip(merged(&student)).map(|(t, p)| t * (t / p).ln()).sum();
        assert!((loss(&STUDENT, &ids, &logs) - expected).abs() < 1e-7);
    }

    #[test]
    fn with_the_whole_vocabulary_it_is_the_plain_kl() {
        let (teacher, student) = (log_softmax(&TEACHER), log_softmax(&STUDENT));
        let logs: Vec<f32> = teacher.iter().map(|log| *log as f32).collect();
        let expected: f64 = teacher.iter().zip(&student).map(|(t, p)| t.exp() * (t - p)).sum();
        assert!((loss(&STUDENT, &[0, 1, 2, 3, 4], &logs) - expected).abs() < 1e-6);
        // Against itself it vanishes.
        let own: Vec<f32> = student.iter().map(|log| *log as f32).collect();
        assert!(loss(&STUDENT, &[0, 1, 2, 3, 4], &own).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_of_the_heading_is_the_slope() {
        let ids = [0, 2];
        let logs: Vec<f32> = ids.iter().map(|id| log_softmax(&TEACHER)[*id] as f32).collect();
        let mass = TeacherMass::new(&logs, false);
        let normaliser: f64 = STUDENT.iter().map(|logit| logit.exp()).sum();
        let outside: f64 = [1, 3, 4].iter().map(|id| STUDENT[*id as usize].exp()).sum();
        for j in 0..5 {
            let at = |step: f64| {
                let mut moved = STUDENT;
                moved[j] += step;
                loss(&moved, &ids, &logs)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            let e = STUDENT[j].exp();
            let inside = ids.iter().position(|id| *id == j).map(|i| f64::from(logs[i]).exp());
            let formula = mass.total() * e / normaliser - inside.unwrap_or(mass.residual * e / outside);
            assert!((slope - formula).abs() < 1e-9, "logit {j}: {slope} against {formula}");
        }
    }

    #[test]
    fn a_mass_that_rounds_to_one_leaves_no_ghost() {
        assert_eq!(TeacherMass::new(&[0.0], false).residual, 0.0);
        assert_eq!(TeacherMass::new(&[1e-4], false).residual, 0.0); // rounding gave a little more than 1
        assert_eq!(TeacherMass::new(&[-0.5], true).residual, 0.0);
        let half = TeacherMass::new(&[0.5f32.ln()], false);
        assert!((half.residual - 0.5).abs() < 1e-7 && (half.total() - 1.0).abs() < 1e-12);
        assert!((residual_mass(-1e-9) - 1e-9).abs() < 1e-17);
    }
}
