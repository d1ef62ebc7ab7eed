//! What a row of logits is taught, as a function of a few numbers of the row. `loss::outcome` has the formulae that the kernels use; here they are
//! written forwards alone, and candle differentiates them.
//!
//! With x = (z - m) / T for logits z and their largest m, a row is its stored ids' x, the sum of exp(x) over the others, and their x summed. All of
//! it is small, `[rows, k]`, so that differentiating it costs little beside the product with the decoder.

use crate::kernels::HeadTargets;
use crate::loss::ghost_kl::TeacherMass;
use crate::loss::{Part, StepObjective, Tail};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use rayon::prelude::*;

/// The teacher's side of some rows.
pub(super) struct Taught {
    /// `[rows, k]`.
    pub(super) ids: Tensor,
    /// `[rows, k]`: log-probabilities.
    logs: Tensor,
    /// `[rows, 1]`: the mass of the stored ids, its logarithm, and the mass of the others.
    stored: Tensor,
    residual: Tensor,
    /// `[rows, 1]`: the residual times the logarithm of an even share of it, 0 where there is none.
    even: Tensor,
    /// `[rows, k]`: logits.
    logits: Tensor,
    /// Ids that are not stored.
    others: usize,
}

impl Taught {
    /// Of the rows of `targets`, which are of a vocabulary of this size.
    pub(super) fn new(targets: &HeadTargets<'_>, vocabulary: usize, temperature: f64, dtype: DType, device: &Device) -> Result<Self> {
        let HeadTargets { k, top_ids, log_probabilities, max_logit, .. } = *targets;
        let (rows, others) = (top_ids.len() / k, vocabulary - k);
        let masses: Vec<TeacherMass> = log_probabilities.par_chunks(k).map(|logs| TeacherMass::new(logs, others == 0)).collect();
        let upload = |numbers: Vec<f64>| Tensor::from_vec(numbers, (rows, 1), &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
        let of_rows = |number: &dyn Fn(&TeacherMass) -> f64| upload(masses.iter().map(number).collect());
        let even = |mass: &TeacherMass| if mass.residual > 0.0 { mass.residual * (mass.residual / others as f64).ln() } else { 0.0 };
        let logs = Tensor::from_slice(log_probabilities, (rows, k), device)?.to_dtype(dtype)?;
        let largest = upload((0..rows).map(|row| max_logit.get(row).copied().map_or(0.0, f64::from)).collect())?;
        let logits = (logs.broadcast_sub(&logs.narrow(1, 0, 1)?)? * temperature)?.broadcast_add(&largest)?;
        Ok(Self {
            ids: Tensor::from_slice(top_ids, (rows, k), device)?,
            stored: of_rows(&|mass| mass.stored.ln())?,
            residual: of_rows(&|mass| mass.residual)?,
            even: of_rows(&even)?,
            logs,
            logits,
            others,
        })
    }

    /// The rows from `first` on.
    pub(super) fn rows(&self, first: usize, count: usize) -> Result<Self> {
        let of = |x: &Tensor| x.narrow(0, first, count)?.contiguous();
        let (ids, logs, stored, residual) = (of(&self.ids)?, of(&self.logs)?, of(&self.stored)?, of(&self.residual)?);
        Ok(Self { ids, logs, stored, residual, even: of(&self.even)?, logits: of(&self.logits)?, others: self.others })
    }
}

/// What the losses read of rows of logits, each to be differentiated by.
pub(super) struct RowNumbers {
    /// `[rows, k]`: x of the stored ids.
    pub(super) stored: Var,
    /// `[rows, 1]`: the sum of exp(x) over the others.
    pub(super) outside: Var,
    /// `[rows, 1]`: the sum of x over the others.
    pub(super) tempered: Var,
    /// `[rows, 1]`: m.
    pub(super) largest: Tensor,
}

impl RowNumbers {
    /// The parts of the teacher's answers that have a weight, each a sum over the rows divided by the step's count and times its power of the
    /// temperature.
    pub(super) fn losses(&self, taught: &Taught, step: &StepObjective) -> Result<Vec<(Part, Tensor)>> {
        let mut losses = Vec::new();
        let asked = step.normalisers.asked.max(1) as f64;
        for part in [Part::Ce, Part::ReverseKl, Part::Jsd, Part::Tvd].into_iter().filter(|part| step.weights.has(*part)) {
            let sum = self.divergence(taught, part, step.objective.tail(part), step.objective.beta())?;
            losses.push((part, (sum * (part.temperature_factor(step.temperature) / asked))?));
        }
        if step.weights.has(Part::LogitMse) {
            let student = (self.stored.as_tensor() * step.temperature)?.broadcast_add(&self.largest)?;
            let mean = (student - &taught.logits)?.sqr()?.mean(D::Minus1)?.sum_all()?;
            losses.push((Part::LogitMse, (mean * (1.0 / asked))?));
        }
        Ok(losses)
    }

