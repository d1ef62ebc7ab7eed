//! GELU(x) = x Phi(x), with the exact normal distribution (Hendrycks and Gimpel 2016), not the tanh approximation.

use super::element::Element;
use super::level::Level;
use super::storage::{filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Numbers that one task handles: input and output stay in the first-level cache.
const PIECE: usize = 4096;

/// GELU of every number of `x` `[rows, width]`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    rows_and_width("gelu", x)?;
    for_dtype!("gelu", x.dtype(), T => x.apply_op1(Gelu::<T>(PhantomData)))
}

struct Gelu<T>(PhantomData<T>);

impl<T: Element> CustomOp1 for Gelu<T> {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = activate::<T>(slice_of("gelu", storage, layout)?);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let level = Level::best();
        let dx = with_slice("gelu", gradient, |gradient: &[T]| {
            with_slice("gelu", x, |x: &[T]| {
                let inputs = x.par_chunks(PIECE).zip(gradient.par_chunks(PIECE));
                filled_by_chunks(x.len(), PIECE, inputs, |dx, (x, gradient)| slopes(level, x, gradient, dx))
            })
        })??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

/// GELU of a buffer, in a new one.
pub(crate) fn activate<T: Element>(x: &[T]) -> Vec<T> {
    let level = Level::best();
    filled_by_chunks(x.len(), PIECE, x.par_chunks(PIECE), |y, x| values(level, x, y))
}

/// The backward pass in place: `x` becomes GELU(x), which the next layer's weight gradient needs, and `gradient` is multiplied by the slope.
pub(crate) fn activate_and_differentiate<T: Element>(x: &mut [T], gradient: &mut [T]) {
    let level = Level::best();
    x.par_chunks_mut(PIECE).zip_eq(gradient.par_chunks_mut(PIECE)).for_each(|(x, gradient)| values_and_slopes(level, x, gradient));
}

levelled! {
    fn values<T>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * x.normal_distribution().0;
        }
    }
}

levelled! {
    fn slopes<T>(x: &[T], gradient: &[T], dx: &mut [T]) {
        for ((dx, x), gradient) in dx.iter_mut().zip(x).zip(gradient) {
            let (cumulative, density) = x.normal_distribution();
            *dx = *gradient * (cumulative + *x * density);
        }
    }
}

levelled! {
    fn values_and_slopes<T>(x: &mut [T], gradient: &mut [T]) {
        for (x, gradient) in x.iter_mut().zip(gradient) {
            let (cumulative, density) = x.normal_distribution();
            *gradient *= cumulative + *x * density;
            *x *= cumulative;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    #[test]
    fn it_agrees_with_candle_and_with_finite_differences() {
        let x = random(1, &[3, 37], 2.0);
        assert_close("gelu", &numbers(&gelu(&x).unwrap()), &numbers(&x.gelu_erf().unwrap()), 1e-13, 1e-15);
        Proof { inputs: &[x], parameters: &[], run: |x: &[Tensor], _: &[_]| gelu(&x[0]) }.check();
    }

    #[test]
    fn in_place_and_out_of_place_agree() {
        let x: Vec<f64> = numbers(&random(2, &[5000], 2.0));
        let gradient: Vec<f64> = numbers(&random(3, &[5000], 1.0));
        let mut expected = vec![0.0; 5000];
        slopes(Level::best(), &x, &gradient, &mut expected);
        let (mut value, mut slope) = (x.clone(), gradient.clone());
        activate_and_differentiate(&mut value, &mut slope);
        assert_eq!(value, activate(&x));
        assert_eq!(slope, expected);
    }
}
