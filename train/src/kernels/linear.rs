//! x W^T + b: alone, followed by an activation, or twice with an activation between.
//!
//! The compound forms exist because candle fills a buffer with zeros and adds to it for every activation in its graph: what stays inside one
//! operation costs no such pass.

use super::activate::{activate_and_differentiate, activated};
use super::activation::Activation;
use super::element::Element;
use super::matrix::{Matrix, Threads, add_column_sums, multiply_in, product_in};
use super::parameter::Affine;
use super::precision::Precision;
use super::storage::{check_parameter, failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Mutex;

/// `[rows, out]`: x `[rows, in]` times the transposed weight `[out, in]`, plus the bias `[out]`.
pub fn linear(x: &Tensor, affine: &Affine) -> Result<Tensor> {
    let (_, inputs) = rows_and_width("linear", x)?;
    outputs_of("linear", affine, x, inputs)?;
    for_dtype!("linear", x.dtype(), T => x.apply_op1(Linear::<T> { affine: affine.clone(), element: PhantomData }))
}

/// The activation of [`linear`].
pub fn linear_activated(x: &Tensor, affine: &Affine, activation: Activation) -> Result<Tensor> {
    let (_, inputs) = rows_and_width("linear_activated", x)?;
    outputs_of("linear_activated", affine, x, inputs)?;
    for_dtype!("linear_activated", x.dtype(), T => {
        x.apply_op1(LinearActivated::<T> { affine: affine.clone(), activation, tracked: x.track_op(), before: Mutex::new(None) })
    })
}

/// The feed-forward block: `outer` of the activation of `inner`, `[rows, in]` to `[rows, in]`.
pub fn feed_forward(x: &Tensor, inner: &Affine, outer: &Affine, activation: Activation) -> Result<Tensor> {
    let (_, inputs) = rows_and_width("feed_forward", x)?;
    let between = outputs_of("feed_forward", inner, x, inputs)?;
    outputs_of("feed_forward", outer, x, between)?;
    for_dtype!("feed_forward", x.dtype(), T => x.apply_op1(FeedForward::<T> {
        inner: inner.clone(),
        outer: outer.clone(),
        activation,
        tracked: x.track_op(),
        before: Mutex::new(None),
    }))
}

/// The number of outputs of a linear map that fits an activation of this width and number type.
pub(crate) fn outputs_of(operation: &str, affine: &Affine, x: &Tensor, inputs: usize) -> Result<usize> {
    let outputs = affine.weight.shape().dims().first().copied().unwrap_or(0);
    check_parameter(operation, &affine.weight, x.dtype(), &[outputs, inputs])?;
    check_parameter(operation, &affine.bias, x.dtype(), &[outputs])?;
    Ok(outputs)
}

/// Rows that one task fills with the bias.
const BIAS_ROWS: usize = 16;

/// `[rows, out]` from `x` `[rows, in]`. The product is added to rows that hold the bias already.
pub(crate) fn forward<T: Element>(precision: Precision, x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
    let rows = x.len() / inputs;
    let chunk = BIAS_ROWS * outputs;
    let mut y = filled_by_chunks(rows * outputs, chunk, (0..rows.div_ceil(BIAS_ROWS)).into_par_iter(), |y, _| {
        y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
    });
    let (x, weight) = (Matrix::new(x, rows, inputs), Matrix::new(weight, outputs, inputs));
    multiply_in(precision, &mut y, outputs, true, x, weight.transposed(), Threads::All);
    y
}

pub(crate) fn forward_affine<T: Element>(x: &[T], affine: &Affine) -> Result<Vec<T>> {
    affine.weight.with_value(|weight: &[T]| affine.bias.with_value(|bias: &[T]| forward(affine.weight.precision(), x, weight, bias)))?
}

/// The gradient of `x` `[rows, in]` from the gradient of the result, `dy` `[rows, out]`.
pub(crate) fn input_gradient<T: Element>(precision: Precision, dy: &[T], weight: &[T], outputs: usize) -> Vec<T> {
    let (rows, inputs) = (dy.len() / outputs, weight.len() / outputs);
    product_in(precision, Matrix::new(dy, rows, outputs), Matrix::new(weight, outputs, inputs), Threads::All)
}

/// [`input_gradient`], added to `dx` `[rows, in]`.
pub(crate) fn add_input_gradient<T: Element>(precision: Precision, dy: &[T], weight: &[T], outputs: usize, dx: &mut [T]) {
    let (rows, inputs) = (dy.len() / outputs, weight.len() / outputs);
    multiply_in(precision, dx, inputs, true, Matrix::new(dy, rows, outputs), Matrix::new(weight, outputs, inputs), Threads::All);
}

/// Some neighbouring columns of a row-major buffer, as many as the bias they belong to has numbers.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) row_stride: usize,
    pub(crate) first: usize,
}

