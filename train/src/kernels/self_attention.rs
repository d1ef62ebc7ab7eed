//! The attention block: three projections, attention within each sequence, and the projection back.
//!
//! Hugging Face names the projections apart, so they are three parameters; here they are stacked into one `[3 * width, in]` matrix for each
//! pass, a copy of a few hundred kilobytes, so that queries, keys and values come out of one product.

use super::attention::Attention;
use super::dropout::DropoutPlan;
use super::element::Element;
use super::linear::{
    Columns, add_input_gradient, add_weight_gradients, backward_affine, forward, forward_affine, input_gradient, keep, outputs_of, taken,
};
use super::packing::Packing;
use super::parameter::{Affine, ParameterRef};
use super::precision::Precision;
use super::storage::{failure, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::sync::{Arc, Mutex};

/// The four linear maps of an attention block, each `[width, width]`.
#[derive(Clone)]
pub struct AttentionParameters {
    /// `q_lin`.
    pub query: Affine,
    /// `k_lin`.
    pub key: Affine,
    /// `v_lin`.
    pub value: Affine,
    /// `out_lin`.
    pub output: Affine,
}

/// `[rows, width]` from `x` `[rows, width]`: the output projection of multi-head attention within each sequence. `heads` must divide the
/// width; dropout acts on the probabilities, with the plan's attention probability, at this `layer`'s site.
pub fn self_attention(
    x: &Tensor,
    parameters: &AttentionParameters,
    heads: usize,
    packing: &Arc<Packing>,
    plan: &DropoutPlan,
    layer: u32,
) -> Result<Tensor> {
    let attention = ProjectedAttention::new("self_attention", x, parameters, heads, packing, plan, layer)?;
    for_dtype!("self_attention", x.dtype(), T => {
        x.apply_op1(SelfAttention::<T> { attention, tracked: x.track_op(), saved: Mutex::new(None) })
    })
}

/// One layer's attention with its projections.
pub(crate) struct ProjectedAttention {
    parameters: AttentionParameters,
    heads: usize,
    width: usize,
    packing: Arc<Packing>,
    plan: DropoutPlan,
    layer: u32,
}

/// What the attention's forward pass leaves to its backward pass.
pub(crate) struct Contexts<T> {
    /// `[rows, 3 * width]`.
    qkv: Vec<T>,
    /// `[rows, width]`: what the output projection reads.
    pub(crate) context: Vec<T>,
    /// `[rows, heads]`.
    normalisers: Vec<T>,
}

impl ProjectedAttention {
    /// Checks the parameters for an input `x` `[rows, width]`; see [`self_attention`].
    pub(crate) fn new(
        operation: &str,
        x: &Tensor,
        parameters: &AttentionParameters,
        heads: usize,
        packing: &Arc<Packing>,
        plan: &DropoutPlan,
        layer: u32,
    ) -> Result<Self> {
        let (rows, width) = rows_and_width(operation, x)?;
        if rows != packing.rows() {
            return Err(failure(operation, format!("{rows} rows for a packing of {}", packing.rows())));
        }
        for affine in [&parameters.query, &parameters.key, &parameters.value, &parameters.output] {
            let outputs = outputs_of(operation, affine, x, width)?;
            if outputs != width {
                return Err(failure(operation, format!("{} gives {outputs} columns instead of {width}", affine.weight.name())));
            }
        }
        if heads == 0 || width % heads != 0 {
            return Err(failure(operation, format!("{heads} heads do not divide a width of {width}")));
        }
        Ok(Self { parameters: parameters.clone(), heads, width, packing: packing.clone(), plan: *plan, layer })
    }

    fn attention(&self) -> Attention<'_> {
        Attention { packing: &self.packing, heads: self.heads, width: self.width, plan: self.plan, layer: self.layer }
    }

    fn projections(&self) -> [&Affine; 3] {
        [&self.parameters.query, &self.parameters.key, &self.parameters.value]
    }

    fn stacked<T: Element>(&self, pick: impl Fn(&Affine) -> &ParameterRef) -> Result<Vec<T>> {
        let mut stacked = Vec::with_capacity(3 * pick(self.projections()[0]).elements());
        for affine in self.projections() {
            pick(affine).with_value(|value: &[T]| stacked.extend_from_slice(value))?;
        }
        Ok(stacked)
    }

    fn precision(&self) -> Precision {
        self.parameters.query.weight.precision()
    }

    /// Columns of its input.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Which rows belong to which sequence.
    pub(crate) fn packing(&self) -> &Packing {
        &self.packing
    }

    /// The projection back.
    pub(crate) fn output(&self) -> &Affine {
        &self.parameters.output
    }

    /// The context of every row of `x` `[rows, width]`.
    pub(crate) fn contexts<T: Element>(&self, x: &[T]) -> Result<Contexts<T>> {
        let qkv: Vec<T> = forward(self.precision(), x, &self.stacked(|affine| &affine.weight)?, &self.stacked(|affine| &affine.bias)?);
        let (context, normalisers) = self.attention().forward(&qkv)?;
        Ok(Contexts { qkv, context, normalisers })
    }

    /// From the gradient of the context: adds those of the three projections, and gives that of `x`, added to `dx` where there is one.
    pub(crate) fn backward<T: Element>(&self, contexts: Contexts<T>, gradient: &[T], x: &[T], dx: Option<Vec<T>>) -> Result<Vec<T>> {
        let Contexts { qkv, context, normalisers } = contexts;
        let slopes = self.attention().backward(&qkv, &context, &normalisers, gradient)?;
        drop((qkv, context));
        for (part, affine) in self.projections().into_iter().enumerate() {
            add_weight_gradients(affine, Columns { values: &slopes, row_stride: 3 * self.width, first: part * self.width }, x)?;
        }
        let weight: Vec<T> = self.stacked(|affine| &affine.weight)?;
        match dx {
            None => Ok(input_gradient(self.precision(), &slopes, &weight, 3 * self.width)),
            Some(mut dx) => {
                add_input_gradient(self.precision(), &slopes, &weight, 3 * self.width, &mut dx);
                Ok(dx)
            }
        }
    }
}

