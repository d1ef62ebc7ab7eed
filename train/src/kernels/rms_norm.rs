//! RMSNorm (Zhang and Sennrich 2019): a LayerNorm without mean and shift.
//!
//! With r = 1 / sqrt(mean(x^2) + epsilon): y = g h for h = x r. Backwards, with d = dy g: dx = r (d - h mean(d h)), dg = sum of dy h.
//! A row's r is kept; h is computed again from x, which candle keeps anyway.

use super::element::Element;
use super::level::{Level, lane_sum, lane_sum_of_three};
use super::linear::{keep, taken};
use super::parameter::ParameterRef;
use super::storage::{check_parameter, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Mutex;

/// Each row of `x` `[rows, width]` over its root mean square, times the weight `[width]`.
pub fn rms_norm(x: &Tensor, weight: &ParameterRef, epsilon: f64) -> Result<Tensor> {
    let (_, width) = rows_and_width("rms_norm", x)?;
    check_parameter("rms_norm", weight, x.dtype(), &[width])?;
    for_dtype!("rms_norm", x.dtype(), T => x.apply_op1(RmsNorm::<T> {
        weight: weight.clone(),
        epsilon,
        tracked: x.track_op(),
        inverse_roots: Mutex::new(None),
    }))
}

struct RmsNorm<T> {
    weight: ParameterRef,
    epsilon: f64,
    tracked: bool,
    /// `[rows]`.
    inverse_roots: Mutex<Option<Vec<T>>>,
}

/// Rows of a backward task: each gives one partial sum of the weight's gradient, and the partial sums are added in order.
const ROW_BLOCK: usize = 32;

impl<T: Element> RmsNorm<T> {
    fn forward(&self, x: &[T], width: usize) -> Result<Vec<T>> {
        let (level, epsilon) = (Level::best(), T::from_f64(self.epsilon));
        let mut inverse_roots = vec![T::zero(); x.len() / width];
        let y = self.weight.with_value(|weight: &[T]| {
            let rows = x.par_chunks(width).zip(inverse_roots.par_iter_mut()).with_min_len(16);
            filled_by_chunks(x.len(), width, rows, |y, (x, inverse_root)| *inverse_root = normalise(level, x, weight, epsilon, y))
        })?;
        keep(&self.inverse_roots, inverse_roots, self.tracked);
        Ok(y)
    }

    fn backward(&self, x: &[T], dy: &[T]) -> Result<Vec<T>> {
        let inverse_roots = taken("rms_norm", &self.inverse_roots)?;
        let (width, level) = (self.weight.elements(), Level::best());
        let block = ROW_BLOCK * width;
        let mut partial = vec![T::zero(); inverse_roots.len().div_ceil(ROW_BLOCK) * width];
        let dx = self.weight.with_value(|weight: &[T]| {
            let operands = dy.par_chunks(block).zip(x.par_chunks(block)).zip(inverse_roots.par_chunks(ROW_BLOCK));
            let blocks = operands.zip(partial.par_chunks_mut(width));
            filled_by_chunks(x.len(), block, blocks, |dx, (((dy, x), inverse_roots), sums)| {
                for (row, (dx, inverse_root)) in dx.chunks_exact_mut(width).zip(inverse_roots).enumerate() {
                    let here = row * width..(row + 1) * width;
                    differentiate(level, &dy[here.clone()], &x[here], weight, *inverse_root, dx, sums);
                }
            })
        })?;
        self.weight.with_gradient(|sink: &mut [T]| {
            for partial in partial.chunks_exact(width) {
                sink.iter_mut().zip(partial).for_each(|(sink, value)| *sink += *value);
            }
        })?;
        Ok(dx)
    }
}

levelled! {
    /// One row; gives 1 / its root mean square.
    fn normalise<T>(x: &[T], weight: &[T], epsilon: T, y: &mut [T]) -> T {
        let width = y.len();
        let (x, weight) = (&x[..width], &weight[..width]);
        let mean_square = lane_sum(x, |x| x * x) / T::from_f64(width as f64);
        let inverse_root = T::one() / (mean_square + epsilon).sqrt();
        for i in 0..width {
            y[i] = x[i] * inverse_root * weight[i];
        }
        inverse_root
    }
}

levelled! {
    /// One row's `dx`, and its terms added to the sums of the weight's gradient.
    fn differentiate<T>(dy: &[T], x: &[T], weight: &[T], inverse_root: T, dx: &mut [T], sums: &mut [T]) {
        let width = dx.len();
        let (dy, x, weight, sums) = (&dy[..width], &x[..width], &weight[..width], &mut sums[..width]);
        let mean_product = lane_sum_of_three(dy, weight, x, |dy, weight, x| dy * weight * (x * inverse_root)) / T::from_f64(width as f64);
        for i in 0..width {
            let h = x[i] * inverse_root;
            sums[i] += dy[i] * h;
            dx[i] = inverse_root * (dy[i] * weight[i] - h * mean_product);
        }
    }
}

impl<T: Element> CustomOp1 for RmsNorm<T> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(slice_of(self.name(), storage, layout)?, self.weight.elements())?;
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(self.name(), gradient, |dy: &[T]| with_slice(self.name(), x, |x: &[T]| self.backward(x, dy)))???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    #[test]
    fn it_is_its_definition_and_its_gradients_are_slopes() {
        for (rows, width) in [(1, 1), (3, 16), (35, 37)] {
            let (x, weight) = (random(1, &[rows, width], 2.0), random(2, &[width], 1.0));
            let parameter = Parameter::new("weight", &weight).unwrap();
            let found = numbers(&rms_norm(&x, &parameter, 1e-5).unwrap());
            let (values, scale) = (numbers(&x), numbers(&weight));
            let of_row = |x: &[f64]| {
                let root = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
                x.iter().zip(&scale).map(|(x, g)| g * x / root).collect::<Vec<_>>()
            };
            let expected: Vec<f64> = values.chunks(width).flat_map(of_row).collect();
            assert_close("rms_norm", &found, &expected, 1e-13, 1e-13);
            let run = |x: &[Tensor], p: &[ParameterRef]| rms_norm(&x[0], &p[0], 1e-5);
            Proof { inputs: &[x], parameters: &[weight], run }.check();
        }
    }

    #[test]
    fn rows_of_zeros_and_of_large_numbers_stay_finite() {
        let weight = Parameter::new("weight", &Tensor::ones(4, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()).unwrap();
        let x = Tensor::new(&[[0f32; 4], [1e15, -1e15, 1e15, 0.0]], &candle_core::Device::Cpu).unwrap();
        let x = candle_core::Var::from_tensor(&x).unwrap();
        let y = rms_norm(&x, &weight, 1e-6).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(numbers(&y).iter().chain(&numbers(gradients.get(&x).unwrap())).all(|value| value.is_finite()));
        assert!(rms_norm(&random(1, &[2, 3], 1.0), &weight, 1e-6).unwrap_err().to_string().contains("[3]"));
    }
}
