//! One row of logits under any divergences and tails together, and the logits' squared error.
//!
//! The gradient outside the stored ids is `of_tempered exp((z - m) / T) + constant` (see `loss::outcome`), so that every divergence shares the
//! same exponentials; what differs is computed for the stored ids alone, in double precision.

use super::element::Element;
use super::head_row::{RowLosses, RowSlopes, RowSums, RowTargets};
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

impl RowObjectives {
    /// The parts of `step` for rows with `others` ids that are not stored; none where `ce` with the ghost and `mlm` are all there is.
    pub(crate) fn new(step: &StepObjective, others: usize) -> Option<Self> {
        let StepObjective { objective, weights, temperature, normalisers, .. } = step;
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

    /// Whether there is any divergence.
    pub(crate) fn diverges(&self) -> bool {
        !self.divergences.is_empty()
    }

    /// Whether a divergence asks for [`RowSums::tempered`].
    pub(crate) fn sums_tempered(&self) -> bool {
        self.divergences.iter().any(|divergence| divergence.tail == Tail::Uniform)
    }

    /// `kept`, the stored ids' logits less the largest of all, become their slopes, with `of_label` times their exponentials on a row with a
    /// label. Sets the parts' losses, and the slopes of the ids that are not stored.
    #[inline(always)]
    pub(crate) fn teach_row<T: Element>(
        &self,
        kept: &mut [T],
        of_label: Option<T>,
        sums: RowSums<T>,
        targets: &RowTargets<'_>,
        losses: &mut RowLosses,
        slopes: &mut RowSlopes<T>,
    ) {
        let mut all = Slopes { stored: vec![0.0; kept.len()], ..Slopes::default() };
        if self.diverges() {
            self.diverge(kept, &sums, targets, &mut all, losses);
        }
        if self.logit_mse > 0.0 {
            let teacher = teacher_logits(targets.log_probabilities, targets.max_logit, self.temperature);
            let pairs = kept.iter().map(|logit| logit.to_f64() + sums.largest.to_f64()).zip(teacher);
            losses.set(Part::LogitMse, logit_mse(pairs, self.logit_mse, &mut all.stored));
        }
        (slopes.of_tempered, slopes.constant) = (all.of_exponential, all.constant);
        for (logit, slope) in kept.iter_mut().zip(&all.stored) {
            *logit = T::from_f64(*slope) + of_label.unwrap_or(T::zero()) * logit.exp();
        }
    }

    /// Adds every divergence's gradient to `slopes`.
    #[inline(always)]
    fn diverge<T: Element>(&self, kept: &[T], sums: &RowSums<T>, targets: &RowTargets<'_>, slopes: &mut Slopes, losses: &mut RowLosses) {
        let tempered: Vec<f64> = kept.iter().map(|logit| logit.to_f64() / self.temperature).collect();
        let largest_stored = tempered.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let view = RowView {
            log_probabilities: targets.log_probabilities,
            tempered: &tempered,
            mass: TeacherMass::new(targets.log_probabilities, self.others == 0),
            // The largest logit may lie outside, far above all of these.
            log_inside: largest_stored + tempered.iter().map(|logit| (logit - largest_stored).exp()).sum::<f64>().ln(),
            outside: if self.others == 0 { 0.0 } else { sums.outside },
            others: self.others,
            tempered_sum: sums.tempered,
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
