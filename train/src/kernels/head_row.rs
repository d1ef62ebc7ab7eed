//! One row of logits: its losses and their gradient, in place.
//!
//! With z the logits and T the temperature, the gradient is `A exp((z - z_max) / T) + B exp(z - z_max)` but at the stored ids and at the label
//! (see `loss::ghost_kl` and `loss::cross_entropy`). So a row needs one pass of exponentials where it is not masked, and four where it is. That
//! is for `ce` with the ghost and `mlm`, alone or together; `head_objectives` has the rows that are taught anything else.

use super::element::Element;
use super::head_loss::HeadTargets;
use super::head_objectives::RowObjectives;
use super::level::{LANES, lane_sum};
use crate::loss::cross_entropy::cross_entropy;
use crate::loss::ghost_kl::{TeacherMass, ghost_kl};
use crate::loss::{PARTS, Part};
use std::ops::AddAssign;

/// The constants of every row's gradient; a factor of 0 turns its part off.
pub(crate) struct RowObjective {
    pub(crate) inverse_temperature: f64,
    /// weight * T^2 / asked rows, times 1 / T from the chain rule.
    pub(crate) ce: f64,
    /// What the labels are for: `mlm` or `gold`...
    pub(crate) label_part: Part,
    /// ... and its weight / labelled rows.
    pub(crate) label: f64,
    /// Whether k is the vocabulary.
    pub(crate) whole: bool,
    /// What else is taught; `ce` then stands among it.
    pub(crate) others: Option<RowObjectives>,
}

/// A row's losses by part, without weights and powers of the temperature.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowLosses([f64; PARTS]);

impl RowLosses {
    pub(crate) fn get(&self, part: Part) -> f64 {
        self.0[part as usize]
    }

    pub(crate) fn set(&mut self, part: Part, loss: f64) {
        self.0[part as usize] = loss;
    }
}

impl AddAssign for RowLosses {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, loss)| *sum += loss);
    }
}

/// What one row is taught.
pub(crate) struct RowTargets<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) log_probabilities: &'a [f32],
    /// Of the teacher; 0 where no part asks for it.
    pub(crate) max_logit: f32,
    label: Option<usize>,
}

impl<'a> RowTargets<'a> {
    pub(crate) fn new(targets: &HeadTargets<'a>, row: usize) -> Self {
        let k = targets.k;
        Self {
            ids: &targets.top_ids[row * k..][..k],
            log_probabilities: &targets.log_probabilities[row * k..][..k],
            max_logit: targets.max_logit.get(row).copied().unwrap_or_default(),
            label: usize::try_from(targets.labels[row]).ok(),
        }
    }
}

levelled! {
    /// One row of logits, still without the bias (empty where there is none), becomes its gradient. `kept` is a buffer for the stored ids' logits. Gives the row's KL (without
    /// T^2) and cross-entropy.
    pub(crate) fn differentiate_row<T>(
        logits: &mut [T], bias: &[T], targets: RowTargets<'_>, objective: &RowObjective, kept: &mut Vec<T>,
    ) -> RowLosses {
        let largest = add_bias(logits, bias);
        logits.iter_mut().for_each(|logit| *logit -= largest);
        let label = targets.label.filter(|_| objective.label > 0.0);
        let mut losses = RowLosses::default();
        let mut of_label = T::zero(); // what exp(z) is multiplied by
        if let Some(label) = label {
            let sum = lane_sum(logits.len(), |i| logits[i].exp()).to_f64();
            losses.set(objective.label_part, cross_entropy(logits[label].to_f64(), sum));
            of_label = T::from_f64(objective.label / sum);
        }
        if let Some(others) = &objective.others {
            others.teach_row(logits, largest.to_f64(), &targets, label.map(|_| of_label), kept, &mut losses);
        } else if objective.ce > 0.0 {
            losses.set(Part::Ce, distil_row(logits, &targets, label.map(|_| of_label), objective, kept));
        } else {
            logits.iter_mut().for_each(|logit| *logit = of_label * logit.exp());
        }
        if let Some(label) = label {
            logits[label] -= T::from_f64(objective.label);
        }
        losses
    }
}

