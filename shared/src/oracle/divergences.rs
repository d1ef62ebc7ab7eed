//! Divergences of truncated distributions, outcome by outcome.

use super::{LossAndGradient, log_softmax};

/// What is added up over the outcomes, t and p being the teacher's and the student's probability of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// t ln(t / p).
    ForwardKl,
    /// p ln(p / t).
    ReverseKl,
    /// beta t ln(t / m) + (1 - beta) p ln(p / m) with m = (1 - beta) p + beta t, for a beta between 0 and 1.
    JensenShannon(f64),
    /// |t - p| / 2.
    TotalVariation,
}

impl Divergence {
    /// An outcome's term and its derivative with respect to p.
    fn term(self, t: f64, p: f64) -> (f64, f64) {
        let times_log = |a: f64, b: f64| if a > 0.0 { a * (a / b).ln() } else { 0.0 };
        match self {
            Self::ForwardKl => (times_log(t, p), -t / p),
            Self::ReverseKl => (times_log(p, t), (p / t).ln() + 1.0),
            Self::JensenShannon(beta) => {
                let m = (1.0 - beta) * p + beta * t;
                (beta * times_log(t, m) + (1.0 - beta) * times_log(p, m), (1.0 - beta) * (p / m).ln())
            }
            Self::TotalVariation => (0.5 * (t - p).abs(), 0.5 * (p - t).signum()),
        }
    }
}

/// What the probability outside the stored ids K is taken for; a is what the teacher has inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// One more outcome of 1 - a.
    Ghost,
    /// One more outcome of 0.
    Zero,
    /// As zero, with t / a inside.
    RenormalisedTeacher,
    /// Nothing: t / a against a softmax of the student's logits of K.
    RenormalisedBoth,
    /// (1 - a) / (vocabulary - k) for each id.
    Uniform,
}

/// `divergence` of the student's `logits` `[vocabulary]` from the teacher's log-probabilities `[k]` of `ids` `[k]`, both at `temperature`. An `a`
/// above 1, which rounding can give, leaves nothing outside.
pub fn truncated_divergence(
    divergence: Divergence,
    tail: Tail,
    logits: &[f64],
    ids: &[usize],
    teacher_log_probabilities: &[f64],
    temperature: f64,
) -> LossAndGradient {
    let stored: f64 = teacher_log_probabilities.iter().map(|log_t| log_t.exp()).sum();
    let outside: Vec<usize> = (0..logits.len()).filter(|id| !ids.contains(id)).collect();
    let residual = (1.0 - stored).max(0.0);
    let scale = if matches!(tail, Tail::RenormalisedTeacher | Tail::RenormalisedBoth) { stored } else { 1.0 };
    // An outcome is the teacher's probability and the ids it is made of.
    let mut outcomes: Vec<(f64, Vec<usize>)> =
        ids.iter().zip(teacher_log_probabilities).map(|(id, t)| (t.exp() / scale, vec![*id])).collect();
    match tail {
        _ if outside.is_empty() => {}
        Tail::Ghost => outcomes.push((residual, outside.clone())),
        Tail::Zero | Tail::RenormalisedTeacher => outcomes.push((0.0, outside.clone())),
        Tail::RenormalisedBoth => {}
        Tail::Uniform => outcomes.extend(outside.iter().map(|id| (residual / outside.len() as f64, vec![*id]))),
    }
    let mut seen = logits.to_vec();
    if tail == Tail::RenormalisedBoth {
        outside.iter().for_each(|id| seen[*id] = f64::NEG_INFINITY);
    }
    let p: Vec<f64> = log_softmax(&seen, temperature).iter().map(|log_p| log_p.exp()).collect();
    let (mut loss, mut gradient) = (0.0, vec![0.0; logits.len()]);
    for (t, members) in &outcomes {
        let mass: f64 = members.iter().map(|id| p[*id]).sum();
        let (term, derivative) = divergence.term(*t, mass);
        loss += term;
        // d mass / d x_j = p_j ([j among the members] - mass), x = z / T.
        for (j, slope) in gradient.iter_mut().enumerate() {
            let member = if members.contains(&j) { 1.0 } else { 0.0 };
            *slope += derivative * p[j] * (member - mass) / temperature;
        }
    }
    LossAndGradient { loss, gradient }
}

