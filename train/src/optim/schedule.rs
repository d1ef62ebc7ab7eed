//! The learning rate as a function of the step: a rise in a straight line, then a fall to zero in a straight line.

use logitcache::error::{Error, Result};

/// Linear warm-up, then linear decay, as `transformers.get_linear_schedule_with_warmup` has it. There is no counter inside: whoever knows the
/// step knows the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// `peak` is reached after `warmup_steps` and 0 after `total_steps`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a peak that is negative or not finite, no steps, or a warm-up longer than the whole.
    pub fn new(peak: f64, warmup_steps: u64, total_steps: u64) -> Result<Self> {
        if !peak.is_finite() || peak < 0.0 {
            return Err(Error::invalid("learning_rate", "a finite value of at least 0", peak.to_string()));
        }
        if total_steps == 0 {
            return Err(Error::invalid("total_steps", "at least 1", "0"));
        }
        if warmup_steps > total_steps {
            return Err(Error::invalid("warmup_steps", format!("at most the {total_steps} steps of the run"), warmup_steps.to_string()));
        }
        Ok(Self { peak, warmup_steps, total_steps })
    }

    /// Steps of a warm-up over `share` of the run, rounded up as `transformers` does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a share outside [0, 1].
    pub fn warmup_steps(share: f64, total_steps: u64) -> Result<u64> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid("warmup", "a share from 0 to 1", share.to_string()));
        }
        Ok((share * total_steps as f64).ceil() as u64)
    }

    /// The rate of the update that follows `step` completed updates: 0 is the first one. Zero from `total_steps` on.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let factor = if step < self.warmup_steps {
            step as f64 / self.warmup_steps as f64
        } else if step < self.total_steps {
            (self.total_steps - step) as f64 / (self.total_steps - self.warmup_steps) as f64
        } else {
            0.0
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, steps: u64) -> Vec<f64> {
        (0..steps).map(|step| schedule.learning_rate(step)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (step, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= 1e-12 * b.abs(), "step {step}: {a}, expected {b}");
        }
    }

    // torch 2.15.0, transformers 5.24.0: optimizer = SGD(lr=peak); s = get_linear_schedule_with_warmup(optimizer, warmup, total);
    // before each optimizer.step(); s.step(): optimizer.param_groups[0]["lr"].
    #[test]
    fn rates_are_those_of_transformers() {
        let expected = [
            0.0,
            0.00016666666666666666,
            0.0003333333333333333,
            0.0005,
            0.00042857142857142855,
            0.00035714285714285714,
            0.0002857142857142857,
            0.00021428571428571427,
            0.00014285714285714284,
            7.142857142857142e-05,
            0.0,
            0.0,
        ];
        assert_close(&rates(Schedule::new(5e-4, 3, 10).unwrap(), 12), &expected);
        assert_close(&rates(Schedule::new(1.0, 0, 4).unwrap(), 6), &[1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        assert_close(&rates(Schedule::new(1.0, 4, 4).unwrap(), 6), &[0.0, 0.25, 0.5, 0.75, 0.0, 0.0]);
    }

    #[test]
    fn a_warm_up_share_is_rounded_up() {
        assert_eq!(Schedule::warmup_steps(0.05, 101).unwrap(), 6);
        assert_eq!(Schedule::warmup_steps(0.0, 101).unwrap(), 0);
        assert_eq!(Schedule::warmup_steps(1.0, 101).unwrap(), 101);
        assert!(Schedule::warmup_steps(1.5, 101).is_err());
        assert!(Schedule::warmup_steps(f64::NAN, 101).is_err());
    }

    #[test]
    fn schedules_that_cannot_be_run_are_refused() {
        assert!(Schedule::new(-1.0, 0, 1).unwrap_err().to_string().starts_with("learning_rate"));
        assert!(Schedule::new(1.0, 0, 0).unwrap_err().to_string().starts_with("total_steps"));
        assert!(Schedule::new(1.0, 3, 2).unwrap_err().to_string().starts_with("warmup_steps"));
    }
}
