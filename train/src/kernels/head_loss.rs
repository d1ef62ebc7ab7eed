//! The last linear map to the logits (a tied decoder, a classifier) and the losses over the vocabulary or the classes, fused.
//!
//! Logits exist for a chunk of rows at a time. Each row's losses and their gradient are computed in place, then the chunk's gradient goes
//! through the decoder (see `head_tiles`); nothing of `[rows, vocabulary]` is ever whole in memory.

use super::element::Element;
use super::head_ids::FewIds;
use super::head_objectives::RowObjectives;
use super::head_row::{RowLosses, RowObjective};
use super::head_tiles::{ChunkGradients, Tiles};
use super::parameter::{Affine, ParameterRef};
use super::precomputed::{Gradients, precomputed};
use super::storage::{check_parameter, failure, for_dtype, rows_and_width, with_slice};
use crate::loss::{LossParts, Normalisers, Part, StepObjective};
use candle_core::{Result, Tensor};

/// What the asked rows are taught.
#[derive(Clone, Copy, Debug)]
pub struct HeadTargets<'a> {
    /// Stored ids per row, at least 1 and at most the vocabulary.
    pub k: usize,
    /// `[rows, k]`: the teacher's most probable ids, all different within a row.
    pub top_ids: &'a [u32],
    /// `[rows, k]`: the teacher's log-probabilities of those, at the training temperature.
    pub log_probabilities: &'a [f32],
    /// `[rows]`: the teacher's largest logit; empty where no part asks for it.
    pub max_logit: &'a [f32],
    /// `[rows]`: the gold answer of the row (for `mlm` the original id where it was masked), else -100.
    pub labels: &'a [i32],
}

/// The map of a row to its logits.
#[derive(Clone, Copy)]
struct Decoder<'a> {
    /// `[vocabulary, width]`.
    weight: &'a ParameterRef,
    /// `[vocabulary]`.
    bias: Option<&'a ParameterRef>,
}

/// The parts of the logits, of `rows` `[rows, width]` under `decoder` (`[vocabulary, width]`, `[vocabulary]`). Gives the weighted scalar tensor
/// and the unweighted parts, sums divided by the counts of the whole step; a part of weight 0 is not computed.
pub fn head_loss(rows: &Tensor, decoder: &Affine, targets: &HeadTargets<'_>, step: &StepObjective) -> Result<(Tensor, LossParts)> {
    decoded_loss(rows, Decoder { weight: &decoder.weight, bias: Some(&decoder.bias) }, targets, step)
}

/// [`head_loss`] under a decoder `[vocabulary, width]` without bias.
pub fn head_loss_without_bias(
    rows: &Tensor,
    weight: &ParameterRef,
    targets: &HeadTargets<'_>,
    step: &StepObjective,
) -> Result<(Tensor, LossParts)> {
    decoded_loss(rows, Decoder { weight, bias: None }, targets, step)
}

fn decoded_loss(rows: &Tensor, decoder: Decoder<'_>, targets: &HeadTargets<'_>, step: &StepObjective) -> Result<(Tensor, LossParts)> {
    let (count, width) = rows_and_width("head_loss", rows)?;
    let vocabulary = decoder.weight.elements() / width;
    check_parameter("head_loss", decoder.weight, rows.dtype(), &[vocabulary, width])?;
    decoder.bias.iter().try_for_each(|bias| check_parameter("head_loss", bias, rows.dtype(), &[vocabulary]))?;
    let StepObjective { weights, temperature, normalisers, .. } = *step;
    check_targets(targets, count, vocabulary, &normalisers)?;
    if weights.has(Part::LogitMse) && targets.max_logit.len() != count {
        return Err(failure("head_loss", format!("{} largest logits for {count} rows", targets.max_logit.len())));
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(failure("head_loss", format!("a temperature of {temperature}")));
    }
    let of_labels = match (weights.has(Part::Mlm), weights.has(Part::Gold)) {
        (true, true) => return Err(failure("head_loss", "mlm and gold are of the same labels")),
        (_, true) => Part::Gold,
        _ => Part::Mlm,
    };
    let few = if step.few_ids { FewIds::of(targets, vocabulary) } else { None };
    let counted = few.as_ref().map_or(vocabulary, FewIds::count);
    let objective = RowObjective {
        inverse_temperature: 1.0 / temperature,
        ce: weights.get(Part::Ce) * temperature / normalisers.asked.max(1) as f64,
        label_part: of_labels,
        label: weights.get(of_labels) / normalisers.labelled.max(1) as f64,
        whole: targets.k == vocabulary,
        others: RowObjectives::new(step, counted - targets.k),
    };
    for_dtype!("head_loss", rows.dtype(), T => {
        let (sums, gradients) = with_slice("head_loss", rows, |x: &[T]| {
            let decoded = DecodedRows { x, width, decoder, objective: &objective, tracked: rows.track_op() };
            match &few {
                Some(few) => decoded.run_few(targets, few),
                None => decoded.run(targets),
            }
        })??;
        let count = |part| if part == of_labels { normalisers.labelled } else { normalisers.asked };
        let values = Part::ALL.map(|part| part.temperature_factor(temperature) * sums.get(part) / count(part).max(1) as f64);
        let parts = LossParts::new(&weights, values);
        Ok((precomputed("head_loss", rows, parts.total, gradients)?, parts))
    })
}