/// Adds the bias, if there is one, and gives the largest logit.
#[inline(always)]
fn add_bias<T: Element>(logits: &mut [T], bias: &[T]) -> T {
    let mut largest = [T::NEGATIVE_INFINITY; LANES];
    if bias.is_empty() {
        for logits in logits.chunks(LANES) {
            for (logit, largest) in logits.iter().zip(&mut largest) {
                *largest = if *logit > *largest { *logit } else { *largest };
            }
        }
    }
    for (logits, bias) in logits.chunks_mut(LANES).zip(bias.chunks(LANES)) {
        for ((logit, bias), largest) in logits.iter_mut().zip(bias).zip(&mut largest) {
            *logit += *bias;
            *largest = if *logit > *largest { *logit } else { *largest };
        }
    }
    largest.iter().fold(T::NEGATIVE_INFINITY, |a, b| if *b > a { *b } else { a })
}

/// Relative logits become the gradient of the KL plus, on a masked row, `of_label` times their exponentials. Gives the KL.
#[inline(always)]
fn distil_row<T: Element>(
    logits: &mut [T],
    targets: &RowTargets<'_>,
    of_label: Option<T>,
    objective: &RowObjective,
    kept: &mut Vec<T>,
) -> f64 {
    let inverse_temperature = T::from_f64(objective.inverse_temperature);
    // The stored ids are set aside, so that the sum over the others is a sum and not a difference.
    kept.clear();
    kept.extend(targets.ids.iter().map(|id| logits[*id as usize]));
    targets.ids.iter().for_each(|id| logits[*id as usize] = T::NEGATIVE_INFINITY);
    let outside = match of_label {
        Some(_) => lane_sum(logits.len(), |i| (logits[i] * inverse_temperature).exp()),
        None => exponentials(logits, inverse_temperature),
    };
    let outside = if objective.whole { 0.0 } else { outside.to_f64() };
    let inside: f64 = kept.iter().map(|logit| (*logit * inverse_temperature).exp().to_f64()).sum();
    let normaliser = outside + inside;
    let mass = TeacherMass::new(targets.log_probabilities, objective.whole);
    let tempered = kept.iter().map(|logit| logit.to_f64() * objective.inverse_temperature);
    let loss = ghost_kl(targets.log_probabilities, tempered, mass, outside, normaliser);

    let student = mass.total() / normaliser;
    let of_outside = if objective.whole { 0.0 } else { objective.ce * (student - mass.residual / outside.max(f64::MIN_POSITIVE)) };
    let of_outside = T::from_f64(of_outside);
    match of_label {
        Some(of_label) => {
            logits.iter_mut().for_each(|logit| *logit = of_outside * (*logit * inverse_temperature).exp() + of_label * logit.exp())
        }
        None => logits.iter_mut().for_each(|exponential| *exponential *= of_outside),
    }
    let (of_student, of_teacher) = (T::from_f64(objective.ce * student), T::from_f64(objective.ce));
    for ((id, logit), log_teacher) in targets.ids.iter().zip(kept.iter()).zip(targets.log_probabilities) {
        let slope = of_student * (*logit * inverse_temperature).exp() - of_teacher * T::from_f32(*log_teacher).exp();
        logits[*id as usize] = slope + of_label.unwrap_or(T::zero()) * logit.exp();
    }
    loss
}

/// exp(factor x) in place, and the sum.
#[inline(always)]
fn exponentials<T: Element>(values: &mut [T], factor: T) -> T {
    let mut sums = [T::zero(); LANES];
    for chunk in values.chunks_mut(LANES) {
        for (value, sum) in chunk.iter_mut().zip(&mut sums) {
            *value = (*value * factor).exp();
            *sum += *value;
        }
    }
    sums.iter().fold(T::zero(), |a, b| a + *b)
}
