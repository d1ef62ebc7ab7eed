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

/// Factors drawn on `device`, whose generator first begins at what `plan`, with its seed and step, and the number of the micro-batch say: a run
/// that goes on draws what it would have drawn. The masks are others than the kernels', which depend on the sequence, not on its batch.
pub(super) fn drawn(
    plan: &DropoutPlan,
    micro_batch: usize,
    dtype: DType,
    device: &Device,
) -> Result<impl Fn(DropoutSite, &[usize]) -> Result<Option<Tensor>>> {
    let (hidden, attention, device) = (plan.hidden, plan.attention, device.clone());
    if hidden > 0.0 || attention > 0.0 {
        device.set_seed(RandomStream::new(plan.seed, Purpose::Dropout, &[plan.step, micro_batch as u64]).at(0))?;
    }
    Ok(move |site: DropoutSite, shape: &[usize]| {
        let probability = if matches!(site, DropoutSite::Attention(_)) { attention } else { hidden };
        if probability == 0.0 {
            return Ok(None);
        }
        let kept = Tensor::rand(0f32, 1f32, shape, &device)?.gt(probability)?;
        Ok(Some((kept.to_dtype(dtype)? * (1.0 / (1.0 - probability)))?))
    })
}
