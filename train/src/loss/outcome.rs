//! A divergence as a sum over outcomes, and its gradient from one number per outcome.
//!
//! The outcomes are the stored ids and, but for one tail, the rest of the vocabulary as one more. With t and p the teacher's and the student's
//! probabilities, f(t, p) what an outcome adds and u = p df/dp, a softmax of x = logit / T with normaliser Z and e(j) = exp(x(j) - c) has
//!
//! ```text
//! d loss / d x(j) = u(j) - p(j) S                  for a stored id,   S = the sum of u over all outcomes
//! d loss / d x(j) = e(j) (u(rest) / E - S / Z)     for another,       E = the sum of e over the others
//! ```
//!
//! so that a row needs a few numbers beside its exponentials. A constant in df/dp cancels, since the student's probabilities sum to 1.

use super::Tail;
use super::ghost_kl::TeacherMass;

/// The probability of an outcome and its natural logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probability {
    /// From 0 to 1.
    pub value: f64,
    /// Finite, also where `value` is 0.
    pub log: f64,
}

impl Probability {
    /// From a logarithm.
    pub fn of_log(log: f64) -> Self {
        Self { value: log.exp(), log }
    }

    /// From a value, whose logarithm is taken of `least` where the value is smaller.
    pub fn of_value(value: f64, least: f64) -> Self {
        Self { value, log: value.max(least).ln() }
    }
}

/// What an outcome adds to a divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// f(t, p).
    pub loss: f64,
    /// p df/dp, up to a constant times p.
    pub slope: f64,
}

/// A row as the divergences see it: sums and stored ids, all at the training temperature and with one shift c.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    /// `[k]`: the teacher's log-probabilities.
    pub log_probabilities: &'a [f32],
    /// `[k]`: x - c of the stored ids.
    pub tempered: &'a [f64],
    /// The teacher's masses.
    pub mass: TeacherMass,
    /// The logarithm of the sum of e over the stored ids.
    pub log_inside: f64,
    /// E: the sum of e over the others.
    pub outside: f64,
    /// How many others there are.
    pub others: usize,
    /// The sum of x - c over the others; only [`Tail::Uniform`] asks for it.
    pub tempered_sum: f64,
}

/// The gradient with respect to logit / T, summed over divergences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slopes {
    /// `[k]`: of the stored ids.
    pub stored: Vec<f64>,
    /// Of another id: this times e(j)...
    pub of_exponential: f64,
    /// ... plus this.
    pub constant: f64,
}

impl RowView<'_> {
    /// The divergence of `outcome` with `tail`; adds `factor` times its gradient to `slopes`.
    pub fn divergence(&self, tail: Tail, factor: f64, outcome: impl Fn(Probability, Probability) -> Outcome, slopes: &mut Slopes) -> f64 {
        let both = tail == Tail::RenormalisedBoth;
        let normaliser = self.log_inside.exp() + self.outside;
        let log_normaliser = if both { self.log_inside } else { normaliser.ln() };
        let log_stored = if both || tail == Tail::RenormalisedTeacher { self.mass.stored.ln() } else { 0.0 };
        let (mut loss, mut sum) = (0.0, 0.0);
        for ((log, tempered), slope) in self.log_probabilities.iter().zip(self.tempered).zip(&mut slopes.stored) {
            let teacher = Probability::of_log(f64::from(*log) - log_stored);
            let found = outcome(teacher, Probability::of_log(tempered - log_normaliser));
            (loss, sum) = (loss + found.loss, sum + found.slope);
            *slope += factor * found.slope;
        }
        if self.others > 0 && !both {
            let mut rest = 0.0;
            if tail == Tail::Uniform {
                // An outcome of its own for each id: the logarithms of the student's probabilities sum to tempered_sum - others ln Z.
                let (others, mass) = (self.others as f64, self.mass.residual);
                if mass > 0.0 {
                    loss += mass * ((mass / others).ln() - self.tempered_sum / others + log_normaliser);
                }
                sum -= mass;
                slopes.constant -= factor * mass / others;
            } else {
                let teacher = if tail == Tail::Ghost { self.mass.residual } else { 0.0 };
                // Single precision knows nothing of a smaller tail of the teacher.
                let teacher = Probability::of_value(teacher, f64::from(f32::EPSILON));
                let found = outcome(teacher, Probability::of_value(self.outside / normaliser, f64::MIN_POSITIVE));
                (loss, sum) = (loss + found.loss, sum + found.slope);
                rest = found.slope / self.outside.max(f64::MIN_POSITIVE);
            }
            slopes.of_exponential += factor * (rest - sum / normaliser);
        }
        for (tempered, slope) in self.tempered.iter().zip(&mut slopes.stored) {
            *slope -= factor * sum * (tempered - log_normaliser).exp();
        }
        loss
    }
}
