//! Linear maps with or without a bias, whose weights lie as their model's files have them.
//!
//! A Llama's maps have no bias and store `[out, in]`, a GPT-2's store `[in, out]`. A product takes either, so that nothing is ever turned round.

use super::element::Element;
use super::linear::Columns;
use super::matrix::{Matrix, Threads, add_column_sums, multiply_in};
use super::parameter::{Affine, ParameterRef};
use super::storage::{check_parameter, failure, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// A linear map.
#[derive(Clone)]
pub struct Projection {
    /// `[out, in]`, or `[in, out]` where `inputs_first`.
    pub weight: ParameterRef,
    /// `[out]`.
    pub bias: Option<ParameterRef>,
    /// Which way the weight lies.
    pub inputs_first: bool,
}

impl From<Affine> for Projection {
    fn from(affine: Affine) -> Self {
        Self { weight: affine.weight, bias: Some(affine.bias), inputs_first: false }
    }
}

/// `[rows, out]`: the map of every row of `x` `[rows, in]`.
pub fn project(x: &Tensor, projection: &Projection) -> Result<Tensor> {
    let (_, inputs) = rows_and_width("project", x)?;
    projection.check("project", x, inputs)?;
    for_dtype!("project", x.dtype(), T => x.apply_op1(Project::<T> { projection: projection.clone(), element: PhantomData }))
}

impl Projection {
    /// Columns of its result, after checking that it takes rows of `x`, which are `inputs` wide.
    pub(crate) fn check(&self, operation: &str, x: &Tensor, inputs: usize) -> Result<usize> {
        let outputs = self.outputs();
        if outputs == 0 {
            return Err(failure(operation, format!("{} is no matrix with outputs", self.weight.name())));
        }
        let shape = if self.inputs_first { [inputs, outputs] } else { [outputs, inputs] };
        check_parameter(operation, &self.weight, x.dtype(), &shape)?;
        self.bias.iter().try_for_each(|bias| check_parameter(operation, bias, x.dtype(), &[outputs]))?;
        Ok(outputs)
    }

    /// Columns of its result.
    pub(crate) fn outputs(&self) -> usize {
        match (self.weight.shape().dims(), self.inputs_first) {
            ([_, outputs], true) | ([outputs, _], false) => *outputs,
            _ => 0,
        }
    }

    fn inputs(&self) -> usize {
        self.weight.elements() / self.outputs()
    }

    /// The weight as `[in, out]`.
    fn forwards<'a, T: Element>(&self, weight: &'a [T]) -> Matrix<'a, T> {
        if self.inputs_first {
            Matrix::new(weight, self.inputs(), self.outputs())
        } else {
            Matrix::new(weight, self.outputs(), self.inputs()).transposed()
        }
    }

    /// Writes the map of `x` `[rows, in]` into the neighbouring columns of `y` from `first` on, whose rows lie `row_stride` apart.
    pub(crate) fn forward_into<T: Element>(&self, x: &[T], y: &mut [T], first: usize, row_stride: usize) -> Result<()> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = x.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        if let Some(bias) = &self.bias {
            bias.with_value(|bias: &[T]| {
                let rows = y.par_chunks_mut(row_stride).with_min_len(16);
                rows.for_each(|row| row[first..first + outputs].copy_from_slice(bias));
            })?;
        }
        self.weight.with_value(|weight: &[T]| {
            let x = Matrix::new(x, rows, inputs);
            multiply_in(self.weight.precision(), &mut y[first..], row_stride, self.bias.is_some(), x, self.forwards(weight), Threads::All);
        })
    }

    /// The map of `x` `[rows, in]`.
    pub(crate) fn forward<T: Element>(&self, x: &[T]) -> Result<Vec<T>> {
        let outputs = self.outputs();
        let mut y = vec![T::zero(); x.len() / self.inputs() * outputs];
        self.forward_into(x, &mut y, 0, outputs)?;
        Ok(y)
    }

    /// Adds the gradients of weight and bias, given the gradient `dy` of the result and `x` `[rows, in]`.
    pub(crate) fn add_gradients<T: Element>(&self, dy: Columns<'_, T>, x: &[T]) -> Result<()> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = x.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        let (slopes, x) = (Matrix::strided(&dy.values[dy.first..], rows, outputs, dy.row_stride), Matrix::new(x, rows, inputs));
        self.weight.add_gradient(|sink: &mut [T], accumulate| match self.inputs_first {
            true => multiply_in(self.weight.precision(), sink, outputs, accumulate, x.transposed(), slopes, Threads::All),
            false => multiply_in(self.weight.precision(), sink, inputs, accumulate, slopes.transposed(), x, Threads::All),
        })?;
        match &self.bias {
            Some(bias) => bias.with_gradient(|sink: &mut [T]| add_column_sums(dy.values, dy.row_stride, dy.first, sink)),
            None => Ok(()),
        }
    }

    /// Writes the gradient of the input into `dx` `[rows, in]`, or adds it where `accumulate`, given the gradient `dy` of the result.
    pub(crate) fn input_gradient<T: Element>(&self, dy: Columns<'_, T>, dx: &mut [T], accumulate: bool) -> Result<()> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = dx.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        let slopes = Matrix::strided(&dy.values[dy.first..], rows, outputs, dy.row_stride);
        self.weight.with_value(|weight: &[T]| {
            multiply_in(self.weight.precision(), dx, inputs, accumulate, slopes, self.forwards(weight).transposed(), Threads::All);
        })
    }

    /// Adds the gradients of weight and bias and gives that of `x`; `dy` is `[rows, out]`.
    pub(crate) fn backward<T: Element>(&self, dy: &[T], x: &[T]) -> Result<Vec<T>> {
        let columns = Columns { values: dy, row_stride: self.outputs(), first: 0 };
        self.add_gradients(columns, x)?;
        let mut dx = vec![T::zero(); x.len()];
        self.input_gradient(columns, &mut dx, false)?;
        Ok(dx)
    }
}