/// Adds the gradients of weight and bias, given the gradient `dy` `[rows, out]` of the result and `x` `[rows, in]`.
pub(crate) fn add_weight_gradients<T: Element>(affine: &Affine, dy: Columns<'_, T>, x: &[T]) -> Result<()> {
    let outputs = affine.bias.elements();
    let inputs = affine.weight.elements() / outputs;
    let rows = x.len() / inputs;
    if rows == 0 {
        return Ok(());
    }
    affine.weight.add_gradient(|sink: &mut [T], accumulate| {
        let dy = Matrix::strided(&dy.values[dy.first..], rows, outputs, dy.row_stride).transposed();
        multiply_in(affine.weight.precision(), sink, inputs, accumulate, dy, Matrix::new(x, rows, inputs), Threads::All);
    })?;
    affine.bias.with_gradient(|sink: &mut [T]| add_column_sums(dy.values, dy.row_stride, dy.first, sink))
}

/// Both at once: gradients of weight and bias added, the gradient of `x` returned.
pub(crate) fn backward_affine<T: Element>(affine: &Affine, dy: &[T], x: &[T]) -> Result<Vec<T>> {
    let outputs = affine.bias.elements();
    add_weight_gradients(affine, Columns { values: dy, row_stride: outputs, first: 0 }, x)?;
    affine.weight.with_value(|weight: &[T]| input_gradient(affine.weight.precision(), dy, weight, outputs))
}

/// Takes what [`keep`] kept.
pub(crate) fn taken<S>(operation: &str, saved: &Mutex<Option<S>>) -> Result<S> {
    let taken = saved.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    taken.ok_or_else(|| failure(operation, "its backward pass runs once, on a tracked input"))
}

