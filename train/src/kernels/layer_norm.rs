//! LayerNorm (Ba, Kiros and Hinton 2016), with the residual added on the way.
//!
//! With s = x + residual, m and v the mean and the variance of a row of s, and r = 1 / sqrt(v + epsilon):
//! y = g h + b for h = (s - m) r. Backwards, with d = dy g: ds = r (d - mean(d) - h mean(d h)), dg = sum of dy h, db = sum of dy. A row's
//! m and r are kept; h is computed again from the operands, which candle keeps anyway.

use super::dropout::{Rate, RowDropout};
use super::element::Element;
use super::level::{Level, lane_sum, lane_sum_of_three, lane_sum_of_two};
use super::linear::{keep, taken};
use super::parameter::Affine;
use super::storage::{check_parameter, failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use logitcache::seed::RandomStream;
use rayon::prelude::*;
use std::sync::Mutex;

/// Each row of `x` `[rows, width]`, normalised, times the weight `[width]`, plus the bias `[width]`.
pub fn layer_norm(x: &Tensor, norm: &Affine, epsilon: f64) -> Result<Tensor> {
    check(x, norm)?;
    for_dtype!("layer_norm", x.dtype(), T => x.apply_op1(LayerNorm::<T>::new(norm, epsilon, x.track_op())))
}

/// [`layer_norm`] of `x + residual`, both `[rows, width]`.
pub fn add_layer_norm(x: &Tensor, residual: &Tensor, norm: &Affine, epsilon: f64) -> Result<Tensor> {
    check(x, norm)?;
    check(residual, norm)?;
    if x.shape() != residual.shape() {
        return Err(failure("add_layer_norm", format!("operands of {:?} and {:?}", x.dims(), residual.dims())));
    }
    let tracked = x.track_op() || residual.track_op();
    for_dtype!("add_layer_norm", x.dtype(), T => x.apply_op2(residual, LayerNorm::<T>::new(norm, epsilon, tracked)))
}

fn check(x: &Tensor, norm: &Affine) -> Result<()> {
    let (_, width) = rows_and_width("layer_norm", x)?;
    check_parameter("layer_norm", &norm.weight, x.dtype(), &[width])?;
    check_parameter("layer_norm", &norm.bias, x.dtype(), &[width])
}

struct LayerNorm<T> {
    norm: Affine,
    epsilon: f64,
    tracked: bool,
    moments: Mutex<Option<Vec<Moments<T>>>>,
}

/// Of a row: (mean, 1 / standard deviation).
pub(crate) type Moments<T> = (T, T);

/// Rows of a backward task: each gives one partial sum of the weight gradients, and the partial sums are added in order.
const ROW_BLOCK: usize = 32;

/// Rows that one task of a forward pass takes at least.
const FEW_ROWS: usize = 16;

/// The rows `[rows, width]`, with `residual` added where there is one, normalised, and their moments.
fn normalise_rows<T: Element>(x: &[T], residual: Option<&[T]>, norm: &Affine, epsilon: f64) -> Result<(Vec<T>, Vec<Moments<T>>)> {
    let (width, level, epsilon) = (norm.bias.elements(), Level::best(), T::from_f64(epsilon));
    let mut moments = vec![(T::zero(), T::zero()); x.len() / width];
    let y = with_both(norm, |weight, bias| {
        let rows = x.par_chunks(width).zip(moments.par_iter_mut()).enumerate().with_min_len(FEW_ROWS);
        filled_by_chunks(x.len(), width, rows, |y, (row, (x, moments))| {
            let residual = residual.map(|residual| &residual[row * width..][..width]);
            *moments = normalise(level, x, residual, weight, bias, epsilon, y);
        })
    })?;
    Ok((y, moments))
}

/// The end of a block's half: `x` `[rows, width]`, of which `dropped` says what is dropped, becomes the sum with `residual`; gives the sum
/// normalised and the sum's moments.
pub(crate) fn add_and_normalise<T: Element>(
    x: &mut [T],
    dropped: Option<&RowDropout>,
    residual: &[T],
    norm: &Affine,
    epsilon: f64,
) -> Result<(Vec<T>, Vec<Moments<T>>)> {
    let (width, level, epsilon) = (norm.bias.elements(), Level::best(), T::from_f64(epsilon));
    let mut moments = vec![(T::zero(), T::zero()); x.len() / width];
    let y = with_both(norm, |weight, bias| {
        let sums = x.par_chunks_mut(width).zip(residual.par_chunks(width));
        let rows = sums.zip(moments.par_iter_mut()).enumerate().with_min_len(FEW_ROWS);
        filled_by_chunks(residual.len(), width, rows, |y, (row, ((x, residual), moments))| {
            let dropped = dropped.map(|dropped| dropped.row(row));
            *moments = add_and_normalise_row(level, x, dropped, residual, weight, bias, epsilon, y);
        })
    })?;
    Ok((y, moments))
}

/// What [`add_and_normalise`] gave, again, from the sums and their moments.
pub(crate) fn normalised_again<T: Element>(sums: &[T], moments: &[Moments<T>], norm: &Affine) -> Result<Vec<T>> {
    let (width, level) = (norm.bias.elements(), Level::best());
    with_both(norm, |weight, bias| {
        let rows = sums.par_chunks(width).zip(moments.par_iter()).with_min_len(FEW_ROWS);
        filled_by_chunks(sums.len(), width, rows, |y, (sum, moments)| {
            y.copy_from_slice(sum);
            shift_and_scale(level, y, *moments, weight, bias);
        })
    })
}

fn with_both<T: Element, R>(norm: &Affine, read: impl FnOnce(&[T], &[T]) -> R) -> Result<R> {
    norm.weight.with_value(|weight: &[T]| norm.bias.with_value(|bias: &[T]| read(weight, bias)))?
}

/// Adds the gradients of weight and bias and gives that of the sum, from `dy` and what was normalised, all `[rows, width]`.
pub(crate) fn norm_gradients<T: Element>(
    norm: &Affine,
    dy: &[T],
    x: &[T],
    residual: Option<&[T]>,
    moments: &[Moments<T>],
) -> Result<Vec<T>> {
    let (width, level) = (norm.bias.elements(), Level::best());
    let block = ROW_BLOCK * width;
    let mut partial = vec![T::zero(); moments.len().div_ceil(ROW_BLOCK) * 2 * width];
    let ds = norm.weight.with_value(|weight: &[T]| {
        let blocks = dy.par_chunks(block).zip(x.par_chunks(block)).zip(partial.par_chunks_mut(2 * width)).enumerate();
        filled_by_chunks(x.len(), block, blocks, |ds, (index, ((dy, x), partial))| {
            let (weight_sum, bias_sum) = partial.split_at_mut(width);
            for (row, ds) in ds.chunks_exact_mut(width).enumerate() {
                let (here, moments) = (row * width, moments[index * ROW_BLOCK + row]);
                let residual = residual.map(|residual| &residual[index * block + here..][..width]);
                let (dy, x) = (&dy[here..][..width], &x[here..][..width]);
                differentiate(level, dy, x, residual, weight, moments, ds, weight_sum, bias_sum);
            }
        })
    })?;
    for (parameter, half) in [(&norm.weight, 0), (&norm.bias, width)] {
        parameter.with_gradient(|sink: &mut [T]| {
            for partial in partial.chunks_exact(2 * width) {
                sink.iter_mut().zip(&partial[half..]).for_each(|(sink, value)| *sink += *value);
            }
        })?;
    }
    Ok(ds)
}

impl<T: Element> LayerNorm<T> {
    fn new(norm: &Affine, epsilon: f64, tracked: bool) -> Self {
        Self { norm: norm.clone(), epsilon, tracked, moments: Mutex::new(None) }
    }

    fn forward(&self, x: &[T], residual: Option<&[T]>, shape: &Shape) -> Result<(CpuStorage, Shape)> {
        let (y, moments) = normalise_rows(x, residual, &self.norm, self.epsilon)?;
        keep(&self.moments, moments, self.tracked);
        Ok((T::to_cpu_storage_owned(y), shape.clone()))
    }

    fn backward(&self, x: &Tensor, residual: Option<&Tensor>, gradient: &Tensor) -> Result<Tensor> {
        let moments = taken("layer_norm", &self.moments)?;
        let ds = with_slice("layer_norm", gradient, |dy: &[T]| {
            with_slice("layer_norm", x, |x: &[T]| match residual {
                Some(residual) => {
                    with_slice("layer_norm", residual, |residual: &[T]| norm_gradients(&self.norm, dy, x, Some(residual), &moments))?
                }
                None => norm_gradients(&self.norm, dy, x, None, &moments),
            })
        })???;
        tensor_of(ds, x.shape())
    }
}

levelled! {
    fn shift_and_scale<T>(y: &mut [T], moments: Moments<T>, weight: &[T], bias: &[T]) {
        scale_row(y, moments, weight, bias);
    }
}

levelled! {
    /// One row; see [`add_and_normalise`]. `y` holds the factors in between.
    fn add_and_normalise_row<T>(
        x: &mut [T], dropped: Option<(Rate, &RandomStream, usize)>, residual: &[T], weight: &[T], bias: &[T], epsilon: T, y: &mut [T],
    ) -> Moments<T> {
        match dropped {
            Some((rate, stream, row)) => {
                rate.factors(stream, row, y);
                x.iter_mut().zip(y.iter()).zip(residual).for_each(|((x, factor), residual)| *x = *x * *factor + *residual);
            }
            None => x.iter_mut().zip(residual).for_each(|(x, residual)| *x += *residual),
        }
        y.copy_from_slice(x);
        let moments = moments_of(y, epsilon);
        scale_row(y, moments, weight, bias);
        moments
    }
}

#[inline(always)]
fn moments_of<T: Element>(y: &[T], epsilon: T) -> Moments<T> {
    let width = y.len();
    let inverse_width = T::one() / T::from_f64(width as f64);
    let mean = lane_sum(y, |y| y) * inverse_width;
    let variance = lane_sum(y, |y| (y - mean) * (y - mean)) * inverse_width;
    (mean, T::one() / (variance + epsilon).sqrt())
}

#[inline(always)]
fn scale_row<T: Element>(y: &mut [T], (mean, inverse_deviation): Moments<T>, weight: &[T], bias: &[T]) {
    for ((y, weight), bias) in y.iter_mut().zip(weight).zip(bias) {
        *y = (*y - mean) * inverse_deviation * *weight + *bias;
    }
}

levelled! {
    /// One row; `y` holds x + residual in between.
    fn normalise<T>(x: &[T], residual: Option<&[T]>, weight: &[T], bias: &[T], epsilon: T, y: &mut [T]) -> Moments<T> {
        match residual {
            Some(residual) => y.iter_mut().zip(x).zip(residual).for_each(|((y, x), residual)| *y = *x + *residual),
            None => y.copy_from_slice(x),
        }
        let moments = moments_of(y, epsilon);
        scale_row(y, moments, weight, bias);
        moments
    }
}

levelled! {
    /// One row's `ds`, and its terms added to the sums of the weight's and the bias's gradients.
    fn differentiate<T>(
        dy: &[T], x: &[T], residual: Option<&[T]>, weight: &[T], moments: (T, T), ds: &mut [T], weight_sum: &mut [T], bias_sum: &mut [T],
    ) {
        let width = ds.len();
        let (dy, x, weight) = (&dy[..width], &x[..width], &weight[..width]);
        let (weight_sum, bias_sum) = (&mut weight_sum[..width], &mut bias_sum[..width]);
        let (mean, inverse_deviation) = moments;
        match residual {
            Some(residual) => ds.iter_mut().zip(x).zip(residual).for_each(|((h, x), residual)| *h = (*x + *residual - mean) * inverse_deviation),
            None => ds.iter_mut().zip(x).for_each(|(h, x)| *h = (*x - mean) * inverse_deviation),
        }
        let inverse_width = T::one() / T::from_f64(width as f64);
        let mean_slope = lane_sum_of_two(dy, weight, |dy, weight| dy * weight) * inverse_width;
        let mean_product = lane_sum_of_three(dy, weight, ds, |dy, weight, h| dy * weight * h) * inverse_width;
        for i in 0..width {
            let h = ds[i];
            weight_sum[i] += dy[i] * h;
            bias_sum[i] += dy[i];
            ds[i] = inverse_deviation * (dy[i] * weight[i] - mean_slope - h * mean_product);
        }
    }
}

impl<T: Element> CustomOp1 for LayerNorm<T> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice_of("layer_norm", storage, layout)?, None, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.backward(x, None, gradient)?))
    }
}