struct SelfAttention<T> {
    attention: ProjectedAttention,
    tracked: bool,
    saved: Mutex<Option<Contexts<T>>>,
}

impl<T: Element> CustomOp1 for SelfAttention<T> {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let contexts: Contexts<T> = self.attention.contexts(slice_of(self.name(), storage, layout)?)?;
        let y = forward_affine(&contexts.context, self.attention.output())?;
        keep(&self.saved, contexts, self.tracked);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let contexts = taken(self.name(), &self.saved)?;
        let slopes = with_slice(self.name(), gradient, |dy: &[T]| backward_affine(self.attention.output(), dy, &contexts.context))??;
        let dx = with_slice(self.name(), x, |x: &[T]| self.attention.backward(contexts, &slopes, x, None))??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use crate::kernels::proof::{Proof, affines, assert_close, numbers, random, random_affine};

    const PLAN: DropoutPlan = DropoutPlan { seed: 1, step: 3, hidden: 0.0, attention: 0.3 };

    fn weights(width: usize) -> Vec<Tensor> {
        (0..4).flat_map(|i| random_affine(10 * i + 10, &[width, width], 0.6)).collect()
    }

    fn parameters(list: &[ParameterRef]) -> AttentionParameters {
        let [query, key, value, output] = &affines(list)[..] else { panic!("four linear maps") };
        AttentionParameters { query: query.clone(), key: key.clone(), value: value.clone(), output: output.clone() }
    }

    fn packing(lengths: &[usize]) -> Arc<Packing> {
        let mut offsets = vec![0];
        lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
        let ids: Vec<u64> = (0..lengths.len() as u64).collect();
        Packing::new(&offsets, &ids, &vec![0; lengths.len()]).unwrap()
    }

    /// One sequence without any packing, in candle's own operations.
    fn reference(x: &Tensor, weights: &[Tensor], heads: usize) -> Result<Tensor> {
        let (length, width) = x.dims2()?;
        let linear = |x: &Tensor, i: usize| x.matmul(&weights[2 * i].t()?)?.broadcast_add(&weights[2 * i + 1]);
        let split = |x: Tensor| x.reshape((length, heads, width / heads))?.transpose(0, 1)?.contiguous();
        let (q, k, v) = (split(linear(x, 0)?)?, split(linear(x, 1)?)?, split(linear(x, 2)?)?);
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / ((width / heads) as f64).sqrt())?;
        let context = candle_nn::ops::softmax(&scores, 2)?.matmul(&v)?;
        linear(&context.transpose(0, 1)?.contiguous()?.reshape((length, width))?, 3)
    }

    #[test]
    fn packed_sequences_equal_each_alone() {
        for (width, heads, lengths) in [(6, 2, vec![1, 5, 2]), (22, 2, vec![17, 1, 33]), (4, 4, vec![3]), (5, 1, vec![16])] {
            let packing = packing(&lengths);
            let (x, weights) = (random(1, &[packing.rows(), width], 1.0), weights(width));
            let wrapped: Vec<ParameterRef> = weights.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
            let y = self_attention(&x, &parameters(&wrapped), heads, &packing, &DropoutPlan::off(), 0).unwrap();
            let mut expected = Vec::new();
            for i in 0..packing.sequences() {
                let range = packing.range(i);
                expected.extend(numbers(&reference(&x.narrow(0, range.start, range.len()).unwrap(), &weights, heads).unwrap()));
            }
            assert_close("attention", &numbers(&y), &expected, 1e-12, 1e-12);
        }
    }

    #[test]
    fn gradients_with_and_without_dropout() {
        for plan in [DropoutPlan::off(), PLAN] {
            let packing = packing(&[1, 5, 18]);
            let (inputs, weights) = ([random(1, &[24, 6], 1.0)], weights(6));
            let run = |x: &[Tensor], p: &[ParameterRef]| self_attention(&x[0], &parameters(p), 2, &packing, &plan, 1);
            Proof { inputs: &inputs, parameters: &weights, run }.check();
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let packing = packing(&[4]);
        let x = random(1, &[4, 6], 100.0).to_dtype(candle_core::DType::F32).unwrap();
        let wrapped: Vec<ParameterRef> =
            weights(6).iter().map(|tensor| Parameter::new("p", &tensor.to_dtype(x.dtype()).unwrap()).unwrap()).collect();
        let x = candle_core::Var::from_tensor(&x).unwrap();
        let y = self_attention(&x, &parameters(&wrapped), 2, &packing, &DropoutPlan::off(), 0).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(numbers(&y).iter().chain(&numbers(gradients.get(&x).unwrap())).all(|value| value.is_finite()));
    }

    #[test]
    fn heads_rows_and_shapes_are_checked() {
        let wrapped: Vec<ParameterRef> = weights(6).iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
        let message = |x: Tensor, heads, lengths: &[usize]| {
            let result = self_attention(&x, &parameters(&wrapped), heads, &packing(lengths), &DropoutPlan::off(), 0);
            result.unwrap_err().to_string()
        };
        assert!(message(random(1, &[4, 6], 1.0), 4, &[4]).contains("4 heads"));
        assert!(message(random(1, &[4, 6], 1.0), 2, &[5]).contains("4 rows"));
        assert!(message(random(1, &[4, 5], 1.0), 1, &[4]).contains("[6, 5]"));
    }
}
