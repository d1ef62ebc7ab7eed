//! From the states of a sequence's tokens to the vector of the sequence. Pure; sums are in float64, so a vector is the nearest float32 to the exact one.

use logitcache::target::Pooling;

/// The smallest length that a vector is divided by, as `torch.nn.functional.normalize` has it.
const SMALLEST_LENGTH: f64 = 1e-12;

/// The vector of a sequence. `states`: `[tokens, width]`, padding left out; returns `[width]`. A state that is no number comes through as one.
///
/// # Panics
/// If `states` is empty or no whole number of rows of `width`.
pub fn pool(states: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    assert!(!states.is_empty() && states.len().is_multiple_of(width), "{} values in rows of {width}", states.len());
    let tokens = states.len() / width;
    let column = |dimension: usize| states.iter().skip(dimension).step_by(width);
    match pooling {
        Pooling::Cls => states[..width].to_vec(),
        Pooling::Mean => {
            let mut sums = vec![0.0; width];
            for row in states.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            sums.into_iter().map(|sum| (sum / tokens as f64) as f32).collect()
        }
        // Not f32::max, which would hide a NaN.
        Pooling::Max => (0..width)
            .map(|dimension| column(dimension).copied().fold(f32::NEG_INFINITY, |a, b| if a.is_nan() || b <= a { a } else { b }))
            .collect(),
    }
}

/// Scales a vector to length 1 (Euclidean).
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(SMALLEST_LENGTH);
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three tokens of width 2.
    const STATES: [f32; 6] = [1.0, -2.0, 5.0, 4.0, 3.0, -8.0];

    #[test]
    fn each_kind_pools_as_its_name_says() {
        assert_eq!(pool(&STATES, 2, Pooling::Mean), [3.0, -2.0]);
        assert_eq!(pool(&STATES, 2, Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pool(&STATES, 2, Pooling::Max), [5.0, 4.0]);
        let mut vector = vec![3.0, -4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
        let mut zero = vec![0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3], "nothing is divided by nothing");
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        for place in 0..3 {
            let mut states = STATES;
            states[2 * place] = f32::NAN;
            for pooling in [Pooling::Mean, Pooling::Max] {
                assert!(pool(&states, 2, pooling)[0].is_nan(), "{pooling:?} with NaN in token {place}");
            }
        }
    }

    /// The definition, in float64 and column by column.
    fn reference(states: &[f32], width: usize, pooling: Pooling) -> Vec<f64> {
        let column = |dimension: usize| -> Vec<f64> { states.chunks(width).map(|row| f64::from(row[dimension])).collect() };
        let of_column = |values: Vec<f64>| match pooling {
            Pooling::Mean => values.iter().sum::<f64>() / values.len() as f64,
            Pooling::Cls => values[0],
            Pooling::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        let vector: Vec<f64> = (0..width).map(|dimension| of_column(column(dimension))).collect();
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        vector.into_iter().map(|value| value / length.max(1e-12)).collect()
    }

    proptest! {
        #[test]
        fn vectors_agree_with_the_definition(rows in 1_usize..40, width in 1_usize..20, seed in prop::collection::vec(-9.0_f32..9.0, 800)) {
            for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Max] {
                let states = &seed[..rows * width];
                let mut vector = pool(states, width, pooling);
                normalize(&mut vector);
                for (found, expected) in vector.iter().zip(reference(states, width, pooling)) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-6, "{found}, not {expected}");
                }
            }
        }
    }
}
