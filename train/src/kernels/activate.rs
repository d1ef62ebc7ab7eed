//! An [`Activation`] of every number, and its slope.
//!
//! Each of them is x times a factor f(x) between 0 and 1:
//!
//! | activation | factor | slope |
//! | --- | --- | --- |
//! | gelu | Phi(x) | Phi(x) + x phi(x) |
//! | gelu_new | s = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) | s + x s (1 - s) 2 u' |
//! | relu | 1 where x is at least 0, else 0 | 1 where x is above 0, else 0 |
//! | silu | s = sigmoid(x) | s + x s (1 - s) |
//!
//! (1 + tanh u) / 2 = sigmoid(2 u), so that one exponential serves.

use super::activation::Activation;
use super::element::Element;
use super::level::Level;
use super::storage::{filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Numbers that one task handles: input and output stay in the first-level cache.
const PIECE: usize = 4096;

/// The activation of every number of `x` `[rows, width]`.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    rows_and_width("activate", x)?;
    for_dtype!("activate", x.dtype(), T => x.apply_op1(Activate::<T> { activation, element: PhantomData }))
}

struct Activate<T> {
    activation: Activation,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for Activate<T> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = activated::<T>(slice_of("activate", storage, layout)?, self.activation);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let level = Level::best();
        let dx = with_slice("activate", gradient, |gradient: &[T]| {
            with_slice("activate", x, |x: &[T]| {
                let inputs = x.par_chunks(PIECE).zip(gradient.par_chunks(PIECE));
                filled_by_chunks(x.len(), PIECE, inputs, |dx, (x, gradient)| slopes(level, self.activation, x, gradient, dx))
            })
        })??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

/// The activation of a buffer, in a new one.
pub(crate) fn activated<T: Element>(x: &[T], activation: Activation) -> Vec<T> {
    let level = Level::best();
    filled_by_chunks(x.len(), PIECE, x.par_chunks(PIECE), |y, x| values(level, activation, x, y))
}

/// The backward pass in place: `x` becomes its activation, which the next layer's weight gradient needs, and `gradient` is multiplied by the
/// slope.
pub(crate) fn activate_and_differentiate<T: Element>(x: &mut [T], gradient: &mut [T], activation: Activation) {
    let level = Level::best();
    x.par_chunks_mut(PIECE)
        .zip_eq(gradient.par_chunks_mut(PIECE))
        .for_each(|(x, gradient)| values_and_slopes(level, activation, x, gradient));
}

/// The activation of every number of `gate` times the number of `up` at its place, in a new buffer.
pub(crate) fn gated_products<T: Element>(gate: &[T], up: &[T], activation: Activation) -> Vec<T> {
    let level = Level::best();
    let operands = gate.par_chunks(PIECE).zip_eq(up.par_chunks(PIECE));
    filled_by_chunks(gate.len(), PIECE, operands, |y, (gate, up)| products(level, activation, gate, up, y))
}

/// The backward pass of [`gated_products`] in place: `gate` and `up` become their gradients, and `gradient`, which is that of the products,
/// becomes the products.
pub(crate) fn gated_slopes<T: Element>(gate: &mut [T], up: &mut [T], gradient: &mut [T], activation: Activation) {
    let level = Level::best();
    let operands = gate.par_chunks_mut(PIECE).zip_eq(up.par_chunks_mut(PIECE)).zip_eq(gradient.par_chunks_mut(PIECE));
    operands.for_each(|((gate, up), gradient)| products_and_slopes(level, activation, gate, up, gradient));
}

levelled! {
    fn products<T>(activation: Activation, gate: &[T], up: &[T], y: &mut [T]) {
        match activation {
            Activation::Gelu => each_product(gate, up, y, gelu),
            Activation::GeluNew => each_product(gate, up, y, gelu_new),
            Activation::Relu => each_product(gate, up, y, relu),
            Activation::Silu => each_product(gate, up, y, silu),
        }
    }
}

levelled! {
    fn products_and_slopes<T>(activation: Activation, gate: &mut [T], up: &mut [T], gradient: &mut [T]) {
        match activation {
            Activation::Gelu => each_gate(gate, up, gradient, gelu),
            Activation::GeluNew => each_gate(gate, up, gradient, gelu_new),
            Activation::Relu => each_gate(gate, up, gradient, relu),
            Activation::Silu => each_gate(gate, up, gradient, silu),
        }
    }
}

levelled! {
    fn values<T>(activation: Activation, x: &[T], y: &mut [T]) {
        match activation {
            Activation::Gelu => each_value(x, y, gelu),
            Activation::GeluNew => each_value(x, y, gelu_new),
            Activation::Relu => each_value(x, y, relu),
            Activation::Silu => each_value(x, y, silu),
        }
    }
}

levelled! {
    fn slopes<T>(activation: Activation, x: &[T], gradient: &[T], dx: &mut [T]) {
        match activation {
            Activation::Gelu => each_slope(x, gradient, dx, gelu),
            Activation::GeluNew => each_slope(x, gradient, dx, gelu_new),
            Activation::Relu => each_slope(x, gradient, dx, relu),
            Activation::Silu => each_slope(x, gradient, dx, silu),
        }
    }
}

levelled! {
    fn values_and_slopes<T>(activation: Activation, x: &mut [T], gradient: &mut [T]) {
        match activation {
            Activation::Gelu => each_in_place(x, gradient, gelu),
            Activation::GeluNew => each_in_place(x, gradient, gelu_new),
            Activation::Relu => each_in_place(x, gradient, relu),
            Activation::Silu => each_in_place(x, gradient, silu),
        }
    }
}

#[inline(always)]
fn each_value<T: Element>(x: &[T], y: &mut [T], curve: impl Fn(T) -> (T, T)) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = *x * curve(*x).0;
    }
}

