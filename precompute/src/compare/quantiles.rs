//! Quantiles of any number of values in a fixed amount of memory.

/// Bits of an f32 that are left out: of the 23 of its fraction 7 stay, so values of a class differ by less than 1 %.
const DROPPED_BITS: u32 = 16;

/// Counts of non-negative values by class.
#[derive(Clone, Debug)]
pub(super) struct Quantiles {
    counts: Vec<u64>,
    total: u64,
    sum: f64,
    largest: f64,
}

impl Default for Quantiles {
    fn default() -> Self {
        Self { counts: vec![0; 1 << (31 - DROPPED_BITS)], total: 0, sum: 0.0, largest: 0.0 }
    }
}

impl Quantiles {
    /// Takes one value in; a negative one counts as 0.
    pub(super) fn add(&mut self, value: f64) {
        let value = value.max(0.0);
        // The bits of positive floats are in the order of their values.
        self.counts[((value as f32).to_bits() >> DROPPED_BITS) as usize] += 1;
        self.total += 1;
        self.sum += value;
        self.largest = self.largest.max(value);
    }

    /// Of all values; 0 of none.
    pub(super) fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum / self.total as f64 }
    }

    /// The largest value; 0 of none.
    pub(super) fn largest(&self) -> f64 {
        self.largest
    }

    /// The smallest value that at least `share` of all values do not exceed, to 1 %; 0 of none.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.total as f64).ceil() as u64;
        let mut below = 0;
        for (class, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= wanted && *count > 0 {
                let first = (class as u32) << DROPPED_BITS;
                // 0 has a class with the smallest numbers that are no zero, which are none to anybody.
                let middle = if class == 0 { 0 } else { first + (1 << (DROPPED_BITS - 1)) };
                return f64::from(f32::from_bits(middle)).min(self.largest);
            }
        }
        self.largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values_to_a_percent() {
        let mut values: Vec<f64> = (0..5000).map(|step| (f64::from(step) * 0.618_034).fract().powi(9) * 3.0).collect();
        let mut quantiles = Quantiles::default();
        values.iter().for_each(|value| quantiles.add(*value));
        values.sort_by(f64::total_cmp);
        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let expected = values[((share * 5000.0) as usize).max(1) - 1];
            let found = quantiles.quantile(share);
            assert!((found - expected).abs() <= 0.01 * expected, "{share}: {found}, not {expected}");
        }
        assert!((quantiles.mean() - values.iter().sum::<f64>() / 5000.0).abs() < 1e-12);
        assert_eq!(quantiles.largest(), values[4999]);
    }

    #[test]
    fn nothing_and_nothing_but_zero_give_zero() {
        let mut quantiles = Quantiles::default();
        assert_eq!((quantiles.mean(), quantiles.quantile(0.5), quantiles.largest()), (0.0, 0.0, 0.0));
        quantiles.add(0.0);
        quantiles.add(-1e-9);
        assert_eq!((quantiles.mean(), quantiles.quantile(0.99), quantiles.largest()), (0.0, 0.0, 0.0));
    }
}