    fn divergence(&self, taught: &Taught, part: Part, tail: Tail, beta: f64) -> Result<Tensor> {
        let least = least_of(self.stored.dtype());
        let both = tail == Tail::RenormalisedBoth;
        let inside = log_sum_exp(&self.stored)?;
        let whole = match taught.others {
            0 => inside.clone(),
            _ => (inside.exp()? + self.outside.as_tensor())?.log()?,
        };
        let normaliser = if both { &inside } else { &whole };
        let logs = match tail {
            Tail::RenormalisedBoth | Tail::RenormalisedTeacher => taught.logs.broadcast_sub(&taught.stored)?,
            _ => taught.logs.clone(),
        };
        let student = self.stored.broadcast_sub(normaliser)?;
        let teacher = Outcome { value: logs.exp()?, log: logs };
        let mut sum = outcome(part, beta, &teacher, &Outcome { value: student.exp()?, log: student }, least)?.sum_all()?;
        if taught.others == 0 || both {
            return Ok(sum);
        }
        if tail == Tail::Uniform {
            let mean = ((self.tempered.as_tensor() * (1.0 / taught.others as f64))? - &whole)?;
            return sum + (&taught.even - (&taught.residual * mean)?)?.sum_all()?;
        }
        let value = if tail == Tail::Ghost { taught.residual.clone() } else { taught.residual.zeros_like()? };
        // Single precision knows nothing of a smaller tail of the teacher.
        let teacher = Outcome { log: value.maximum(f64::from(f32::EPSILON))?.log()?, value };
        let log = (self.outside.maximum(least)?.log()? - &whole)?;
        let student = Outcome { value: (self.outside.as_tensor() * whole.neg()?.exp()?)?, log };
        sum = (sum + outcome(part, beta, &teacher, &student, least)?.sum_all()?)?;
        Ok(sum)
    }
}

/// Probabilities and their logarithms.
struct Outcome {
    value: Tensor,
    log: Tensor,
}

/// What each outcome adds to a divergence; see `loss::forward_kl` and its siblings.
fn outcome(part: Part, beta: f64, teacher: &Outcome, student: &Outcome, least: f64) -> Result<Tensor> {
    let forward = || &teacher.value * (&teacher.log - &student.log)?;
    let reverse = || &student.value * (&student.log - &teacher.log)?;
    match part {
        Part::ReverseKl => reverse(),
        Part::Jsd if beta == 0.0 => forward(),
        Part::Jsd if beta == 1.0 => reverse(),
        Part::Jsd => {
            let mixture = ((&student.value * (1.0 - beta))? + (&teacher.value * beta)?)?.maximum(least)?.log()?;
            let of_teacher = ((&teacher.value * beta)? * (&teacher.log - &mixture)?)?;
            of_teacher + ((&student.value * (1.0 - beta))? * (&student.log - &mixture)?)?
        }
        Part::Tvd => {
            let difference = (&student.value - &teacher.value)?;
            (&difference * difference.detach().sign()?)? * 0.5
        }
        _ => forward(),
    }
}

/// `[rows, 1]`: the logarithm of the sum of exponentials of each row.
fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let largest = x.detach().max_keepdim(D::Minus1)?;
    x.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?.log()? + largest
}

/// The least number above 0 whose precision is whole.
fn least_of(dtype: DType) -> f64 {
    if dtype == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) }
}
