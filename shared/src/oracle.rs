//! Slow float64 references of the targets and the losses, for tests: written to be compared with, in the order of the formulae.
//!
//! z is a row of logits over the vocabulary, T a temperature, z_max the largest logit:
//!
//! - log Z_T = log sum_i exp((z_i - z_max) / T), [`log_z`];
//! - log p_i = (z_i - z_max) / T - log Z_T, [`log_softmax`].
//!
//! Gradients are with respect to the logits as the student gives them, before the division by T; no loss here is multiplied by T^2.

mod divergences;
pub mod hidden;

pub use divergences::{Divergence, Tail, logit_squared_error, truncated_divergence};

/// log Z_T of `logits` `[vocabulary]`: the log of the sum over all of them of exp((z - z_max) / T). At least 0, at most the log of their
/// number.
pub fn log_z(logits: &[f64], temperature: f64) -> f64 {
    let largest = maximum(logits);
    logits.iter().map(|logit| ((logit - largest) / temperature).exp()).sum::<f64>().ln()
}

/// Log-probabilities `[vocabulary]` of `logits` `[vocabulary]` at `temperature`.
pub fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let (largest, log_z) = (maximum(logits), log_z(logits, temperature));
    logits.iter().map(|logit| (logit - largest) / temperature - log_z).collect()
}

/// The ids of the `k` largest logits, descending; of equal ones the smaller id comes first. All of them where there are fewer.
pub fn top_k(logits: &[f64], k: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    // The sort is stable: equal logits stay in the order of their ids. IEEE comparison, since -0 and 0 are equal logits.
    ids.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap_or(std::cmp::Ordering::Equal));
    ids.truncate(k);
    ids
}

/// What a record holds of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTargets {
    /// `[k]`, as [`top_k`] gives them.
    pub top_ids: Vec<usize>,
    /// `[k]`: (z_i - z_max) / T at the first temperature.
    pub top_logits: Vec<f64>,
    /// z_max.
    pub max_logit: f64,
    /// `[temperature]`: log Z_T.
    pub log_z: Vec<f64>,
}

/// The targets of `logits` `[vocabulary]`, unrounded. `temperatures` is not empty.
pub fn stored_targets(logits: &[f64], k: usize, temperatures: &[f64]) -> StoredTargets {
    let (top_ids, max_logit) = (top_k(logits, k), maximum(logits));
    StoredTargets {
        top_logits: top_ids.iter().map(|id| (logits[*id] - max_logit) / temperatures[0]).collect(),
        top_ids,
        max_logit,
        log_z: temperatures.iter().map(|temperature| log_z(logits, *temperature)).collect(),
    }
}

/// A loss and its gradient with respect to the first argument that has one.
#[derive(Clone, Debug, PartialEq)]
pub struct LossAndGradient {
    /// In nats, or without a unit for the cosine.
    pub loss: f64,
    /// One derivative per element of that argument.
    pub gradient: Vec<f64>,
}

/// The Kullback-Leibler divergence of the student from the teacher with one ghost bucket for everything outside the stored ids K:
///
/// L = sum_K t ln(t / p) + (1 - a) ln((1 - a) / (1 - b)), a = sum_K t, b = sum_K p,
///
/// where t are the teacher's probabilities at T, `teacher_log_probabilities` `[k]` their logs (top_logits - log Z_T), `ids` `[k]` their
/// distinct ids, and p the student's probabilities at T over all of `student_logits` `[vocabulary]`.
///
/// For x = z / T: d(-sum_K t ln p) / dx_j = a p_j - t_j, with t_j = 0 outside K; and d(-ln(1 - b)) / dx_j is p_j for j in K and
/// -p_j b / (1 - b) outside. With the weight 1 - a they add up to p_j - t_j in K and p_j (a - b) / (1 - b) outside; dx / dz is 1 / T.
///
/// Where K is the whole vocabulary there is no bucket and the loss is the plain divergence. `a` above 1, which rounded targets can give,
/// counts as 1.
pub fn ghost_divergence(student_logits: &[f64], ids: &[usize], teacher_log_probabilities: &[f64], temperature: f64) -> LossAndGradient {
    let log_p = log_softmax(student_logits, temperature);
    let mut teacher: Vec<Option<f64>> = vec![None; student_logits.len()];
    ids.iter().zip(teacher_log_probabilities).for_each(|(id, log_t)| teacher[*id] = Some(*log_t));

    let mut loss: f64 = ids.iter().zip(teacher_log_probabilities).map(|(id, log_t)| log_t.exp() * (log_t - log_p[*id])).sum();
    let stored: f64 = teacher_log_probabilities.iter().map(|log_t| log_t.exp()).sum::<f64>().min(1.0);
    let tail = 1.0 - stored;
    // Summed outside K, and not 1 - b: no cancellation where the student is sure.
    let student_tail: f64 = log_p.iter().zip(&teacher).filter(|(_, t)| t.is_none()).map(|(log_p, _)| log_p.exp()).sum();
    if student_tail > 0.0 && tail > 0.0 {
        loss += tail * (tail / student_tail).ln();
    }
    let outside = if student_tail > 0.0 { (student_tail - tail) / student_tail } else { 0.0 };
    let derivative = |(log_p, log_t): (&f64, &Option<f64>)| match log_t {
        Some(log_t) => (log_p.exp() - log_t.exp()) / temperature,
        None => log_p.exp() * outside / temperature,
    };
    LossAndGradient { loss, gradient: log_p.iter().zip(&teacher).map(derivative).collect() }
}

