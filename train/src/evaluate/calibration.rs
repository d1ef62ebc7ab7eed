//! Whether a model is right as often as it says it is: the expected calibration error over bins of equal width.

use serde::{Deserialize, Serialize};

/// Bins of confidence between 0 and 1.
pub const BINS: usize = 15;

/// Predictions whose confidence lies in (low, high].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// The bin's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Predictions in it.
    pub count: u64,
    /// Their mean confidence; 0 where there are none.
    pub confidence: f64,
    /// The share of them that are right; 0 where there are none.
    pub accuracy: f64,
}

/// The bins and what they come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Mean of |accuracy - confidence| over the bins, each weighted by its count.
    pub ece: f64,
    /// [`BINS`] bins, ascending.
    pub bins: Vec<Bin>,
}

/// Sums of a calibration.
#[derive(Clone, Copy, Debug, Default)]
pub struct CalibrationTally {
    counts: [u64; BINS],
    confidences: [f64; BINS],
    right: [u64; BINS],
}

impl CalibrationTally {
    /// Adds a prediction of probability `confidence`.
    pub fn add(&mut self, confidence: f64, right: bool) {
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        self.counts[bin] += 1;
        self.confidences[bin] += confidence;
        self.right[bin] += u64::from(right);
    }

    /// What was added, as shares.
    pub fn finish(&self) -> Calibration {
        let total = self.counts.iter().sum::<u64>().max(1) as f64;
        let share = |sum: f64, count: u64| if count > 0 { sum / count as f64 } else { 0.0 };
        let bins: Vec<Bin> = (0..BINS)
            .map(|i| Bin {
                low: i as f64 / BINS as f64,
                high: (i + 1) as f64 / BINS as f64,
                count: self.counts[i],
                confidence: share(self.confidences[i], self.counts[i]),
                accuracy: share(self.right[i] as f64, self.counts[i]),
            })
            .collect();
        let ece = bins.iter().map(|bin| bin.count as f64 / total * (bin.accuracy - bin.confidence).abs()).sum();
        Calibration { ece, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_weighted_gap_of_the_bins() {
        let mut tally = CalibrationTally::default();
        for right in [true, true, true, false] {
            tally.add(0.95, right);
        }
        tally.add(0.1, false);
        tally.add(0.0, false);
        let found = tally.finish();
        let gaps = 4.0 * (0.75f64 - 0.95).abs() + (0.0f64 - 0.1).abs();
        assert!((found.ece - gaps / 6.0).abs() < 1e-12, "{}", found.ece);
        assert_eq!((found.bins[14].count, found.bins[1].count, found.bins[0].count), (4, 1, 1));
        assert_eq!(CalibrationTally::default().finish().ece, 0.0);
    }
}
