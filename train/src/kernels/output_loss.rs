//! The losses of a sequence classifier whose logits are no distribution over classes: each class for itself, or real numbers.
//!
//! There is a row for each sequence and a column for each class, so that everything is computed in double precision.

use super::element::Element;
use super::precomputed::{Gradients, precomputed};
use super::storage::{failure, for_dtype, rows_and_width, with_slice};
use crate::loss::binary::{Slope, binary_cross_entropy, binary_divergence};
use crate::loss::logit_mse::teacher_logits;
use crate::loss::{LossParts, Part, StepObjective};
use candle_core::{Result, Tensor, WithDType};
use logitcache::target::Problem;

/// What the rows are taught, one for each sequence.
#[derive(Clone, Copy, Debug)]
pub struct OutputTargets<'a> {
    /// [`Problem::MultiLabel`] or [`Problem::Regression`].
    pub problem: Problem,
    /// `[rows, classes]`: the classes, by the teacher's logits in descending order.
    pub top_ids: &'a [u32],
    /// `[rows, classes]`: what the logits of those differ by, over the training temperature; see [`teacher_logits`].
    pub log_probabilities: &'a [f32],
    /// `[rows]`: the teacher's largest logit.
    pub max_logit: &'a [f32],
    /// `[rows, classes]`: gold numbers, 0 or 1 where each class is for itself.
    pub label_values: &'a [f32],
    /// `[rows]`: whether those are known; empty where none are.
    pub has_label_values: &'a [bool],
}

/// The parts of `logits` `[rows, classes]` that its problem has: `ce` (classes each for themselves, summed over them, T^2), `logit-mse` and `gold`
/// (means over the classes). Gives the weighted scalar tensor and the unweighted parts, sums over the rows divided by the counts of the whole step.
pub fn output_loss(logits: &Tensor, targets: &OutputTargets<'_>, step: &StepObjective) -> Result<(Tensor, LossParts)> {
    let (rows, classes) = rows_and_width("output_loss", logits)?;
    check_targets(targets, rows, classes, step)?;
    for_dtype!("output_loss", logits.dtype(), T => {
        let mut taught = Taught { targets, step, classes, values: LossParts::default(), gradient: vec![0.0; rows * classes] };
        with_slice("output_loss", logits, |logits: &[T]| {
            logits.chunks_exact(classes).enumerate().for_each(|(row, logits)| taught.row(row, logits));
        })?;
        let parts = LossParts::new(&step.weights, taught.values.values);
        let activation = taught.gradient.into_iter().map(<T as WithDType>::from_f64).collect();
        let gradients = logits.track_op().then(|| Gradients { activation, parameters: Vec::new() });
        Ok((precomputed::<T>("output_loss", logits, parts.total, gradients)?, parts))
    })
}

fn check_targets(targets: &OutputTargets<'_>, rows: usize, classes: usize, step: &StepObjective) -> Result<()> {
    let OutputTargets { top_ids, log_probabilities, max_logit, label_values, has_label_values, .. } = *targets;
    if [top_ids.len(), log_probabilities.len()] != [rows * classes; 2] || max_logit.len() != rows {
        let found = format!("{} ids, {} log-probabilities and {} largest logits", top_ids.len(), log_probabilities.len(), max_logit.len());
        return Err(failure("output_loss", format!("{found} for {rows} rows of {classes} classes")));
    }
    if let Some(id) = top_ids.iter().find(|id| **id as usize >= classes) {
        return Err(failure("output_loss", format!("class {id} of {classes}")));
    }
    if label_values.len() != has_label_values.len() * classes || ![0, rows].contains(&has_label_values.len()) {
        let found = format!("{} gold numbers of {} sequences", label_values.len(), has_label_values.len());
        return Err(failure("output_loss", format!("{found} for {rows} rows of {classes} classes")));
    }
    let labelled = has_label_values.iter().filter(|known| **known).count();
    if rows > step.normalisers.asked || labelled > step.normalisers.labelled {
        let whole = format!("{} asked and {} labelled rows", step.normalisers.asked, step.normalisers.labelled);
        return Err(failure("output_loss", format!("{rows} asked and {labelled} labelled rows in a step of {whole}")));
    }
    Ok(())
}

/// The sums as the rows are passed over.
struct Taught<'a> {
    targets: &'a OutputTargets<'a>,
    step: &'a StepObjective,
    classes: usize,
    values: LossParts,
    gradient: Vec<f64>,
}

impl Taught<'_> {
    fn row<T: Element>(&mut self, row: usize, logits: &[T]) {
        let StepObjective { temperature, normalisers, .. } = *self.step;
        let columns = row * self.classes..(row + 1) * self.classes;
        let (asked, labelled) = (normalisers.asked.max(1) as f64, normalisers.labelled.max(1) as f64);
        let mean = 1.0 / self.classes as f64;
        let teacher = teacher_logits(&self.targets.log_probabilities[columns.clone()], self.targets.max_logit[row], temperature);
        for (id, teacher) in self.targets.top_ids[columns.clone()].iter().zip(teacher) {
            let (class, student) = (*id as usize, logits[*id as usize].to_f64());
            if self.targets.problem == Problem::MultiLabel {
                let factor = Part::Ce.temperature_factor(temperature) / asked;
                let found = binary_divergence(teacher / temperature, student / temperature);
                self.add(Part::Ce, columns.start + class, found.times(factor, 1.0 / temperature));
            }
            self.add(Part::LogitMse, columns.start + class, squared(student, teacher).times(mean / asked, 1.0));
        }
        if self.targets.has_label_values.get(row).copied().unwrap_or(false) {
            for (class, student) in logits.iter().enumerate() {
                let (gold, student) = (f64::from(self.targets.label_values[columns.start + class]), student.to_f64());
                let found = match self.targets.problem {
                    Problem::MultiLabel => binary_cross_entropy(gold, student),
                    _ => squared(student, gold),
                };
                self.add(Part::Gold, columns.start + class, found.times(mean / labelled, 1.0));
            }
        }
    }

    fn add(&mut self, part: Part, place: usize, found: Slope) {
        if self.step.weights.has(part) {
            self.values.values[part as usize] += found.loss;
            self.gradient[place] += self.step.weights.get(part) * found.slope;
        }
    }
}

fn squared(student: f64, target: f64) -> Slope {
    Slope { loss: (student - target).powi(2), slope: 2.0 * (student - target) }
}

#[cfg(test)]
mod tests;
