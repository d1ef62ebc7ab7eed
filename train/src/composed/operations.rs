//! The student's operations, of candle's own, or on a GPU of kernels that do the same. Each of candle's is differentiated by candle; where candle's derivative of a function is rounded to six digits
//! (`gelu`, `gelu_erf`) or counts a kink otherwise than the kernels (`relu`), the function is composed of others.

#[cfg(feature = "cuda")]
use super::gpu;
use crate::kernels::{Activation, Precision};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// `[rows, out]`: `x` `[rows, in]` times `weight` `[out, in]`, transposed; `[in, out]` and as it is where `inputs_first`. Under bf16 both are
/// rounded to it, the product is rounded once more, and so is everything on the way back.
pub(super) fn product(x: &Tensor, weight: &Tensor, inputs_first: bool, precision: Precision) -> Result<Tensor> {
    rounded_product(x, weight, inputs_first, precision)?.to_dtype(x.dtype())
}

/// The same, left in bf16 where it was rounded to that.
pub(super) fn rounded_product(x: &Tensor, weight: &Tensor, inputs_first: bool, precision: Precision) -> Result<Tensor> {
    let laid = |weight: &Tensor| if inputs_first { Ok(weight.clone()) } else { weight.t() };
    match precision {
        Precision::Single => x.matmul(&laid(weight)?),
        Precision::Bf16 => x.to_dtype(DType::BF16)?.matmul(&laid(&weight.to_dtype(DType::BF16)?)?),
    }
}

/// [`product`] plus the bias `[out]`.
pub(super) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor, inputs_first: bool, precision: Precision) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::serves(x) {
        return gpu::affine(x, weight, bias, inputs_first, precision);
    }
    product(x, weight, inputs_first, precision)?.broadcast_add(bias)
}

/// `[width]` from `x` `[rows, width]`, in single precision where `x` is in bf16.
pub(super) fn column_sums(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::serves(x) || x.dtype() == DType::BF16 {
        return gpu::column_sums(x);
    }
    x.sum(0)
}

/// Each row of `x` `[rows, width]` normalised, times the weight `[width]`, plus the bias `[width]`.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::serves(x) {
        return gpu::layer_norm(x, weight, bias, epsilon);
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Each row of `x` `[rows, width]` over its root mean square, times the weight `[width]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

/// The activation of every number.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::serves(x) {
        return gpu::activate(x, activation);
    }
    match activation {
        Activation::Gelu => (x * 0.5)? * ((x * FRAC_1_SQRT_2)?.erf()? + 1.0)?,
        Activation::GeluNew => {
            let inner = ((x * FRAC_2_PI.sqrt())? * ((x.sqr()? * 0.044715)? + 1.0)?)?;
            (x * 0.5)? * (inner.tanh()? + 1.0)?
        }
        Activation::Relu => x * x.detach().gt(0.0)?.to_dtype(x.dtype())?,
        Activation::Silu => x.silu(),
    }
}

/// The softmax of the last dimension of `scores` `[sequences, heads, longest, longest]` plus a mask `[sequences, 1, 1, longest]` or `[1, 1, longest,
/// longest]`; -infinity has probability 0, and a row has something else.
pub(super) fn masked_softmax(scores: &Tensor, mask: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::serves(scores) {
        return gpu::masked_softmax(scores, mask);
    }
    softmax(&scores.broadcast_add(mask)?)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    // Of two dimensions: a GPU finds its way through each with a division for every number.
    let rows = scores.flatten_to(D::Minus2)?;
    let largest = rows.detach().max_keepdim(D::Minus1)?;
    let exponentials = rows.broadcast_sub(&largest)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?.reshape(scores.shape())
}

/// ln(1 + e^x), finite for every finite x.
pub(super) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// A scalar whose gradient with respect to `x` is `gradient`, of the same shape; its own value is 0. It is differentiated as a summand of a sum.
pub(super) fn with_gradient(x: &Tensor, gradient: Tensor) -> Result<Tensor> {
    if gradient.shape() != x.shape() {
        candle_core::bail!("a gradient {:?} of {:?}", gradient.dims(), x.dims());
    }
    x.apply_op1(WithGradient(gradient))
}

struct WithGradient(Tensor);

impl CustomOp1 for WithGradient {
    fn name(&self) -> &'static str {
        "with a gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuDevice.zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((x.device().zeros_impl(&().into(), x.dtype())?, ().into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, _one: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// The sum of all numbers, row by row first: candle's reduction gives each sum to one block of threads.
pub(super) fn total(x: &Tensor) -> Result<Tensor> {
    if x.rank() > 1 { x.sum(D::Minus1)?.sum_all() } else { x.sum_all() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::activate as kernel;
    use crate::kernels::proof::{assert_close, numbers, random};
    use candle_core::Var;

    #[test]
    fn activations_and_their_slopes_are_the_kernels() {
        for activation in Activation::ALL {
            let run = |function: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let x = Var::from_tensor(&random(1, &[5, 33], 3.0)).unwrap();
                let y = function(&x).unwrap();
                let gradients = y.sum_all().unwrap().backward().unwrap();
                (numbers(&y), numbers(gradients.get(&x).unwrap()))
            };
            let (found, expected) = (run(&|x| activate(x, activation)), run(&|x| kernel(x, activation)));
            assert_close("value", &found.0, &expected.0, 1e-13, 1e-14);
            assert_close("slope", &found.1, &expected.1, 1e-13, 1e-14);
        }
    }

    #[test]
    fn masked_scores_have_no_probability_and_far_ones_stay_finite() {
        let scores =
            Tensor::new(&[[1e4f32, f32::NEG_INFINITY, 1e4], [-1e4, f32::NEG_INFINITY, f32::NEG_INFINITY]], &candle_core::Device::Cpu);
        let x = Var::from_tensor(&scores.unwrap()).unwrap();
        let y = softmax(&x).unwrap();
        assert_eq!(numbers(&y), [0.5, 0.0, 0.5, 1.0, 0.0, 0.0]);
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(numbers(gradients.get(&x).unwrap()).iter().all(|slope| slope.is_finite()));
        let far = Tensor::new(&[-1e4f32, 0.0, 1e4], &candle_core::Device::Cpu).unwrap();
        assert_close("softplus", &numbers(&softplus(&far).unwrap()), &[0.0, 2f64.ln(), 1e4], 1e-6, 0.0);
    }
}
