//! Correlation of two series of numbers. Pure.

/// Pearson's coefficient of the pairs `(a, b)`; none where there are fewer than two or one side never changes.
pub fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let count = pairs.len() as f64;
    let (mean_a, mean_b) = (pairs.iter().map(|pair| pair.0).sum::<f64>() / count, pairs.iter().map(|pair| pair.1).sum::<f64>() / count);
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        let (a, b) = (a - mean_a, b - mean_b);
        both += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    let coefficient = both / (of_a * of_b).sqrt();
    (pairs.len() > 1 && of_a > 0.0 && of_b > 0.0 && coefficient.is_finite()).then(|| coefficient.clamp(-1.0, 1.0))
}

/// Spearman's coefficient: Pearson's of the ranks, equal numbers sharing the mean of theirs; none where [`pearson`] gives none.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    let ranks = |of: fn(&(f64, f64)) -> f64| ranks(&pairs.iter().map(of).collect::<Vec<f64>>());
    let (a, b) = (ranks(|pair| pair.0), ranks(|pair| pair.1));
    pearson(&a.into_iter().zip(b).collect::<Vec<_>>())
}

/// From 1; of equal numbers the mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equals in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = first as f64 + (equals.len() + 1) as f64 / 2.0;
        equals.iter().for_each(|place| ranks[*place] = rank);
        first += equals.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::golden::golden;

    #[derive(serde::Deserialize)]
    struct Numbers {
        gold: Vec<f64>,
        predicted: Vec<f64>,
        pearson: f64,
        spearman: f64,
    }

    #[test]
    fn coefficients_are_those_of_scipy() {
        for case in golden::<Numbers>("numbers") {
            let pairs: Vec<(f64, f64)> = case.gold.iter().copied().zip(case.predicted.iter().copied()).collect();
            for (found, expected) in [(pearson(&pairs), case.pearson), (spearman(&pairs), case.spearman)] {
                assert!((found.unwrap() - expected).abs() < 1e-11, "{found:?} against {expected}");
            }
        }
    }

    #[test]
    fn what_never_changes_has_no_correlation() {
        assert_eq!([pearson(&[]), pearson(&[(1.0, 2.0)]), spearman(&[(1.0, 2.0), (1.0, 3.0)])], [None; 3]);
        assert_eq!(spearman(&[(1.0, -2.0), (7.0, -30.0), (3.0, -4.0)]), Some(-1.0));
    }
}
