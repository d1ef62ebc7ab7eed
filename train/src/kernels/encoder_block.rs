//! An encoder's block as one operation: attention and a feed-forward part, each added to its input and normalised after.
//!
//! ```text
//! a = x + dropout(output(attention(x)))                    h = LayerNorm(a)
//! b = h + dropout(narrow(activation(widen(h))))            y = LayerNorm(b)
//! ```
//!
//! candle, which fills a buffer with zeros and adds to it for every activation in its graph, sees x and y alone. Kept for the backward pass are
//! the sums a and b with their moments, what the attention keeps, and what the activation was applied to; h is computed again. Gradients of the
//! residuals are not added: the products of the way back write onto them.
//!
//! Where only some rows of y are asked for, everything after the attention is computed for these alone.

use super::activate::{activate_and_differentiate, activated};
use super::activation::Activation;
use super::dropout::{DropoutPlan, DropoutSite, RowDropout};
use super::element::Element;
use super::gather_rows::{check_asked, gathered, scattered};
use super::layer_norm::{Moments, add_and_normalise, norm_gradients, normalised_again};
use super::linear::{
    Columns, add_input_gradient, add_weight_gradients, backward_affine, forward_affine, input_gradient, keep, outputs_of, taken,
};
use super::packing::Packing;
use super::parameter::Affine;
use super::self_attention::{AttentionParameters, Contexts, ProjectedAttention};
use super::storage::{check_parameter, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};

/// The parameters of a block.
#[derive(Clone)]
pub struct BlockParameters {
    /// The attention's linear maps, `[width, width]` each.
    pub attention: AttentionParameters,
    /// After the attention, `[width]`.
    pub attention_norm: Affine,
    /// `[between, width]`.
    pub widen: Affine,
    /// `[width, between]`.
    pub narrow: Affine,
    /// After the feed-forward part, `[width]`.
    pub output_norm: Affine,
}

/// The settings of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSettings {
    /// A divisor of the width.
    pub heads: usize,
    /// Between widening and narrowing.
    pub activation: Activation,
    /// Of both norms, added to the variance.
    pub epsilon: f64,
    /// Names the sites of dropout.
    pub layer: u32,
    /// Whether dropout acts on the attention's output projection...
    pub drops_attended: bool,
    /// ... and on what was narrowed. On the attention's probabilities it always does.
    pub drops_narrowed: bool,
}

/// `[rows, width]` from `x` `[rows, width]`, or `[asked, width]` where `asked` (strictly ascending) says which rows are wanted.
pub fn encoder_block(
    x: &Tensor,
    parameters: &BlockParameters,
    settings: &BlockSettings,
    packing: &Arc<Packing>,
    plan: &DropoutPlan,
    asked: Option<&[u32]>,
) -> Result<Tensor> {
    let operation = "encoder_block";
    let (rows, width) = rows_and_width(operation, x)?;
    let BlockSettings { heads, layer, .. } = *settings;
    let attention = ProjectedAttention::new(operation, x, &parameters.attention, heads, packing, plan, layer)?;
    let between = outputs_of(operation, &parameters.widen, x, width)?;
    check_parameter(operation, &parameters.narrow.weight, x.dtype(), &[width, between])?;
    for affine in [&parameters.narrow.bias, &parameters.attention_norm.weight, &parameters.attention_norm.bias] {
        check_parameter(operation, affine, x.dtype(), &[width])?;
    }
    for affine in [&parameters.output_norm.weight, &parameters.output_norm.bias] {
        check_parameter(operation, affine, x.dtype(), &[width])?;
    }
    asked.iter().try_for_each(|asked| check_asked(operation, asked, rows))?;
    let asked = asked.filter(|asked| asked.len() < rows).map(<[u32]>::to_vec);
    let dropout = |wanted: bool, site| match wanted {
        true => RowDropout::new(packing, asked.as_deref(), plan, site),
        false => Ok(None),
    };
    let (attended, narrowed) = (DropoutSite::AttentionOutput(layer), DropoutSite::FeedForward(layer));
    let (drop_attended, drop_narrowed) = (dropout(settings.drops_attended, attended)?, dropout(settings.drops_narrowed, narrowed)?);
    for_dtype!(operation, x.dtype(), T => x.apply_op1(EncoderBlock::<T> {
        attention,
        parameters: parameters.clone(),
        settings: *settings,
        drop_attended,
        drop_narrowed,
        asked,
        tracked: x.track_op(),
        saved: Mutex::new(None),
    }))
}

