//! Scalars that bring their gradient along.
//!
//! A loss over many rows knows its gradient as soon as it knows its value, while the rows are still in the cache. Such a loss computes both at
//! once and becomes a candle operation only to hand the gradient over when `backward` arrives, multiplied by what arrives.

use super::element::Element;
use super::parameter::ParameterRef;
use super::storage::{failure, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Mutex;

/// The gradients of a scalar, taken at a gradient of 1.
pub(crate) struct Gradients<T> {
    /// With respect to the activation, in its shape.
    pub(crate) activation: Vec<T>,
    /// With respect to parameters, in buffers that are theirs from then on.
    pub(crate) parameters: Vec<(ParameterRef, Vec<T>)>,
}

struct Precomputed<T> {
    name: &'static str,
    value: f64,
    gradients: Mutex<Option<Gradients<T>>>,
}

/// A scalar tensor of `value` that depends on `x` with these gradients (none: `x` is not tracked).
pub(crate) fn precomputed<T: Element>(name: &'static str, x: &Tensor, value: f64, gradients: Option<Gradients<T>>) -> Result<Tensor> {
    x.apply_op1(Precomputed { name, value, gradients: Mutex::new(gradients) })
}

/// Pieces of a buffer that one task scales.
const PIECE: usize = 1 << 15;

impl<T: Element> CustomOp1 for Precomputed<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((T::to_cpu_storage_owned(vec![T::from_f64(self.value)]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let taken = self.gradients.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Gradients { mut activation, parameters } = taken.ok_or_else(|| failure(self.name, "its backward pass runs once"))?;
        let factor = with_slice(self.name, gradient, |gradient: &[T]| gradient[0])?;
        let scale = |values: &mut [T]| values.par_chunks_mut(PIECE).flatten().for_each(|value| *value *= factor);
        if factor != T::one() {
            scale(&mut activation);
        }
        for (parameter, mut computed) in parameters {
            if factor != T::one() {
                scale(&mut computed);
            }
            parameter.give_gradient(computed)?;
        }
        Ok(Some(tensor_of(activation, x.shape())?))
    }
}
