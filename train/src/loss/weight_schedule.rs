//! A part's weight as a function of the step, without a counter.

/// How a weight moves over the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightSchedule {
    /// The same at every step.
    Constant,
    /// In a straight line from the weight at the first step to `end` at the last.
    Linear {
        /// The weight of the last step.
        end: f64,
    },
    /// Warm-up, stable, decay: from 0 in a straight line over the first `warmup` share of the steps, then the weight, then in a straight line
    /// to `end` at the last step over the last `decay` share.
    Wsd {
        /// Share of the steps, rounded up, 0 to 1.
        warmup: f64,
        /// Share of the steps, rounded up; with `warmup` at most 1.
        decay: f64,
        /// The weight of the last step, where `decay` is above 0.
        end: f64,
    },
}

impl WeightSchedule {
    /// The weight at the step that follows `step` completed ones of `steps`; `weight` is the one that was asked for.
    pub fn weight_at(&self, weight: f64, step: u64, steps: u64) -> f64 {
        let between = |from: f64, to: f64, share: f64| from + (to - from) * share.clamp(0.0, 1.0);
        match *self {
            Self::Constant => weight,
            Self::Linear { end } => between(weight, end, step as f64 / steps.saturating_sub(1).max(1) as f64),
            Self::Wsd { warmup, decay, end } => {
                let length = |share: f64| (share * steps as f64).ceil() as u64;
                let (rise, fall) = (length(warmup), length(decay));
                let start = steps.saturating_sub(fall);
                if step < rise {
                    weight * step as f64 / rise as f64
                } else if step >= start && fall > 0 {
                    between(weight, end, (step - start + 1) as f64 / fall as f64)
                } else {
                    weight
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(schedule: WeightSchedule, steps: u64) -> Vec<f64> {
        (0..steps).map(|step| schedule.weight_at(4.0, step, steps)).collect()
    }

    #[test]
    fn weights_by_hand() {
        assert_eq!(weights(WeightSchedule::Constant, 3), [4.0; 3]);
        assert_eq!(weights(WeightSchedule::Linear { end: 0.0 }, 5), [4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(weights(WeightSchedule::Linear { end: 8.0 }, 1), [4.0]);
        let wsd = WeightSchedule::Wsd { warmup: 0.4, decay: 0.2, end: 2.0 };
        assert_eq!(weights(wsd, 10), [0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 3.0, 2.0]);
        assert_eq!(weights(WeightSchedule::Wsd { warmup: 0.0, decay: 0.0, end: 0.0 }, 3), [4.0; 3]);
    }
}
