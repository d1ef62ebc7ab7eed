//! Losses of rows against rows, of classes that are each for themselves and of numbers; and what makes a sequence's vector of its states.

use super::operations::{softplus, total};
use super::place::{Place, below};
use crate::batcher::Batch;
use crate::loss::cosine::EPSILON;
use crate::loss::logit_mse::teacher_logits;
use crate::loss::{Part, StepObjective};
use candle_core::{D, DType, Device, Result, Tensor};
use logitcache::target::{Pooling, Problem};

/// The least length that a row is divided by, squared.
const LEAST_SQUARED_LENGTH: f64 = 1e-24;

/// The sum over the rows of `x` `[rows, width]` of 1 - cos with the same row of `teacher`, divided by `count`.
pub(super) fn cosine_loss(x: &Tensor, teacher: &Tensor, count: usize) -> Result<Tensor> {
    let inner = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
    let lengths = ((inner(x, x)? + EPSILON)? * (inner(teacher, teacher)? + EPSILON)?)?.sqrt()?;
    let cosines = (inner(x, teacher)? / lengths)?;
    (1.0 - cosines)?.sum_all()? / count.max(1) as f64
}

/// The sum over the rows of `x` `[rows, width]` of the mean squared difference from the same row of `teacher`, divided by `count`.
pub(super) fn squared_loss(x: &Tensor, teacher: &Tensor, count: usize) -> Result<Tensor> {
    total(&(x - teacher)?.sqr()?)? / (count.max(1) * x.dim(D::Minus1)?) as f64
}

/// A teacher's numbers on the device.
pub(super) fn upload(teacher: &[f32], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::from_slice(teacher, teacher.len(), device)?.to_dtype(dtype)
}

/// The same as rows like those of `x`.
pub(super) fn rows_like(teacher: &Tensor, x: &Tensor) -> Result<Tensor> {
    if teacher.elem_count() != x.elem_count() {
        candle_core::bail!("{} teacher numbers for {:?}", teacher.elem_count(), x.dims());
    }
    teacher.reshape(x.shape())
}

/// `[sequences, width]` from the rows `[tokens, width]` of a batch: the mean of each sequence, its first row or the largest of each column.
pub(super) fn pool(x: &Tensor, place: &Place, pooling: Pooling) -> Result<Tensor> {
    let padded = place.pad(x)?;
    let sequences = place.packing.sequences();
    match pooling {
        // A GPU's product takes no rows that lie further apart than wide.
        Pooling::Cls => padded.narrow(1, 0, 1)?.squeeze(1)?.contiguous(),
        Pooling::Mean => {
            let shares: Vec<f64> = (0..sequences).map(|sequence| 1.0 / place.packing.range(sequence).len() as f64).collect();
            let shares = Tensor::from_vec(shares, (sequences, 1), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
            padded.sum(1)?.broadcast_mul(&shares)
        }
        Pooling::Max => {
            let mask = place.mask.reshape((sequences, place.packing.longest(), 1))?;
            let largest = padded.detach().broadcast_add(&mask)?.argmax_keepdim(1)?;
            padded.gather(&largest, 1)?.squeeze(1)
        }
    }
}

/// Rows `[rows, width]` over their lengths.
pub(super) fn unit_length(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.maximum(LEAST_SQUARED_LENGTH)?.sqrt()?)
}

/// The parts of `logits` `[rows, classes]` of classes that are each for themselves, or of numbers.
pub(super) fn output_losses(logits: &Tensor, batch: &Batch, problem: Problem, step: &StepObjective) -> Result<Vec<(Part, Tensor)>> {
    let (rows, classes) = logits.dims2()?;
    let Batch { top_ids, log_probabilities, max_logit, label_values, has_label_values, .. } = batch;
    if [top_ids.len(), log_probabilities.len()] != [rows * classes; 2] || max_logit.len() != rows {
        candle_core::bail!("{} ids and {} largest logits for {rows} rows of {classes} classes", top_ids.len(), max_logit.len());
    }
    below("class", top_ids, classes)?;
    let upload =
        |numbers: Vec<f64>| Tensor::from_vec(numbers, (rows, classes), &Device::Cpu)?.to_dtype(logits.dtype())?.to_device(logits.device());
    let mut by_class = vec![0.0; rows * classes];
    for (row, largest) in max_logit.iter().enumerate() {
        let columns = row * classes..(row + 1) * classes;
        let teacher = teacher_logits(&log_probabilities[columns.clone()], *largest, step.temperature);
        top_ids[columns].iter().zip(teacher).for_each(|(id, teacher)| by_class[row * classes + *id as usize] = teacher);
    }
    let sum = |x: Tensor, count: usize| total(&x)? * (1.0 / count.max(1) as f64);
    let mut losses = Vec::new();
    if step.weights.has(Part::Ce) && problem == Problem::MultiLabel {
        let [teacher, student] = [upload(by_class.iter().map(|logit| logit / step.temperature).collect())?, (logits / step.temperature)?];
        let divergence = binary(&teacher, &teacher, &student)?;
        let factor = Part::Ce.temperature_factor(step.temperature);
        losses.push((Part::Ce, (sum(divergence, step.normalisers.asked)? * factor)?));
    }
    if step.weights.has(Part::LogitMse) {
        let squares = (logits - upload(by_class)?)?.sqr()?;
        losses.push((Part::LogitMse, (sum(squares, step.normalisers.asked)? * (1.0 / classes as f64))?));
    }
    if step.weights.has(Part::Gold) && has_label_values.len() == rows {
        if label_values.len() != rows * classes {
            candle_core::bail!("{} gold numbers for {rows} rows of {classes} classes", label_values.len());
        }
        let gold = upload(label_values.iter().map(|value| f64::from(*value)).collect())?;
        let known = has_label_values.iter().flat_map(|known| std::iter::repeat_n(f64::from(u8::from(*known)), classes)).collect();
        let each = match problem {
            Problem::MultiLabel => ((&gold * softplus(&logits.neg()?)?)? + ((1.0 - &gold)? * softplus(logits)?)?)?,
            _ => (logits - gold)?.sqr()?,
        };
        losses.push((Part::Gold, (sum((each * upload(known)?)?, step.normalisers.labelled)? * (1.0 / classes as f64))?));
    }
    Ok(losses)
}

/// KL of the outcomes (present or not) of `teacher` logits from those of `student`, where sigmoid(`shares`) is the teacher's probability.
fn binary(shares: &Tensor, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    let (present, absent) = (softplus(&shares.neg()?)?.neg()?.exp()?, softplus(shares)?.neg()?.exp()?);
    let of_present = (present * (softplus(&student.neg()?)? - softplus(&teacher.neg()?)?)?)?;
    of_present + (absent * (softplus(student)? - softplus(teacher)?)?)?
}
