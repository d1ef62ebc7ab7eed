//! One row of logits under any divergences and tails together, and the logits' squared error.
//!
//! The gradient outside the stored ids is `A exp((z - z_max) / T) + B` (see `loss::outcome`), so that every divergence shares the same two passes
//! of exponentials; what differs is computed for the stored ids alone, in double precision.

use super::element::Element;
use super::head_row::{RowLosses, RowTargets};
use super::level::lane_sum;
use crate::loss::forward_kl::forward_kl;
use crate::loss::ghost_kl::TeacherMass;
use crate::loss::jensen_shannon::jensen_shannon;
use crate::loss::logit_mse::{logit_mse, teacher_logits};
use crate::loss::outcome::{RowView, Slopes};
use crate::loss::reverse_kl::reverse_kl;
use crate::loss::total_variation::total_variation;
use crate::loss::{Part, StepObjective, Tail};

/// One divergence of every row.
#[derive(Clone, Copy, Debug)]
struct Divergence {
    part: Part,
    tail: Tail,
    beta: f64,
    /// weight * the part's power of T / asked rows, times 1 / T from the chain rule.
    factor: f64,
}

/// What every row is taught, `mlm` apart.
pub(crate) struct RowObjectives {
    temperature: f64,
    divergences: Vec<Divergence>,
    /// weight / asked rows.
    logit_mse: f64,
    /// Ids that are not stored.
    others: usize,
}

/// The largest coefficient of an exponential: it stays finite in single precision.
const LARGEST_COEFFICIENT: f64 = 1e38;

impl RowObjectives {
    /// The parts of `step` for rows with `others` ids that are not stored; none where `ce` with the ghost and `mlm` are all there is.
    pub(crate) fn new(step: &StepObjective, others: usize) -> Option<Self> {
        let StepObjective { objective, weights, temperature, normalisers } = step;
        let asked = normalisers.asked.max(1) as f64;
        let divergence = |part: Part| Divergence {
            part,
            tail: objective.tail(part),
            beta: objective.beta(),
            factor: weights.get(part) * part.temperature_factor(*temperature) / *temperature / asked,
        };
        let of_probabilities = [Part::Ce, Part::ReverseKl, Part::Jsd, Part::Tvd];
        let divergences: Vec<Divergence> = of_probabilities.into_iter().filter(|part| weights.has(*part)).map(divergence).collect();
        let usual = divergences.iter().all(|divergence| divergence.part == Part::Ce && divergence.tail == Tail::Ghost);
        let logit_mse = weights.get(Part::LogitMse) / asked;
        (!usual || logit_mse > 0.0).then_some(Self { temperature: *temperature, divergences, logit_mse, others })
    }

    /// Relative logits, which are `largest` below the student's own, become the gradient, plus, on a masked row, `of_label` times their
    /// exponentials. Sets the parts' losses. `kept` is a buffer for the stored ids' logits.
    #[inline(always)]
    pub(crate) fn teach_row<T: Element>(
        &self,
        logits: &mut [T],
        largest: f64,
        targets: &RowTargets<'_>,
        of_label: Option<T>,
        kept: &mut Vec<T>,
        losses: &mut RowLosses,
    ) {
        kept.clear();
        kept.extend(targets.ids.iter().map(|id| logits[*id as usize]));
        let mut slopes = Slopes { stored: vec![0.0; kept.len()], ..Slopes::default() };
        let inverse_temperature = T::from_f64(1.0 / self.temperature);
        if !self.divergences.is_empty() {
            self.diverge(logits, targets, kept, &mut slopes, losses);
        }
        if self.logit_mse > 0.0 {
            let teacher = teacher_logits(targets.log_probabilities, targets.max_logit, self.temperature);
            let pairs = kept.iter().map(|logit| logit.to_f64() + largest).zip(teacher);
            losses.set(Part::LogitMse, logit_mse(pairs, self.logit_mse, &mut slopes.stored));
        }
        let of_exponential = T::from_f64(slopes.of_exponential.clamp(-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT));
        let constant = T::from_f64(slopes.constant);
        match (of_label, self.divergences.is_empty()) {
            (Some(of_label), false) => logits.iter_mut().for_each(|logit| {
                *logit = of_exponential * (*logit * inverse_temperature).exp() + constant + of_label * logit.exp();
            }),
            (Some(of_label), true) => logits.iter_mut().for_each(|logit| *logit = of_label * logit.exp()),
            (None, false) => {
                logits.iter_mut().for_each(|logit| *logit = of_exponential * (*logit * inverse_temperature).exp() + constant);
            }
            (None, true) => logits.fill(T::zero()),
        }
        for ((id, logit), slope) in targets.ids.iter().zip(kept.iter()).zip(&slopes.stored) {
            logits[*id as usize] = T::from_f64(*slope) + of_label.unwrap_or(T::zero()) * logit.exp();
        }
    }

    /// Adds every divergence's gradient to `slopes`. The stored ids of `logits` become minus infinity, so that the sum over the others is a sum
    /// and not a difference.
    #[inline(always)]
    fn diverge<T: Element>(&self, logits: &mut [T], targets: &RowTargets<'_>, kept: &[T], slopes: &mut Slopes, losses: &mut RowLosses) {
        let inverse_temperature = T::from_f64(1.0 / self.temperature);
        let mut tempered_sum = 0.0;
        if self.divergences.iter().any(|divergence| divergence.tail == Tail::Uniform) {
            targets.ids.iter().for_each(|id| logits[*id as usize] = T::zero());
            tempered_sum = lane_sum(logits.len(), |i| logits[i] * inverse_temperature).to_f64();
        }
        targets.ids.iter().for_each(|id| logits[*id as usize] = T::NEGATIVE_INFINITY);
        let outside = match self.others {
            0 => 0.0,
            _ => lane_sum(logits.len(), |i| (logits[i] * inverse_temperature).exp()).to_f64(),
        };
        let tempered: Vec<f64> = kept.iter().map(|logit| logit.to_f64() / self.temperature).collect();
        let largest_stored = tempered.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let view = RowView {
            log_probabilities: targets.log_probabilities,
            tempered: &tempered,
            mass: TeacherMass::new(targets.log_probabilities, self.others == 0),
            // The largest logit may lie outside, far above all of these.
            log_inside: largest_stored + tempered.iter().map(|logit| (logit - largest_stored).exp()).sum::<f64>().ln(),
            outside,
            others: self.others,
            tempered_sum,
        };
        for Divergence { part, tail, beta, factor } in &self.divergences {
            let loss = match part {
                Part::ReverseKl => view.divergence(*tail, *factor, reverse_kl, slopes),
                Part::Jsd => view.divergence(*tail, *factor, |teacher, student| jensen_shannon(*beta, teacher, student), slopes),
                Part::Tvd => view.divergence(*tail, *factor, total_variation, slopes),
                _ => view.divergence(*tail, *factor, forward_kl, slopes),
            };
            losses.set(*part, loss);
        }
    }
}
