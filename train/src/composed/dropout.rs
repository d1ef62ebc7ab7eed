//! Dropout, with random numbers of the device.

use crate::kernels::{DropoutPlan, DropoutSite};
use candle_core::{DType, Device, Result, Tensor};
use logitcache::seed::{Purpose, RandomStream};

/// What gives the factors of a site for a tensor of some shape: 0 where a number is dropped, more than 1 elsewhere; none where nothing is
/// dropped there.
pub(super) type Factors<'a> = dyn Fn(DropoutSite, &[usize]) -> Result<Option<Tensor>> + 'a;

/// `x` times its factors.
pub(super) fn dropped(x: &Tensor, site: DropoutSite, factors: &Factors<'_>) -> Result<Tensor> {
    factors(site, x.dims())?.map_or(Ok(x.clone()), |factors| x * factors)
}

/// Nothing is dropped.
pub(super) fn off(_site: DropoutSite, _shape: &[usize]) -> Result<Option<Tensor>> {
    Ok(None)
}

/// Puts the generator of `device` at a place of the step's own, by `plan`'s seed and step: a run that goes on draws what it would have drawn, one
/// micro-batch after the other. Once a step, because candle makes a new generator each time. Nothing is drawn on candle's processor, whose generator
/// has no such place.
pub(super) fn seed(plan: &DropoutPlan, device: &Device) -> Result<()> {
    if plan.hidden == 0.0 && plan.attention == 0.0 {
        return Ok(());
    }
    device.set_seed(RandomStream::new(plan.seed, Purpose::Dropout, &[plan.step]).at(0))
}

/// Factors that `device` draws, with `plan`'s probabilities. The masks are others than the kernels', which depend on the sequence and not on its batch.
pub(super) fn drawn(plan: DropoutPlan, dtype: DType, device: &Device) -> impl Fn(DropoutSite, &[usize]) -> Result<Option<Tensor>> {
    move |site: DropoutSite, shape: &[usize]| {
        let probability = if matches!(site, DropoutSite::Attention(_)) { plan.attention } else { plan.hidden };
        if probability == 0.0 {
            return Ok(None);
        }
        let kept = Tensor::rand(0f32, 1f32, shape, device)?.gt(probability)?;
        Ok(Some((kept.to_dtype(dtype)? * (1.0 / (1.0 - probability)))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::numbers;

    #[test]
    fn the_expectation_is_kept_and_each_site_has_its_probability() {
        let plan = DropoutPlan { seed: 1, step: 2, hidden: 0.2, attention: 0.5 };
        let factors = drawn(plan, DType::F64, &Device::Cpu);
        for (site, kept) in [(DropoutSite::Embeddings, 0.8), (DropoutSite::Attention(1), 0.5)] {
            let found = numbers(&factors(site, &[100, 200]).unwrap().unwrap());
            assert!(found.iter().all(|factor| *factor == 0.0 || *factor == 1.0 / (1.0 - (1.0 - kept))), "{site:?}");
            // Seven standard deviations of 20,000 draws.
            let share = found.iter().filter(|factor| **factor > 0.0).count() as f64 / 20_000.0;
            assert!((share - kept).abs() < 0.025, "{site:?}: {share} kept");
        }
        let none = drawn(DropoutPlan::off(), DType::F64, &Device::Cpu);
        assert!(none(DropoutSite::Embeddings, &[2, 3]).unwrap().is_none());
    }

    #[test]
    fn a_device_that_cannot_be_placed_draws_nothing() {
        assert!(seed(&DropoutPlan::off(), &Device::Cpu).is_ok());
        assert!(seed(&DropoutPlan { hidden: 0.1, ..DropoutPlan::off() }, &Device::Cpu).is_err());
    }
}