struct Linear<T> {
    affine: Affine,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for Linear<T> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = forward_affine::<T>(slice_of("linear", storage, layout)?, &self.affine)?;
        Ok((T::to_cpu_storage_owned(y), (layout.dims()[0], self.affine.bias.elements()).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice("linear", gradient, |dy: &[T]| with_slice("linear", x, |x| backward_affine(&self.affine, dy, x)))???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

struct LinearActivated<T> {
    affine: Affine,
    activation: Activation,
    tracked: bool,
    /// What the activation was applied to, `[rows, out]`.
    before: Mutex<Option<Vec<T>>>,
}

impl<T: Element> CustomOp1 for LinearActivated<T> {
    fn name(&self) -> &'static str {
        "linear_activated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let before = forward_affine::<T>(slice_of(self.name(), storage, layout)?, &self.affine)?;
        let y = activated(&before, self.activation);
        keep(&self.before, before, self.tracked);
        Ok((T::to_cpu_storage_owned(y), (layout.dims()[0], self.affine.bias.elements()).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut before = taken(self.name(), &self.before)?;
        let mut dy = with_slice(self.name(), gradient, |dy: &[T]| dy.to_vec())?;
        activate_and_differentiate(&mut before, &mut dy, self.activation);
        let dx = with_slice(self.name(), x, |x: &[T]| backward_affine(&self.affine, &dy, x))??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

struct FeedForward<T> {
    inner: Affine,
    outer: Affine,
    activation: Activation,
    tracked: bool,
    /// What the activation was applied to, `[rows, between]`. Its result is computed again in the backward pass, where it costs a multiplication.
    before: Mutex<Option<Vec<T>>>,
}

impl<T: Element> CustomOp1 for FeedForward<T> {
    fn name(&self) -> &'static str {
        "feed_forward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let before = forward_affine::<T>(slice_of(self.name(), storage, layout)?, &self.inner)?;
        let y = forward_affine(&activated(&before, self.activation), &self.outer)?;
        keep(&self.before, before, self.tracked);
        Ok((T::to_cpu_storage_owned(y), (layout.dims()[0], self.outer.bias.elements()).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut between = taken(self.name(), &self.before)?;
        let dx = with_slice(self.name(), gradient, |dy: &[T]| {
            let (precision, outputs) = (self.outer.weight.precision(), self.outer.bias.elements());
            let mut gradient = self.outer.weight.with_value(|weight: &[T]| input_gradient(precision, dy, weight, outputs))?;
            activate_and_differentiate(&mut between, &mut gradient, self.activation);
            add_weight_gradients(&self.outer, Columns { values: dy, row_stride: self.outer.bias.elements(), first: 0 }, &between)?;
            with_slice(self.name(), x, |x: &[T]| backward_affine(&self.inner, &gradient, x))?
        })??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

/// Keeps a buffer for the backward pass, if there will be one.
pub(crate) fn keep<S>(place: &Mutex<Option<S>>, saved: S, tracked: bool) {
    if tracked {
        *place.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, affines, assert_close, numbers, random, random_affine};
    use crate::kernels::{Parameter, ParameterRef};

    fn wrapped(tensors: &[Tensor]) -> Vec<Affine> {
        affines(&tensors.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect::<Vec<_>>())
    }

    fn reference(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap()
    }

    #[test]
    fn all_three_forms_on_odd_shapes() {
        for (rows, inputs, outputs) in [(1, 1, 1), (19, 7, 13), (5, 33, 65)] {
            let x = random(1, &[rows, inputs], 1.0);
            let inner = random_affine(2, &[outputs, inputs], 0.5);
            let outer = random_affine(4, &[inputs, outputs], 0.5);
            let all = [inner.clone(), outer.clone()].concat();
            let between = reference(&x, &inner[0], &inner[1]);
            let activated = between.gelu_erf().unwrap();
            let [first, second] = [&wrapped(&all)[0], &wrapped(&all)[1]];
            assert_close("linear", &numbers(&linear(&x, first).unwrap()), &numbers(&between), 1e-12, 1e-12);
            assert_close(
                "linear_activated",
                &numbers(&linear_activated(&x, first, Activation::Gelu).unwrap()),
                &numbers(&activated),
                1e-12,
                1e-12,
            );
            let expected = numbers(&reference(&activated, &outer[0], &outer[1]));
            assert_close("feed_forward", &numbers(&feed_forward(&x, first, second, Activation::Gelu).unwrap()), &expected, 1e-12, 1e-12);

            let inputs = [x];
            Proof { inputs: &inputs, parameters: &inner, run: |x: &[Tensor], p: &[ParameterRef]| linear(&x[0], &affines(p)[0]) }.check();
            for activation in Activation::ALL {
                let run = |x: &[Tensor], p: &[ParameterRef]| linear_activated(&x[0], &affines(p)[0], activation);
                Proof { inputs: &inputs, parameters: &inner, run }.check();
                let run = |x: &[Tensor], p: &[ParameterRef]| feed_forward(&x[0], &affines(p)[0], &affines(p)[1], activation);
                Proof { inputs: &inputs, parameters: &all, run }.check();
            }
        }
    }

    #[test]
    fn gradients_add_up_over_micro_batches() {
        let affine = &wrapped(&random_affine(2, &[3, 4], 0.5))[0];
        let gradient = |parts: &[Tensor]| {
            affine.weight.zero_gradient();
            for part in parts {
                let x = candle_core::Var::from_tensor(part).unwrap();
                linear(&x, affine).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
            }
            numbers(&affine.weight.gradient_tensor().unwrap())
        };
        let x = random(1, &[6, 4], 1.0);
        let parts = [x.narrow(0, 0, 2).unwrap().copy().unwrap(), x.narrow(0, 2, 4).unwrap().copy().unwrap()];
        assert_close("accumulated gradient", &gradient(&parts), &gradient(&[x]), 1e-12, 1e-12);
    }

    #[test]
    fn shapes_number_types_and_rows_of_none() {
        let affine = &wrapped(&random_affine(2, &[3, 4], 0.5))[0];
        assert!(linear(&random(1, &[6, 5], 1.0), affine).unwrap_err().to_string().contains("[3, 5]"));
        assert!(linear(&random(1, &[6, 4], 1.0).to_dtype(candle_core::DType::F32).unwrap(), affine).is_err());
        let none = candle_core::Var::from_tensor(&random(1, &[0, 4], 1.0)).unwrap();
        let y = linear_activated(&none, affine, Activation::Gelu).unwrap();
        assert_eq!(y.dims(), [0, 3]);
        y.sum_all().unwrap().backward().unwrap();
        assert_eq!(numbers(&affine.weight.gradient_tensor().unwrap()), [0.0; 12]);
    }
}
