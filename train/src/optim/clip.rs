//! The gradients' common norm and the factor that limits it.

use super::CHUNK;
use crate::kernels::ParameterRef;
use candle_core::Result;
use rayon::prelude::*;

/// torch's guard against a division by zero.
const EPSILON: f64 = 1e-6;

/// What clipping found and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clipped {
    /// Root of the sum of squares over all gradients, before any scaling. NaN or infinite where a gradient is, or where it overflowed: no step
    /// should follow.
    pub norm: f64,
    /// What every gradient is to be multiplied by, in (0, 1].
    pub scale: f64,
}

impl Clipped {
    /// For gradients of this norm, to be limited to `max_norm` as `torch.nn.utils.clip_grad_norm_` does: min(1, `max_norm` / (norm + 1e-6)).
    pub fn new(norm: f64, max_norm: f64) -> Self {
        Self { norm, scale: (max_norm / (norm + EPSILON)).min(1.0) }
    }
}

/// The norm of all gradients together, and the factor min(1, `max_norm` / (norm + 1e-6)) that `torch.nn.utils.clip_grad_norm_` applies. The
/// gradients stay as they are: the optimiser multiplies on its way through. Summed in double precision over a fixed partition.
///
/// # Errors
/// A gradient that is not float32.
pub fn measure(parameters: &[ParameterRef], max_norm: f64) -> Result<Clipped> {
    let mut squares = 0.0;
    for parameter in parameters {
        squares += parameter.with_gradient(|gradient: &mut [f32]| {
            let partial: Vec<f64> = gradient.par_chunks(CHUNK).map(sum_of_squares).collect();
            partial.into_iter().sum::<f64>()
        })?;
    }
    Ok(Clipped::new(squares.sqrt(), max_norm))
}

/// Eight running sums, so that the additions need not wait for each other.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (lanes, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, value)| *sum += f64::from(*value) * f64::from(*value));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use candle_core::{DType, Device, Tensor};

    fn with_gradients(gradients: &[&[f32]]) -> Vec<ParameterRef> {
        let parameter = |gradient: &&[f32]| {
            let zeros = Tensor::zeros(gradient.len(), DType::F32, &Device::Cpu).unwrap();
            let parameter = Parameter::new("weight", &zeros).unwrap();
            parameter.with_gradient(|values: &mut [f32]| values.copy_from_slice(gradient)).unwrap();
            parameter
        };
        gradients.iter().map(parameter).collect()
    }

    // torch 2.15.0: a.grad = [1, -2, .5, 3]; c.grad = [[.25, -1.5], [0, 2]]; torch.nn.utils.clip_grad_norm_([a, c], max_norm).
    #[test]
    fn norm_and_factor_are_torchs() {
        let parameters = with_gradients(&[&[1.0, -2.0, 0.5, 3.0], &[0.25, -1.5, 0.0, 2.0]]);
        let below = measure(&parameters, 5.0).unwrap();
        assert!((below.norm - 4.5345892906188965).abs() < 1e-6 && below.scale == 1.0, "{below:?}");
        let above = measure(&parameters, 1.0).unwrap();
        assert!((above.norm - 4.5345892906188965).abs() < 1e-6, "{above:?}");
        for (gradient, clipped) in [(1.0, 0.22052709758281708), (3.0, 0.66158127784729), (-1.5, -0.330790638923645)] {
            assert!((gradient * above.scale - clipped).abs() < 1e-7, "{gradient} became {}", gradient * above.scale);
        }
    }

    #[test]
    fn long_gradients_are_summed_as_one() {
        let values: Vec<f32> = (0..3 * CHUNK + 5).map(|i| ((i % 97) as f32 - 48.0) * 0.01).collect();
        let expected = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let found = measure(&with_gradients(&[&values]), 5.0).unwrap();
        assert!((found.norm - expected).abs() < 1e-12 * expected, "{} against {expected}", found.norm);
        // Squares that single precision could not hold.
        let large = measure(&with_gradients(&[&[3e30, 4e30]]), 5.0).unwrap();
        assert!((large.norm / 5e30 - 1.0).abs() < 1e-6 && large.scale > 0.0, "{large:?}");
    }

    #[test]
    fn a_broken_gradient_shows_in_the_norm() {
        assert!(measure(&with_gradients(&[&[1.0, f32::NAN]]), 5.0).unwrap().norm.is_nan());
        assert_eq!(measure(&with_gradients(&[&[0.0; 3]]), 5.0).unwrap(), Clipped { norm: 0.0, scale: 1.0 });
    }
}