/// The Kullback-Leibler divergence of the student from the teacher over the whole vocabulary, both from logits `[vocabulary]` at `temperature`:
/// sum_i t_i ln(t_i / p_i), gradient (p - t) / T. What [`ghost_divergence`] becomes with every id stored.
pub fn divergence(student_logits: &[f64], teacher_logits: &[f64], temperature: f64) -> LossAndGradient {
    let (log_p, log_t) = (log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature));
    let pairs = || log_p.iter().zip(&log_t);
    LossAndGradient {
        loss: pairs().map(|(log_p, log_t)| log_t.exp() * (log_t - log_p)).sum(),
        gradient: pairs().map(|(log_p, log_t)| (log_p.exp() - log_t.exp()) / temperature).collect(),
    }
}

/// Cross-entropy of `logits` `[vocabulary]` with the class `label`: -log p_label at temperature 1, gradient p - onehot(label).
pub fn cross_entropy(logits: &[f64], label: usize) -> LossAndGradient {
    let log_p = log_softmax(logits, 1.0);
    let mut gradient: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    gradient[label] -= 1.0;
    LossAndGradient { loss: -log_p[label], gradient }
}

/// 1 - cos(s, t) of two hidden states `[hidden_size]`, as PyTorch's cosine-embedding loss has it for a target of 1.
///
/// With c = s.t / (|s| |t|): dc / ds = t / (|s| |t|) - c s / |s|^2. Neither state may be 0.
pub fn cosine_distance(student: &[f64], teacher: &[f64]) -> LossAndGradient {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (student_norm, teacher_norm) = (dot(student, student).sqrt(), dot(teacher, teacher).sqrt());
    let cosine = dot(student, teacher) / (student_norm * teacher_norm);
    let derivative = |(s, t): (&f64, &f64)| cosine * s / (student_norm * student_norm) - t / (student_norm * teacher_norm);
    LossAndGradient { loss: 1.0 - cosine, gradient: student.iter().zip(teacher).map(derivative).collect() }
}

