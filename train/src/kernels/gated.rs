//! A decoder's feed-forward block: gated (SwiGLU, Shazeer 2020) or plain, on maps with or without a bias.
//!
//! Gated: y = down(f(gate(x)) up(x)), f the activation. Backwards, with h = f(g) u: dg = dh u f'(g), du = dh f(g). Plain: y = down(f(up(x))).
//! What the maps give is kept, h is computed again.

use super::activate::{activate_and_differentiate, activated, gated_products, gated_slopes};
use super::activation::Activation;
use super::element::Element;
use super::linear::{Columns, keep, taken};
use super::projection::Projection;
use super::storage::{failure, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::sync::Mutex;

/// The maps of a feed-forward block.
#[derive(Clone)]
pub struct GatedParameters {
    /// Through the activation, a factor of what `up` gives; `None` puts the activation on `up` itself.
    pub gate: Option<Projection>,
    /// To the width between.
    pub up: Projection,
    /// Back to the hidden states.
    pub down: Projection,
    /// What is applied.
    pub activation: Activation,
}

/// `[rows, in]` from `x` `[rows, in]`.
pub fn gated_feed_forward(x: &Tensor, parameters: &GatedParameters) -> Result<Tensor> {
    let operation = "gated_feed_forward";
    let (_, inputs) = rows_and_width(operation, x)?;
    let between = parameters.up.check(operation, x, inputs)?;
    if let Some(gate) = &parameters.gate {
        let gates = gate.check(operation, x, inputs)?;
        if gates != between {
            return Err(failure(operation, format!("{} gives {gates} columns instead of {between}", gate.weight.name())));
        }
    }
    let outputs = parameters.down.check(operation, x, between)?;
    if outputs != inputs {
        return Err(failure(operation, format!("{} gives {outputs} columns instead of {inputs}", parameters.down.weight.name())));
    }
    for_dtype!(operation, x.dtype(), T => x.apply_op1(Gated::<T> {
        parameters: parameters.clone(),
        tracked: x.track_op(),
        saved: Mutex::new(None),
    }))
}

struct Gated<T> {
    parameters: GatedParameters,
    tracked: bool,
    saved: Mutex<Option<Saved<T>>>,
}

/// What the maps gave, `[rows, between]` each.
struct Saved<T> {
    gate: Option<Vec<T>>,
    up: Vec<T>,
}

impl<T: Element> Gated<T> {
    /// Puts h and the gradients of `gate` and `up` into the buffers of these names, from `slopes`, the gradient of h. Gives h, the gradient of
    /// the gate and that of `up`.
    fn differentiated(&self, saved: Saved<T>, mut slopes: Vec<T>) -> (Vec<T>, Option<Vec<T>>, Vec<T>) {
        let (activation, mut up) = (self.parameters.activation, saved.up);
        match saved.gate {
            Some(mut gate) => {
                gated_slopes(&mut gate, &mut up, &mut slopes, activation);
                (slopes, Some(gate), up)
            }
            None => {
                activate_and_differentiate(&mut up, &mut slopes, activation);
                (up, None, slopes)
            }
        }
    }
}

impl<T: Element> CustomOp1 for Gated<T> {
    fn name(&self) -> &'static str {
        "gated_feed_forward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[T] = slice_of(self.name(), storage, layout)?;
        let GatedParameters { gate, up, down, activation } = &self.parameters;
        let up = up.forward(x)?;
        let gate = gate.as_ref().map(|gate| gate.forward(x)).transpose()?;
        let between = match &gate {
            Some(gate) => gated_products(gate, &up, *activation),
            None => activated(&up, *activation),
        };
        let y = down.forward(&between)?;
        keep(&self.saved, Saved { gate, up }, self.tracked);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let saved = taken(self.name(), &self.saved)?;
        let GatedParameters { gate, up, down, .. } = &self.parameters;
        let width = up.outputs();
        let dx = with_slice(self.name(), gradient, |dy: &[T]| {
            let dy = Columns { values: dy, row_stride: down.outputs(), first: 0 };
            let mut slopes = vec![T::zero(); saved.up.len()];
            down.input_gradient(dy, &mut slopes, false)?;
            let (between, of_gate, of_up) = self.differentiated(saved, slopes);
            down.add_gradients(dy, &between)?;
            with_slice(self.name(), x, |x: &[T]| {
                let mut dx = up.backward(&of_up, x)?;
                if let (Some(gate), Some(of_gate)) = (gate, of_gate) {
                    let columns = Columns { values: &of_gate, row_stride: width, first: 0 };
                    gate.add_gradients(columns, x)?;
                    gate.input_gradient(columns, &mut dx, true)?;
                }
                Ok::<_, candle_core::Error>(dx)
            })?
        })??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};
    use crate::kernels::{Parameter, ParameterRef, activate};

    /// Two maps with biases, `[in, out]`, or three without, `[out, in]`.
    fn parameters(list: &[ParameterRef], activation: Activation) -> GatedParameters {
        let bare = |weight: &ParameterRef| Projection { weight: weight.clone(), bias: None, inputs_first: false };
        let whole = |i: usize| Projection { weight: list[i].clone(), bias: Some(list[i + 1].clone()), inputs_first: true };
        match list {
            [gate, up, down] => GatedParameters { gate: Some(bare(gate)), up: bare(up), down: bare(down), activation },
            _ => GatedParameters { gate: None, up: whole(0), down: whole(2), activation },
        }
    }

    #[test]
    fn both_forms_agree_with_candle_and_with_finite_differences() {
        for (rows, width, between) in [(1, 1, 1), (5, 7, 33), (19, 12, 20)] {
            let x = random(1, &[rows, width], 1.0);
            let gated = [random(2, &[between, width], 0.7), random(3, &[between, width], 0.7), random(4, &[width, between], 0.7)];
            let plain = [
                random(2, &[width, between], 0.7),
                random(5, &[between], 0.5),
                random(4, &[between, width], 0.7),
                random(6, &[width], 0.5),
            ];
            for activation in [Activation::Silu, Activation::GeluNew] {
                let map = |i: usize| x.matmul(&gated[i].t().unwrap()).unwrap();
                let expected = (activate(&map(0), activation).unwrap() * map(1)).unwrap().matmul(&gated[2].t().unwrap()).unwrap();
                check("gated", &x, &gated, activation, &expected);
                let inner = x.matmul(&plain[0]).unwrap().broadcast_add(&plain[1]).unwrap();
                let expected = activate(&inner, activation).unwrap().matmul(&plain[2]).unwrap().broadcast_add(&plain[3]).unwrap();
                check("plain", &x, &plain, activation, &expected);
            }
        }
    }

    fn check(form: &str, x: &Tensor, weights: &[Tensor], activation: Activation, expected: &Tensor) {
        let wrapped: Vec<ParameterRef> = weights.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
        let found = gated_feed_forward(x, &parameters(&wrapped, activation)).unwrap();
        assert_close(form, &numbers(&found), &numbers(expected), 1e-12, 1e-12);
        let run = |x: &[Tensor], p: &[ParameterRef]| gated_feed_forward(&x[0], &parameters(p, activation));
        Proof { inputs: std::slice::from_ref(x), parameters: weights, run }.check();
    }

    #[test]
    fn widths_are_checked() {
        let weights = |between: usize, back: usize| {
            let shapes = [[between, 4], [6, 4], [back, 6]];
            let wrapped: Vec<_> = shapes.iter().map(|shape| Parameter::new("p", &random(2, shape, 1.0)).unwrap()).collect();
            gated_feed_forward(&random(1, &[3, 4], 1.0), &parameters(&wrapped, Activation::Silu))
        };
        assert!(weights(6, 4).is_ok());
        assert!(weights(5, 4).unwrap_err().to_string().contains("5 columns instead of 6"));
        assert!(weights(6, 3).unwrap_err().to_string().contains("3 columns instead of 4"));
    }
}