struct Project<T> {
    projection: Projection,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for Project<T> {
    fn name(&self) -> &'static str {
        "project"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y: Vec<T> = self.projection.forward(slice_of(self.name(), storage, layout)?)?;
        Ok((T::to_cpu_storage_owned(y), (layout.dims()[0], self.projection.outputs()).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(self.name(), gradient, |dy: &[T]| with_slice(self.name(), x, |x: &[T]| self.projection.backward(dy, x)))???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    /// A map of the parameters, the weight first, and a bias where there are two.
    fn projection(parameters: &[ParameterRef], inputs_first: bool) -> Projection {
        Projection { weight: parameters[0].clone(), bias: parameters.get(1).cloned(), inputs_first }
    }

    #[test]
    fn both_layouts_with_and_without_a_bias() {
        for (rows, inputs, outputs) in [(1, 1, 1), (19, 7, 13), (5, 33, 65)] {
            let (x, bias) = (random(1, &[rows, inputs], 1.0), random(3, &[outputs], 1.0));
            for inputs_first in [false, true] {
                let weight = random(2, &if inputs_first { [inputs, outputs] } else { [outputs, inputs] }, 0.5);
                let product = x.matmul(&if inputs_first { weight.clone() } else { weight.t().unwrap() }).unwrap();
                for parameters in [vec![weight.clone()], vec![weight.clone(), bias.clone()]] {
                    let expected = if parameters.len() == 2 { product.broadcast_add(&bias).unwrap() } else { product.clone() };
                    let wrapped: Vec<ParameterRef> = parameters.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
                    let found = project(&x, &projection(&wrapped, inputs_first)).unwrap();
                    assert_close("project", &numbers(&found), &numbers(&expected), 1e-12, 1e-12);
                    let run = |x: &[Tensor], p: &[ParameterRef]| project(&x[0], &projection(p, inputs_first));
                    Proof { inputs: std::slice::from_ref(&x), parameters: &parameters, run }.check();
                }
            }
        }
    }

    #[test]
    fn shapes_and_rows_of_none() {
        let weight = Parameter::new("weight", &random(2, &[3, 4], 1.0)).unwrap();
        let map = |inputs_first| Projection { weight: weight.clone(), bias: None, inputs_first };
        assert!(project(&random(1, &[2, 3], 1.0), &map(false)).unwrap_err().to_string().contains("[3, 3], found"));
        assert!(project(&random(1, &[2, 4], 1.0), &map(true)).unwrap_err().to_string().contains("[4, 4], found"));
        let none = candle_core::Var::from_tensor(&random(1, &[0, 4], 1.0)).unwrap();
        let y = project(&none, &map(false)).unwrap();
        assert_eq!(y.dims(), [0, 3]);
        y.sum_all().unwrap().backward().unwrap();
        assert_eq!(numbers(&weight.gradient_tensor().unwrap()), [0.0; 12]);
    }
}
