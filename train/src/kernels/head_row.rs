//! One row of logits: its losses, and the few numbers that its gradient is made of.
//!
//! With z the logits, m the largest of them and T the temperature, the gradient is
//!
//! ```text
//! of_tempered exp((z - m) / T) + constant + of_label exp(z - m)
//! ```
//!
//! but at the stored ids and at the label (see `loss::ghost_kl`, `loss::outcome` and `loss::cross_entropy`). `head_tile` makes the sums of
//! exponentials that this needs and applies what comes out. Here stands `ce` with the ghost, and `mlm`; `head_objectives` has the rows that are
//! taught anything else.

use super::element::Element;
use super::head_loss::HeadTargets;
use super::head_objectives::RowObjectives;
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
    pub(crate) label: Option<usize>,
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

/// Sums over a row of logits z, of which m is the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSums<T> {
    /// m.
    pub(crate) largest: T,
    /// Of exp((z - m) / T) over the ids that are not stored.
    pub(crate) outside: f64,
    /// Of exp(z - m) over all ids; 0 for a row without a label.
    pub(crate) all: f64,
    /// Of (z - m) / T over the ids that are not stored; 0 where no part asks for it.
    pub(crate) tempered: f64,
}

/// The numbers of the heading.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowSlopes<T> {
    pub(crate) largest: T,
    pub(crate) of_tempered: f64,
    pub(crate) constant: f64,
    pub(crate) of_label: f64,
    /// Where the weight of the label is taken off.
    pub(crate) label: Option<usize>,
}

impl RowObjective {
    /// Whether a label counts.
    pub(crate) fn is_labelled(&self, targets: &RowTargets<'_>) -> bool {
        targets.label.is_some() && self.label > 0.0
    }

    /// Whether any part looks at the tempered probabilities of the ids that are not stored.
    pub(crate) fn is_tempered(&self) -> bool {
        self.others.as_ref().map_or(self.ce > 0.0, RowObjectives::diverges)
    }

    /// Whether any part asks for [`RowSums::tempered`].
    pub(crate) fn sums_tempered(&self) -> bool {
        self.others.as_ref().is_some_and(RowObjectives::sums_tempered)
    }
}

levelled! {
    /// `kept`, the stored ids' logits, become their slopes. `of_label` is the label's logit where it counts.
    pub(crate) fn teach_row<T>(
        kept: &mut [T], of_label: Option<T>, sums: RowSums<T>, targets: &RowTargets<'_>, objective: &RowObjective,
    ) -> (RowLosses, RowSlopes<T>) {
        kept.iter_mut().for_each(|logit| *logit -= sums.largest);
        let mut losses = RowLosses::default();
        let mut slopes = RowSlopes { largest: sums.largest, ..RowSlopes::default() };
        if let Some(logit) = of_label {
            losses.set(objective.label_part, cross_entropy((logit - sums.largest).to_f64(), sums.all));
            slopes.of_label = objective.label / sums.all;
            slopes.label = targets.label;
        }
        let of_label = of_label.map(|_| T::from_f64(slopes.of_label));
        if let Some(others) = &objective.others {
            others.teach_row(kept, of_label, sums, targets, &mut losses, &mut slopes);
        } else if objective.ce > 0.0 {
            losses.set(Part::Ce, distil_row(kept, of_label, sums.outside, targets, objective, &mut slopes));
        } else {
            kept.iter_mut().for_each(|logit| *logit = of_label.unwrap_or(T::zero()) * logit.exp());
        }
        (losses, slopes)
    }
}

/// The KL. `kept`, the stored ids' logits less the largest of all, become their slopes.
#[inline(always)]
fn distil_row<T: Element>(
    kept: &mut [T],
    of_label: Option<T>,
    outside: f64,
    targets: &RowTargets<'_>,
    objective: &RowObjective,
    slopes: &mut RowSlopes<T>,
) -> f64 {
    let inverse_temperature = T::from_f64(objective.inverse_temperature);
    let outside = if objective.whole { 0.0 } else { outside };
    let inside: f64 = kept.iter().map(|logit| (*logit * inverse_temperature).exp().to_f64()).sum();
    let normaliser = outside + inside;
    let mass = TeacherMass::new(targets.log_probabilities, objective.whole);
    let tempered = kept.iter().map(|logit| logit.to_f64() * objective.inverse_temperature);
    let loss = ghost_kl(targets.log_probabilities, tempered, mass, outside, normaliser);
    let student = mass.total() / normaliser;
    slopes.of_tempered = if objective.whole { 0.0 } else { objective.ce * (student - mass.residual / outside.max(f64::MIN_POSITIVE)) };
    let (of_student, of_teacher) = (T::from_f64(objective.ce * student), T::from_f64(objective.ce));
    for (logit, log_teacher) in kept.iter_mut().zip(targets.log_probabilities) {
        let slope = of_student * (*logit * inverse_temperature).exp() - of_teacher * T::from_f32(*log_teacher).exp();
        *logit = slope + of_label.unwrap_or(T::zero()) * logit.exp();
    }
    loss
}