/// The mean over `ids` `[k]` of (z - y)^2, z the student's `logits` `[vocabulary]` and y the teacher's logits `[k]` of those ids.
pub fn logit_squared_error(logits: &[f64], ids: &[usize], teacher_logits: &[f64]) -> LossAndGradient {
    let (mut loss, mut gradient) = (0.0, vec![0.0; logits.len()]);
    for (id, teacher) in ids.iter().zip(teacher_logits) {
        loss += (logits[*id] - teacher).powi(2) / ids.len() as f64;
        gradient[*id] = 2.0 * (logits[*id] - teacher) / ids.len() as f64;
    }
    LossAndGradient { loss, gradient }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_gradient, assert_near, draws};
    use super::super::{divergence, ghost_divergence, stored_targets};
    use super::*;

    const DIVERGENCES: [Divergence; 5] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon(0.5),
        Divergence::JensenShannon(0.1),
        Divergence::TotalVariation,
    ];

    fn possible(divergence: Divergence, tail: Tail) -> bool {
        divergence != Divergence::ReverseKl || !matches!(tail, Tail::Zero | Tail::RenormalisedTeacher)
    }

    fn targets(k: usize, temperature: f64) -> (Vec<usize>, Vec<f64>) {
        let stored = stored_targets(&draws(12, 3.0, 2), k, &[temperature]);
        (stored.top_ids, stored.top_logits.iter().map(|logit| logit - stored.log_z[0]).collect())
    }

    #[test]
    fn gradients_are_slopes() {
        let student = draws(12, 2.0, 3);
        for (k, temperature) in [(1, 1.0), (4, 2.0), (12, 2.0)] {
            let (ids, logs) = targets(k, temperature);
            for divergence in DIVERGENCES {
                for tail in [Tail::Ghost, Tail::Zero, Tail::RenormalisedTeacher, Tail::RenormalisedBoth, Tail::Uniform] {
                    if possible(divergence, tail) {
                        assert_gradient(&student, |at| truncated_divergence(divergence, tail, at, &ids, &logs, temperature));
                    }
                }
            }
            let logits: Vec<f64> = logs.iter().map(|log| 3.0 + log).collect();
            assert_gradient(&student, |at| logit_squared_error(at, &ids, &logits));
        }
    }

    #[test]
    fn the_gradients_that_are_known() {
        // Of the forward divergence, times T: p - t inside and p (a - b) / (1 - b) outside for the ghost, a p - t for zero, p - t / a for the
        // renormalised teacher, 0 outside for both.
        let (student, (ids, logs)) = (draws(12, 2.0, 3), targets(4, 2.0));
        let gradient = |tail| truncated_divergence(Divergence::ForwardKl, tail, &student, &ids, &logs, 2.0).gradient;
        let ghost = ghost_divergence(&student, &ids, &logs, 2.0).gradient;
        let a: f64 = logs.iter().map(|log| log.exp()).sum();
        let p: Vec<f64> = log_softmax(&student, 2.0).iter().map(|log| log.exp()).collect();
        for j in 0..12 {
            let t = ids.iter().position(|id| *id == j).map_or(0.0, |place| logs[place].exp());
            let known = [
                (Tail::Ghost, 2.0 * ghost[j]),
                (Tail::Zero, a * p[j] - t),
                (Tail::RenormalisedTeacher, p[j] - t / a),
                (Tail::Uniform, p[j] - if t > 0.0 { t } else { (1.0 - a) / 8.0 }),
            ];
            for (tail, expected) in known {
                assert_near(2.0 * gradient(tail)[j], expected, 1e-13, "derivative");
            }
            assert!(ids.contains(&j) || gradient(Tail::RenormalisedBoth)[j] == 0.0);
        }
    }

    #[test]
    fn with_every_id_the_forward_divergence_is_the_plain_one() {
        let (student, (ids, logs)) = (draws(12, 2.0, 3), targets(12, 2.0));
        let expected = divergence(&student, &draws(12, 3.0, 2), 2.0).loss;
        for tail in [Tail::Ghost, Tail::Zero, Tail::RenormalisedTeacher, Tail::RenormalisedBoth, Tail::Uniform] {
            assert_near(truncated_divergence(Divergence::ForwardKl, tail, &student, &ids, &logs, 2.0).loss, expected, 1e-13, "loss");
        }
    }
}