struct EncoderBlock<T> {
    attention: ProjectedAttention,
    parameters: BlockParameters,
    settings: BlockSettings,
    drop_attended: Option<RowDropout>,
    drop_narrowed: Option<RowDropout>,
    asked: Option<Vec<u32>>,
    tracked: bool,
    saved: Mutex<Option<Saved<T>>>,
}

/// With `asked` for all rows where they are all wanted.
struct Saved<T> {
    /// Of all rows.
    contexts: Contexts<T>,
    /// `[asked, width]`: a.
    attended: Vec<T>,
    attended_moments: Vec<Moments<T>>,
    /// `[asked, between]`: what the activation was applied to.
    before: Vec<T>,
    /// `[asked, width]`: b.
    narrowed: Vec<T>,
    narrowed_moments: Vec<Moments<T>>,
}

impl<T: Element> EncoderBlock<T> {
    /// The rows that are asked.
    fn wanted<'a>(&self, x: &'a [T]) -> Cow<'a, [T]> {
        match &self.asked {
            Some(asked) => Cow::Owned(gathered(x, self.attention.width(), asked)),
            None => Cow::Borrowed(x),
        }
    }

    /// All rows, with zeros where they were not asked.
    fn spread(&self, y: Vec<T>) -> Vec<T> {
        match &self.asked {
            Some(asked) => scattered(&y, self.attention.width(), asked, self.attention.packing().rows()),
            None => y,
        }
    }

    fn forward(&self, x: &[T]) -> Result<Vec<T>> {
        let BlockParameters { attention_norm, widen, narrow, output_norm, .. } = &self.parameters;
        let epsilon = self.settings.epsilon;
        let contexts = self.attention.contexts(x)?;
        let mut attended = forward_affine(&self.wanted(&contexts.context), self.attention.output())?;
        let (hidden, attended_moments) =
            add_and_normalise(&mut attended, self.drop_attended.as_ref(), &self.wanted(x), attention_norm, epsilon)?;
        let before = forward_affine(&hidden, widen)?;
        let mut narrowed = forward_affine(&activated(&before, self.settings.activation), narrow)?;
        let (y, narrowed_moments) = add_and_normalise(&mut narrowed, self.drop_narrowed.as_ref(), &hidden, output_norm, epsilon)?;
        keep(&self.saved, Saved { contexts, attended, attended_moments, before, narrowed, narrowed_moments }, self.tracked);
        Ok(y)
    }

    fn backward(&self, dy: &[T], x: &[T]) -> Result<Vec<T>> {
        let Saved { contexts, attended, attended_moments, before, narrowed, narrowed_moments } = taken("encoder_block", &self.saved)?;
        let BlockParameters { attention_norm, output_norm, .. } = &self.parameters;
        let width = self.attention.width();
        let slopes = norm_gradients(output_norm, dy, &narrowed, None, &narrowed_moments)?;
        drop(narrowed);
        let hidden = normalised_again(&attended, &attended_moments, attention_norm)?;
        let slopes = self.feed_forward_backward(slopes, before, &hidden)?;
        drop(hidden);
        let slopes = norm_gradients(attention_norm, &slopes, &attended, None, &attended_moments)?;
        drop(attended);
        let dropped = self.drop_attended.as_ref().map(|dropout| dropout.apply(&slopes, width));
        let context = self.wanted(&contexts.context);
        let of_context = backward_affine(self.attention.output(), dropped.as_deref().unwrap_or(&slopes), &context)?;
        drop((context, dropped));
        self.attention.backward(contexts, &self.spread(of_context), x, Some(self.spread(slopes)))
    }

    /// From `slopes`, the gradient of b, that of h: what reaches it through the residual and through the feed-forward part.
    fn feed_forward_backward(&self, mut slopes: Vec<T>, before: Vec<T>, hidden: &[T]) -> Result<Vec<T>> {
        let BlockParameters { widen, narrow, .. } = &self.parameters;
        let (width, between) = (self.attention.width(), widen.bias.elements());
        let dropped = self.drop_narrowed.as_ref().map(|dropout| dropout.apply(&slopes, width));
        let dy = dropped.as_deref().unwrap_or(&slopes);
        let mut activation = before;
        let mut gradient = narrow.weight.with_value(|weight: &[T]| input_gradient(narrow.weight.precision(), dy, weight, width))?;
        activate_and_differentiate(&mut activation, &mut gradient, self.settings.activation);
        add_weight_gradients(narrow, Columns { values: dy, row_stride: width, first: 0 }, &activation)?;
        drop((activation, dropped));
        add_weight_gradients(widen, Columns { values: &gradient, row_stride: between, first: 0 }, hidden)?;
        let precision = widen.weight.precision();
        widen.weight.with_value(|weight: &[T]| add_input_gradient(precision, &gradient, weight, between, &mut slopes))?;
        Ok(slopes)
    }
}