fn check_targets(targets: &HeadTargets<'_>, rows: usize, vocabulary: usize, normalisers: &Normalisers) -> Result<()> {
    let HeadTargets { k, top_ids, log_probabilities, labels, .. } = *targets;
    if k == 0 || k > vocabulary {
        return Err(failure("head_loss", format!("k = {k} of a vocabulary of {vocabulary}")));
    }
    if top_ids.len() != rows * k || log_probabilities.len() != rows * k || labels.len() != rows {
        let found = format!("{} ids, {} log-probabilities and {} labels", top_ids.len(), log_probabilities.len(), labels.len());
        return Err(failure("head_loss", format!("{found} for {rows} rows and k = {k}")));
    }
    if let Some(id) = top_ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(failure("head_loss", format!("stored id {id} in a vocabulary of {vocabulary}")));
    }
    if let Some(label) = labels.iter().find(|label| **label >= vocabulary as i32 || (**label < 0 && **label != -100)) {
        return Err(failure("head_loss", format!("label {label} in a vocabulary of {vocabulary}")));
    }
    let labelled = labels.iter().filter(|label| **label >= 0).count();
    if rows > normalisers.asked || labelled > normalisers.labelled {
        let step = format!("{} asked and {} labelled rows", normalisers.asked, normalisers.labelled);
        return Err(failure("head_loss", format!("{rows} asked and {labelled} labelled rows in a step of {step}")));
    }
    Ok(())
}

/// Logits that a chunk holds: enough rows that adding to the decoder's gradient, a pass over all of it, is rare.
const CHUNK_LOGITS: usize = 1 << 24;

fn rows_per_chunk(rows: usize, vocabulary: usize) -> usize {
    let most = (CHUNK_LOGITS / vocabulary).clamp(16, 1024);
    // Chunks of one size, so that the last is not a sliver.
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Rows, what maps them to logits, and what they are taught.
struct DecodedRows<'a, T> {
    /// `[rows, width]`.
    x: &'a [T],
    width: usize,
    decoder: Decoder<'a>,
    objective: &'a RowObjective,
    tracked: bool,
}

impl<T: Element> DecodedRows<'_, T> {
    /// Over the whole vocabulary.
    fn run(&self, targets: &HeadTargets<'_>) -> Result<(RowLosses, Option<Gradients<T>>)> {
        let Decoder { weight, bias } = self.decoder;
        let mut dw: Vec<T> = if self.tracked && !self.x.is_empty() { weight.gradient_buffer()? } else { Vec::new() };
        let (losses, dx, db) =
            weight.with_value(|weight: &[T]| with_bias(bias, |bias: &[T]| self.over(weight, bias, targets, &mut dw)))??;
        Ok((losses, self.tracked.then(|| self.gradients(dx, dw, db))))
    }

    /// Over `few` of the vocabulary's ids: the others' gradients are 0.
    fn run_few(&self, targets: &HeadTargets<'_>, few: &FewIds) -> Result<(RowLosses, Option<Gradients<T>>)> {
        let (Decoder { weight, bias }, width) = (self.decoder, self.width);
        let taken = weight.with_value(|weight: &[T]| few.gather(weight, width))?;
        let taken_bias = with_bias(bias, |bias: &[T]| if bias.is_empty() { Vec::new() } else { few.gather(bias, 1) })?;
        let mut of_taken = vec![T::zero(); if self.tracked { taken.len() } else { 0 }];
        let (losses, dx, of_bias) = self.over(&taken, &taken_bias, &few.targets(targets), &mut of_taken);
        if !self.tracked {
            return Ok((losses, None));
        }
        let mut dw: Vec<T> = weight.gradient_buffer()?;
        few.scatter(&of_taken, width, &mut dw);
        let mut db = vec![T::zero(); weight.elements() / width];
        few.scatter(&of_bias, 1, &mut db);
        Ok((losses, Some(self.gradients(dx, dw, db))))
    }

    /// Losses, gradient of the rows and of the bias under `weight` `[ids, width]` and `bias` `[ids]` or empty; `dw` is written.
    fn over(&self, weight: &[T], bias: &[T], targets: &HeadTargets<'_>, dw: &mut [T]) -> (RowLosses, Vec<T>, Vec<T>) {
        let (width, tracked) = (self.width, self.tracked);
        let (rows, ids) = (self.x.len() / width, weight.len() / width);
        let (mut losses, mut db) = (RowLosses::default(), vec![T::zero(); ids]);
        let mut dx = vec![T::zero(); if tracked { self.x.len() } else { 0 }];
        if rows == 0 {
            return (losses, dx, db);
        }
        let chunk = rows_per_chunk(rows, ids);
        let tiles = Tiles::new(self.decoder.weight.precision(), weight, bias, width);
        tiles.with_buffers(chunk, targets.k, tracked, |buffers| {
            for first in (0..rows).step_by(chunk) {
                let here = first * width..rows.min(first + chunk) * width;
                let gradients =
                    tracked.then(|| ChunkGradients { rows: &mut dx[here.clone()], weight: &mut *dw, bias: &mut db, is_first: first == 0 });
                losses += tiles.run(&self.x[here.clone()], (targets, first), self.objective, buffers, gradients);
            }
        });
        (losses, dx, db)
    }

    /// None of any parameter where there is no row.
    fn gradients(&self, activation: Vec<T>, dw: Vec<T>, db: Vec<T>) -> Gradients<T> {
        if activation.is_empty() {
            return Gradients { activation, parameters: Vec::new() };
        }
        let mut parameters = vec![(self.decoder.weight.clone(), dw)];
        parameters.extend(self.decoder.bias.map(|bias| (bias.clone(), db)));
        Gradients { activation, parameters }
    }
}

/// Reads a bias; none is empty.
fn with_bias<T: Element, R>(bias: Option<&ParameterRef>, read: impl FnOnce(&[T]) -> R) -> Result<R> {
    match bias {
        Some(bias) => bias.with_value(read),
        None => Ok(read(&[])),
    }
}

#[cfg(test)]
mod tests;