#[inline(always)]
fn each_slope<T: Element>(x: &[T], gradient: &[T], dx: &mut [T], curve: impl Fn(T) -> (T, T)) {
    for ((dx, x), gradient) in dx.iter_mut().zip(x).zip(gradient) {
        *dx = *gradient * curve(*x).1;
    }
}

#[inline(always)]
fn each_in_place<T: Element>(x: &mut [T], gradient: &mut [T], curve: impl Fn(T) -> (T, T)) {
    for (x, gradient) in x.iter_mut().zip(gradient) {
        let (factor, slope) = curve(*x);
        *gradient *= slope;
        *x *= factor;
    }
}

#[inline(always)]
fn each_product<T: Element>(gate: &[T], up: &[T], y: &mut [T], curve: impl Fn(T) -> (T, T)) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = *gate * curve(*gate).0 * *up;
    }
}

#[inline(always)]
fn each_gate<T: Element>(gate: &mut [T], up: &mut [T], gradient: &mut [T], curve: impl Fn(T) -> (T, T)) {
    for ((gate, up), gradient) in gate.iter_mut().zip(up).zip(gradient) {
        let (factor, slope) = curve(*gate);
        let (value, times, arriving) = (*gate * factor, *up, *gradient);
        *gate = arriving * times * slope;
        *up = arriving * value;
        *gradient = value * times;
    }
}

/// Factor and slope of GELU.
#[inline(always)]
fn gelu<T: Element>(x: T) -> (T, T) {
    let (cumulative, density) = x.normal_distribution();
    (cumulative, cumulative + x * density)
}

/// Factor and slope of GELU's approximation by tanh.
#[inline(always)]
fn gelu_new<T: Element>(x: T) -> (T, T) {
    // 2 sqrt(2 / pi), and that times 0.044715.
    const TWICE_ROOT: f64 = 1.595_769_121_605_730_8;
    const TWICE_ROOT_CUBIC: f64 = 0.044_715 * TWICE_ROOT;
    let (root, cubic) = (T::from_f64(TWICE_ROOT), T::from_f64(TWICE_ROOT_CUBIC));
    let square = x * x;
    let sigmoid = sigmoid(x * (root + cubic * square));
    let inner_slope = root + T::from_f64(3.0) * cubic * square;
    (sigmoid, sigmoid + x * sigmoid * (T::one() - sigmoid) * inner_slope)
}

/// Factor and slope of the rectifier. A NaN stays one.
#[inline(always)]
fn relu<T: Element>(x: T) -> (T, T) {
    (if x < T::zero() { T::zero() } else { T::one() }, if x > T::zero() { T::one() } else { T::zero() })
}

/// Factor and slope of x sigmoid(x).
#[inline(always)]
fn silu<T: Element>(x: T) -> (T, T) {
    let sigmoid = sigmoid(x);
    (sigmoid, sigmoid + x * sigmoid * (T::one() - sigmoid))
}

#[inline(always)]
fn sigmoid<T: Element>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    #[test]
    fn they_agree_with_candle_and_with_finite_differences() {
        let x = random(1, &[3, 37], 2.0);
        for activation in Activation::ALL {
            let expected = match activation {
                Activation::Gelu => x.gelu_erf(),
                Activation::GeluNew => x.gelu(),
                Activation::Relu => x.relu(),
                Activation::Silu => x.silu(),
            };
            let found = numbers(&activate(&x, activation).unwrap());
            assert_close(activation.name(), &found, &numbers(&expected.unwrap()), 1e-12, 1e-14);
            Proof { inputs: std::slice::from_ref(&x), parameters: &[], run: |x: &[Tensor], _: &[_]| activate(&x[0], activation) }.check();
        }
    }

    #[test]
    fn in_place_and_out_of_place_agree() {
        let x: Vec<f64> = numbers(&random(2, &[5000], 2.0));
        let gradient: Vec<f64> = numbers(&random(3, &[5000], 1.0));
        for activation in Activation::ALL {
            let mut expected = vec![0.0; 5000];
            slopes(Level::best(), activation, &x, &gradient, &mut expected);
            let (mut value, mut slope) = (x.clone(), gradient.clone());
            activate_and_differentiate(&mut value, &mut slope, activation);
            assert_eq!(value, activated(&x, activation));
            assert_eq!(slope, expected);
        }
    }

    #[test]
    fn large_numbers_stay_finite_and_a_nan_shows() {
        for activation in Activation::ALL {
            let (mut x, mut gradient) = (vec![-1e4f32, -100.0, 0.0, 100.0, 1e4], vec![1f32; 5]);
            activate_and_differentiate(&mut x, &mut gradient, activation);
            assert!(x[0].abs() < 1e-20 && x[2] == 0.0 && x[4] == 1e4, "{activation}: {x:?}");
            assert!(gradient[0].abs() < 1e-20 && gradient[4] == 1.0, "{activation}: {gradient:?}");
            assert!(activated(&[f32::NAN], activation)[0].is_nan(), "{activation}");
        }
    }
}