impl<T: Element> CustomOp1 for EncoderBlock<T> {
    fn name(&self) -> &'static str {
        "encoder_block"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(slice_of(self.name(), storage, layout)?)?;
        let width = self.attention.width();
        Ok((T::to_cpu_storage_owned(y), (self.asked.as_ref().map_or(layout.dims()[0], Vec::len), width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slice(self.name(), gradient, |dy: &[T]| with_slice(self.name(), x, |x: &[T]| self.backward(dy, x)))???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, affines, assert_close, numbers, random, random_affine};
    use crate::kernels::{Parameter, ParameterRef, add_layer_norm, dropout, feed_forward, gather_rows, self_attention};

    const WIDTH: usize = 6;
    const BETWEEN: usize = 10;
    const SETTINGS: BlockSettings =
        BlockSettings { heads: 2, activation: Activation::Gelu, epsilon: 1e-5, layer: 1, drops_attended: true, drops_narrowed: true };
    const PLAN: DropoutPlan = DropoutPlan { seed: 1, step: 3, hidden: 0.2, attention: 0.3 };

    fn tensors() -> Vec<Tensor> {
        let shapes: [&[usize]; 8] =
            [&[WIDTH, WIDTH], &[WIDTH, WIDTH], &[WIDTH, WIDTH], &[WIDTH, WIDTH], &[WIDTH], &[BETWEEN, WIDTH], &[WIDTH, BETWEEN], &[WIDTH]];
        shapes.iter().enumerate().flat_map(|(i, shape)| random_affine(10 * i as u64 + 10, shape, 0.6)).collect()
    }

    fn parameters(list: &[ParameterRef]) -> BlockParameters {
        let [query, key, value, output, attention_norm, widen, narrow, output_norm] = affines(list).try_into().ok().unwrap();
        let attention = AttentionParameters { query, key, value, output };
        BlockParameters { attention, attention_norm, widen, narrow, output_norm }
    }

    fn packing() -> Arc<Packing> {
        Packing::new(&[0, 1, 6, 24], &[3, 1, 2], &[0, 1, 0]).unwrap()
    }

    /// The same out of the operations that each do one thing.
    fn in_parts(x: &Tensor, block: &BlockParameters, settings: &BlockSettings, plan: &DropoutPlan, asked: Option<&[u32]>) -> Tensor {
        let (packing, drop) = (packing(), |x: &Tensor, wanted, site| match wanted {
            true => dropout(x, &self::packing(), plan, site).unwrap(),
            false => x.clone(),
        });
        let attended = self_attention(x, &block.attention, settings.heads, &packing, plan, settings.layer).unwrap();
        let attended = drop(&attended, settings.drops_attended, DropoutSite::AttentionOutput(settings.layer));
        let hidden = add_layer_norm(&attended, x, &block.attention_norm, settings.epsilon).unwrap();
        let narrowed = feed_forward(&hidden, &block.widen, &block.narrow, settings.activation).unwrap();
        let narrowed = drop(&narrowed, settings.drops_narrowed, DropoutSite::FeedForward(settings.layer));
        let y = add_layer_norm(&narrowed, &hidden, &block.output_norm, settings.epsilon).unwrap();
        asked.map_or_else(|| y.clone(), |asked| gather_rows(&y, asked).unwrap())
    }

    const ASKED: [Option<&[u32]>; 4] = [None, Some(&[0, 2, 5, 6, 23]), Some(&[7]), Some(&[])];

    #[test]
    fn it_equals_its_parts_and_its_gradient_is_the_slope() {
        let (x, tensors, packing) = (random(1, &[24, WIDTH], 1.0), tensors(), packing());
        let wrapped: Vec<ParameterRef> = tensors.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
        for (drops_attended, drops_narrowed) in [(true, true), (false, true), (true, false)] {
            let settings = BlockSettings { drops_attended, drops_narrowed, ..SETTINGS };
            for (asked, plan) in ASKED.into_iter().zip([PLAN, PLAN, DropoutPlan::off(), PLAN]) {
                let y = encoder_block(&x, &parameters(&wrapped), &settings, &packing, &plan, asked).unwrap();
                let expected = in_parts(&x, &parameters(&wrapped), &settings, &plan, asked);
                assert_eq!(y.dims(), expected.dims());
                assert_close("encoder block", &numbers(&y), &numbers(&expected), 1e-12, 1e-12);
            }
        }
        for asked in ASKED.into_iter().filter(|asked| asked.is_none_or(|asked| !asked.is_empty())) {
            let run = |x: &[Tensor], p: &[ParameterRef]| encoder_block(&x[0], &parameters(p), &SETTINGS, &packing, &PLAN, asked);
            Proof { inputs: std::slice::from_ref(&x), parameters: &tensors, run }.check();
        }
    }

    #[test]
    fn rows_of_none_give_no_gradient() {
        let wrapped: Vec<ParameterRef> = tensors().iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
        let x = candle_core::Var::from_tensor(&random(1, &[24, WIDTH], 1.0)).unwrap();
        let y = encoder_block(&x, &parameters(&wrapped), &SETTINGS, &packing(), &PLAN, Some(&[])).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(numbers(gradients.get(&x).unwrap()).iter().all(|slope| *slope == 0.0));
        assert!(wrapped.iter().all(|parameter| numbers(&parameter.gradient_tensor().unwrap()).iter().all(|slope| *slope == 0.0)));
    }

    #[test]
    fn shapes_and_rows_asked_are_checked() {
        let (x, mut tensors) = (random(1, &[24, WIDTH], 1.0), tensors());
        let message = |tensors: &[Tensor], asked: Option<&[u32]>| {
            let wrapped: Vec<ParameterRef> = tensors.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
            encoder_block(&x, &parameters(&wrapped), &SETTINGS, &packing(), &PLAN, asked).unwrap_err().to_string()
        };
        assert!(message(&tensors, Some(&[3, 2])).contains("ascending"));
        assert!(message(&tensors, Some(&[24])).contains("row 24"));
        tensors[12] = random(1, &[WIDTH, BETWEEN + 1], 1.0);
        assert!(message(&tensors, None).contains("must be F64 [6, 10]"));
    }
}
