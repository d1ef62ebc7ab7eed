//! What is done with all gradients: their norm, and the step of the optimiser.

use super::{Argument, Size, cuda, launch, pointer, room};
use candle_core::{DType, Result, Tensor};

/// Blocks that add up the squares of a gradient; each leaves a number.
const BLOCKS: usize = 128;

/// `[numbers]`, in double precision: sums of squares of parts of `x`, to be added.
pub(in super::super) fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let (x, count) = (x.contiguous()?, x.elem_count());
    let blocks = count.div_ceil(1024).clamp(1, BLOCKS);
    let sums = room(blocks, DType::F64, x.device())?;
    launch(&cuda(&x)?, "sum_of_squares", &Size::rows(blocks), &[pointer(&x)?, pointer(&sums)?, Argument::Count(count as u32)])?;
    Ok(sums)
}

/// The numbers of a step of AdamW.
#[derive(Clone, Copy)]
pub(in super::super) struct Step {
    /// What the gradient is multiplied by.
    pub(in super::super) gradient_scale: f64,
    /// How much of the gradient each moment takes.
    pub(in super::super) new: [f64; 2],
    /// The learning rate over the first moment's correction.
    pub(in super::super) rate: f64,
    /// The root of the second moment's correction, inverted.
    pub(in super::super) root: f64,
    pub(in super::super) epsilon: f64,
    /// What is left of a value by decay.
    pub(in super::super) kept: f64,
}

/// Moves `value` and its two `moments` in place, by its `gradient`.
pub(in super::super) fn adamw(value: &Tensor, moments: [&Tensor; 2], gradient: &Tensor, step: Step) -> Result<()> {
    let (gradient, count) = (gradient.contiguous()?, value.elem_count());
    let tensors = [pointer(value)?, pointer(moments[0])?, pointer(moments[1])?, pointer(&gradient)?, Argument::Count(count as u32)];
    let Step { gradient_scale, new, rate, root, epsilon, kept } = step;
    let numbers = [gradient_scale, new[0], new[1], rate, root, epsilon, kept].map(|number| Argument::Number(number as f32));
    launch(&cuda(value)?, "adamw", &Size::numbers(count)?, &[&tensors[..], &numbers].concat())
}
