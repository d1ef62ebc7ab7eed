//! Classes that are each for themselves: a sigmoid of every logit, the divergence from the teacher's and the cross-entropy of a gold answer.

/// A loss and its derivative with respect to the student's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// The loss.
    pub loss: f64,
    /// Its derivative.
    pub slope: f64,
}

impl Slope {
    /// `factor` times the loss, of a logit that was multiplied by `inner`.
    pub fn times(self, factor: f64, inner: f64) -> Self {
        Self { loss: factor * self.loss, slope: factor * inner * self.slope }
    }
}

/// ln(1 + e^x), finite for every finite x.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// 1 / (1 + e^-x).
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// KL of the teacher's two outcomes (present or not) from the student's, of logits over the temperature:
/// t ln(t / p) + (1 - t) ln((1 - t) / (1 - p)), where ln p = -softplus(-x) and ln(1 - p) = -softplus(x).
pub fn binary_divergence(teacher: f64, student: f64) -> Slope {
    let t = sigmoid(teacher);
    let present = t * (softplus(-student) - softplus(-teacher));
    let absent = sigmoid(-teacher) * (softplus(student) - softplus(teacher));
    Slope { loss: (present + absent).max(0.0), slope: sigmoid(student) - t }
}

/// -gold ln p - (1 - gold) ln(1 - p), for a gold answer in [0, 1].
pub fn binary_cross_entropy(gold: f64, student: f64) -> Slope {
    Slope { loss: gold * softplus(-student) + (1.0 - gold) * softplus(student), slope: sigmoid(student) - gold }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        // p = 3/4, t = 1/2: 0.5 ln(2/3) + 0.5 ln 2; the slope is p - t.
        let found = binary_divergence(0.0, 3f64.ln());
        assert!((found.loss - 0.5 * (2.0f64 / 3.0).ln() - 0.5 * 2f64.ln()).abs() < 1e-12 && (found.slope - 0.25).abs() < 1e-12);
        let found = binary_cross_entropy(1.0, 3f64.ln());
        assert!((found.loss - (4.0f64 / 3.0).ln()).abs() < 1e-12 && (found.slope + 0.25).abs() < 1e-12);
        assert_eq!(binary_divergence(2.0, 2.0), Slope { loss: 0.0, slope: 0.0 });
    }

    #[test]
    fn far_logits_stay_finite() {
        for (a, b) in [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4)] {
            let (divergence, entropy) = (binary_divergence(a, b), binary_cross_entropy(f64::from(u8::from(a > 0.0)), b));
            assert!(divergence.loss.is_finite() && divergence.slope.is_finite() && entropy.loss.is_finite(), "{a} {b}");
        }
    }
}