impl<T: Element> CustomOp2 for LayerNorm<T> {
    fn name(&self) -> &'static str {
        "add_layer_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, residual: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let residual = slice_of("add_layer_norm", residual, layout)?;
        self.forward(slice_of("add_layer_norm", x, x_layout)?, Some(residual), x_layout.shape())
    }

    fn bwd(&self, x: &Tensor, residual: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ds = self.backward(x, Some(residual), gradient)?;
        Ok((Some(ds.clone()), Some(ds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ParameterRef;
    use crate::kernels::proof::{Proof, affines, assert_close, numbers, random, random_affine};

    const EPSILON: f64 = 1e-12;

    fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let normalise = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let deviation = (variance + EPSILON).sqrt();
            row.iter().zip(weight.iter().zip(bias)).map(|(x, (weight, bias))| (x - mean) / deviation * weight + bias).collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(normalise).collect()
    }

    #[test]
    fn with_and_without_a_residual_on_odd_widths() {
        for width in [1, 16, 37] {
            let rows = 35; // more than one block of rows, the last one short
            let (x, residual) = (random(1, &[rows, width], 2.0), random(2, &[rows, width], 1.0));
            let parameters = random_affine(3, &[width], 0.7);
            let [weight, bias] = [numbers(&parameters[0]), numbers(&parameters[1])];
            let plain = |x: &[Tensor], p: &[ParameterRef]| layer_norm(&x[0], &affines(p)[0], EPSILON);
            let added = |x: &[Tensor], p: &[ParameterRef]| add_layer_norm(&x[0], &x[1], &affines(p)[0], EPSILON);
            let wrapped: Vec<ParameterRef> = parameters.iter().map(|p| crate::kernels::Parameter::new("p", p).unwrap()).collect();
            let y = numbers(&plain(std::slice::from_ref(&x), &wrapped).unwrap());
            assert_close("layer norm", &y, &reference(&numbers(&x), &weight, &bias), 1e-12, 1e-12);
            let sum = (&x + &residual).unwrap();
            let y = numbers(&added(&[x.clone(), residual.clone()], &wrapped).unwrap());
            assert_close("add layer norm", &y, &reference(&numbers(&sum), &weight, &bias), 1e-12, 1e-12);
            if width > 1 {
                Proof { inputs: std::slice::from_ref(&x), parameters: &parameters, run: plain }.check();
                Proof { inputs: &[x, residual], parameters: &parameters, run: added }.check();
            }
        }
    }

    #[test]
    fn a_second_backward_pass_is_refused() {
        let x = candle_core::Var::from_tensor(&random(1, &[2, 8], 1.0)).unwrap();
        let wrapped: Vec<ParameterRef> =
            random_affine(3, &[8], 1.0).iter().map(|p| crate::kernels::Parameter::new("p", p).unwrap()).collect();
        let y = layer_norm(&x, &affines(&wrapped)[0], EPSILON).unwrap().sum_all().unwrap();
        y.backward().unwrap();
        assert!(y.backward().unwrap_err().to_string().contains("once"));
    }
}