fn maximum(logits: &[f64]) -> f64 {
    logits.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{Purpose, RandomStream};

    pub(super) fn draws(count: usize, scale: f64, key: u64) -> Vec<f64> {
        let mut stream = RandomStream::new(5, Purpose::Initialisation, &[key]);
        (0..count).map(|_| scale * stream.normal()).collect()
    }

    pub(super) fn assert_near(found: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((found - expected).abs() <= tolerance, "{what}: found {found}, expected {expected}, tolerance {tolerance}");
    }

    /// Central differences: their error is about h^2 times the third derivative, plus 1e-16 / h.
    pub(super) fn assert_gradient(at: &[f64], loss: impl Fn(&[f64]) -> LossAndGradient) {
        let (gradient, step) = (loss(at).gradient, 1e-5);
        for i in 0..at.len() {
            let shifted = |by: f64| {
                let mut moved = at.to_vec();
                moved[i] += by;
                loss(&moved).loss
            };
            let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
            assert_near(gradient[i], slope, 1e-9, &format!("derivative {i}"));
        }
    }

    #[test]
    fn log_softmax_by_hand() {
        // p = (1, 2, 1) / 4 at T = 1; at T = 2 the middle weighs sqrt(2).
        let logits = [3.0, 3.0 + 2.0_f64.ln(), 3.0];
        for (found, expected) in log_softmax(&logits, 1.0).iter().zip([0.25_f64, 0.5, 0.25]) {
            assert_near(*found, expected.ln(), 1e-15, "log-probability");
        }
        assert_near(log_z(&logits, 1.0), 2.0_f64.ln(), 1e-15, "log Z at 1: log((1 + 2 + 1) / 2)");
        assert_near(log_z(&logits, 2.0), (1.0 + 2.0_f64.sqrt()).ln(), 1e-15, "log Z at 2: log((2 + sqrt 2) / sqrt 2)");
    }

    #[test]
    fn huge_logits_stay_finite() {
        let log_p = log_softmax(&[1e6, -1e6, 1e6], 1.0);
        assert_near(log_p[0], 0.5_f64.ln(), 1e-15, "log-probability");
        assert_eq!(log_p[1], -2e6 - 2.0_f64.ln());
    }

    #[test]
    fn ties_break_by_the_smaller_id() {
        assert_eq!(top_k(&[1.0, 7.0, -0.0, 7.0, 0.0, 1.0], 5), [1, 3, 0, 5, 2]);
        assert_eq!(top_k(&[2.0, 1.0], 9), [0, 1]);
    }

    #[test]
    fn stored_targets_give_the_probabilities_back_at_each_temperature() {
        let (logits, temperatures) = (draws(50, 4.0, 1), [2.0, 4.0, 1.0]);
        let stored = stored_targets(&logits, 7, &temperatures);
        for (temperature, log_z) in temperatures.iter().zip(&stored.log_z) {
            let log_p = log_softmax(&logits, *temperature);
            for (id, logit) in stored.top_ids.iter().zip(&stored.top_logits) {
                assert_near(logit * temperatures[0] / temperature - log_z, log_p[*id], 1e-14, "log-probability");
                assert_near(logit * temperatures[0] + stored.max_logit, logits[*id], 1e-14, "logit");
            }
        }
    }

    #[test]
    fn the_ghost_bucket_by_hand() {
        // t = (1/2, 1/4, rest 1/4), p = (1/4, 1/4, 1/4, 1/4): L = 1/2 ln 2 + 0 + 1/4 ln(1/2) = 1/4 ln 2.
        let found = ghost_divergence(&[0.0; 4], &[2, 0], &[0.5_f64.ln(), 0.25_f64.ln()], 1.0);
        assert_near(found.loss, 0.25 * 2.0_f64.ln(), 1e-15, "loss");
        // In K: p - t. Outside: p (a - b) / (1 - b) = 1/4 (3/4 - 1/2) / (1/2).
        for (found, expected) in found.gradient.iter().zip([0.0, 0.125, -0.25, 0.125]) {
            assert_near(*found, expected, 1e-15, "derivative");
        }
    }

    #[test]
    fn the_ghost_gradient_is_the_slope() {
        let (teacher, student) = (draws(12, 3.0, 2), draws(12, 2.0, 3));
        for (k, temperature) in [(1, 1.0), (4, 2.0), (11, 0.5), (12, 2.0)] {
            let stored = stored_targets(&teacher, k, &[temperature]);
            let log_t: Vec<f64> = stored.top_logits.iter().map(|logit| logit - stored.log_z[0]).collect();
            assert_gradient(&student, |at| ghost_divergence(at, &stored.top_ids, &log_t, temperature));
            let gradient = ghost_divergence(&student, &stored.top_ids, &log_t, temperature).gradient;
            assert_near(gradient.iter().sum(), 0.0, 1e-14, "a softmax's gradient sums to 0");
        }
    }

    #[test]
    fn the_ghost_divergence_grows_with_k_to_the_whole() {
        let (teacher, student) = (draws(30, 3.0, 4), draws(30, 2.0, 5));
        let whole = divergence(&student, &teacher, 2.0);
        let mut before = 0.0;
        for k in [1, 5, 20, 29, 30] {
            let stored = stored_targets(&teacher, k, &[2.0]);
            let log_t: Vec<f64> = stored.top_logits.iter().map(|logit| logit - stored.log_z[0]).collect();
            let found = ghost_divergence(&student, &stored.top_ids, &log_t, 2.0);
            // Merging outcomes into one never adds divergence (the data-processing inequality).
            assert!(found.loss >= before - 1e-15 && found.loss <= whole.loss + 1e-14, "k = {k}: {} of {}", found.loss, whole.loss);
            before = found.loss;
        }
        assert_near(before, whole.loss, 1e-14, "every id stored");
        assert_gradient(&student, |at| divergence(at, &teacher, 2.0));
    }

    #[test]
    fn stored_mass_that_rounds_past_one_is_one() {
        let found = ghost_divergence(&[1.0, 0.0, -1.0], &[0, 1], &[0.6_f64.ln(), 0.4000001_f64.ln()], 1.0);
        assert!(found.loss.is_finite() && found.gradient.iter().all(|derivative| derivative.is_finite()));
        assert!(found.gradient[2] > 0.0, "the student's tail is pushed down");
    }

    #[test]
    fn cross_entropy_by_hand_and_slope() {
        let found = cross_entropy(&[0.0, 3.0_f64.ln()], 0);
        assert_near(found.loss, 4.0_f64.ln(), 1e-15, "loss");
        assert_near(found.gradient[0], -0.75, 1e-15, "derivative");
        assert_gradient(&draws(9, 2.0, 6), |at| cross_entropy(at, 4));
    }

    #[test]
    fn cosine_by_hand_and_slope() {
        assert_near(cosine_distance(&[3.0, 0.0], &[2.0, 2.0]).loss, 1.0 - 0.5_f64.sqrt(), 1e-15, "45 degrees");
        assert_near(cosine_distance(&[1.0, 2.0], &[2.0, 4.0]).loss, 0.0, 1e-15, "one direction");
        let teacher = draws(8, 1.0, 7);
        assert_gradient(&draws(8, 1.0, 8), |at| cosine_distance(at, &teacher));
    }
}
