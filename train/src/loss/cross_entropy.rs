//! Cross-entropy of the original id, at temperature 1.

/// -ln softmax(label) in nats, given the label's logit relative to the row's largest and the sum of exp of all logits relative to it.
pub fn cross_entropy(relative_label_logit: f64, sum: f64) -> f64 {
    sum.ln() - relative_label_logit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_minus_the_log_probability() {
        let logits = [0.5f64, -1.0, 2.0];
        let sum = logits.iter().map(|logit| (logit - 2.0).exp()).sum();
        let probability = 0.5f64.exp() / logits.iter().map(|logit| logit.exp()).sum::<f64>();
        assert!((cross_entropy(0.5 - 2.0, sum) + probability.ln()).abs() < 1e-15);
        assert_eq!(cross_entropy(0.0, 1.0), 0.0);
    }
}
