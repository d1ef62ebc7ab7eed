//! The mean squared difference of logits over the stored ids: `logit-mse`. Of raw logits, so that no temperature enters.
//!
//! Not centred: the student learns the teacher's logits as they are, their common level included, which a softmax does not see. A student
//! that starts from the teacher's own head starts at that level.

/// The teacher's logits as it gave them, from its log-probabilities at `temperature`, in descending order, and its largest logit.
pub fn teacher_logits(log_probabilities: &[f32], max_logit: f32, temperature: f64) -> impl Iterator<Item = f64> + '_ {
    let largest = log_probabilities.first().copied().map_or(0.0, f64::from);
    log_probabilities.iter().map(move |log| f64::from(max_logit) + temperature * (f64::from(*log) - largest))
}

/// The loss of pairs (student, teacher); adds `factor` times the gradient with respect to the student's logits to `slopes`.
pub fn logit_mse(pairs: impl Iterator<Item = (f64, f64)>, factor: f64, slopes: &mut [f64]) -> f64 {
    let count = slopes.len().max(1) as f64;
    let mut sum = 0.0;
    for ((student, teacher), slope) in pairs.zip(slopes) {
        let difference = student - teacher;
        sum += difference * difference;
        *slope += factor * 2.0 * difference / count;
    }
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_teachers_logits_come_back() {
        // Logits 5, 4 and 1 at T = 2: log-probabilities differ by half of what the logits do.
        let found: Vec<f64> = teacher_logits(&[-0.5, -1.0, -2.5], 5.0, 2.0).collect();
        assert_eq!(found, [5.0, 4.0, 1.0]);
    }

    #[test]
    fn loss_and_slope_by_hand() {
        let mut slopes = [1.0, 0.0];
        assert_eq!(logit_mse([(3.0, 1.0), (0.0, 1.0)].into_iter(), 0.5, &mut slopes), 2.5);
        assert_eq!(slopes, [2.0, -0.5]);
    }
}
