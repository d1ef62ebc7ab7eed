//! The last map to the logits (a tied decoder, a classifier) and the losses over the vocabulary or the classes.
//!
//! Logits exist for a chunk of rows at a time, as in the kernels' `head_loss`. Their gradient is put together from that of the few numbers that
//! the losses read (see `logits` and `divergences`), and goes through the decoder at once: rows and parameters get theirs as constants, so that
//! candle keeps nothing of `[rows, vocabulary]` for the way back.

use super::divergences::Taught;
use super::logits::{Logits, NumberSlopes, Worth};
#[cfg(feature = "cuda")]
use super::operations::rounded_product;
use super::operations::{column_sums, product, with_gradient};
use super::place::below;
use crate::kernels::{HeadTargets, Precision};
use crate::loss::{Part, StepObjective};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

/// The map of a row to its logits, and how it is multiplied.
pub(super) struct Decoder<'a> {
    /// `[vocabulary, width]`.
    pub(super) weight: &'a Tensor,
    /// `[vocabulary]`.
    pub(super) bias: Option<&'a Tensor>,
    pub(super) precision: Precision,
}

impl Decoder<'_> {
    /// `[rows, vocabulary]` of `rows` `[rows, width]`.
    pub(super) fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        let logits = product(rows, self.weight, false, self.precision)?;
        self.bias.map_or(Ok(logits.clone()), |bias| logits.broadcast_add(bias))
    }

    /// The same without the bias, in the precision of the product.
    #[cfg(feature = "cuda")]
    pub(super) fn unbiased(&self, rows: &Tensor) -> Result<Tensor> {
        rounded_product(rows, self.weight, false, self.precision)
    }

    fn detached(&self) -> (Tensor, Option<Tensor>) {
        (self.weight.detach(), self.bias.map(Tensor::detach))
    }
}

/// A scalar to differentiate, and values by part, of which those without a weight are missing.
pub(super) type Losses = (Tensor, Vec<(Part, Tensor)>);

/// Logits that a chunk holds.
const CHUNK_LOGITS: usize = 1 << 27;

/// What the rows of a micro-batch are taught, on the device.
pub(super) struct Targets {
    taught: Taught,
    labels: Labels,
    rows: usize,
    vocabulary: usize,
}

impl Targets {
    /// Of as many rows as `targets` has labels, of a vocabulary of this size.
    pub(super) fn new(targets: &HeadTargets<'_>, vocabulary: usize, step: &StepObjective, dtype: DType, device: &Device) -> Result<Self> {
        let rows = targets.labels.len();
        let labels = Labels::new(targets, vocabulary, step, dtype, device)?;
        check(targets, rows, vocabulary)?;
        Ok(Self { taught: Taught::new(targets, vocabulary, step.temperature, dtype, device)?, labels, rows, vocabulary })
    }
}

/// The parts of the logits of `rows` `[rows, width]`. The scalar is worth nothing in itself: its gradients are those of the weighted loss.
pub(super) fn head_loss(rows: &Tensor, decoder: &Decoder<'_>, targets: &Targets, step: &StepObjective) -> Result<Losses> {
    let Targets { taught, labels, vocabulary, .. } = targets;
    if [rows.dim(0)?, decoder.weight.dim(0)?] != [targets.rows, *vocabulary] {
        candle_core::bail!("{:?} and {:?} for {} rows of {vocabulary}", rows.dims(), decoder.weight.dims(), targets.rows);
    }
    let (weight, bias) = decoder.detached();
    let (count, most) = (targets.rows, (CHUNK_LOGITS / vocabulary).max(1));
    let (mut of_rows, mut of_weight, mut of_bias) = (Vec::new(), weight.zeros_like()?, bias.as_ref().map(Tensor::zeros_like).transpose()?);
    let mut values: Vec<(Part, Tensor)> = Vec::new();
    for first in (0..count).step_by(most) {
        let here = most.min(count - first);
        let x = rows.detach().narrow(0, first, here)?.contiguous()?;
        let constant = Decoder { weight: &weight, bias: bias.as_ref(), precision: decoder.precision };
        let (slopes, losses) = chunk(&x, &constant, &taught.rows(first, here)?, &labels.rows(first, here)?, step)?;
        of_rows.push(product(&slopes, &weight, true, decoder.precision)?.to_dtype(x.dtype())?);
        of_weight = (of_weight + product(&slopes.t()?, &x, true, decoder.precision)?.to_dtype(x.dtype())?)?;
        of_bias = of_bias.map(|sum| sum + column_sums(&slopes)?).transpose()?;
        for (part, loss) in losses {
            match values.iter_mut().find(|(known, _)| *known == part) {
                Some((_, sum)) => *sum = (&*sum + loss)?,
                None => values.push((part, loss)),
            }
        }
    }
    let mut scalar = (with_gradient(rows, Tensor::cat(&of_rows, 0)?)? + with_gradient(decoder.weight, of_weight)?)?;
    if let (Some(bias), Some(of_bias)) = (decoder.bias, of_bias) {
        scalar = (scalar + with_gradient(bias, of_bias)?)?;
    }
    Ok((scalar, values))
}

fn check(targets: &HeadTargets<'_>, rows: usize, vocabulary: usize) -> Result<()> {
    let HeadTargets { k, top_ids, log_probabilities, .. } = *targets;
    if k == 0 || k > vocabulary || top_ids.len() != rows * k || log_probabilities.len() != rows * k {
        let found = format!("{} ids and {} log-probabilities", top_ids.len(), log_probabilities.len());
        candle_core::bail!("{found} for {rows} rows and k = {k} of a vocabulary of {vocabulary}");
    }
    below("stored id", top_ids, vocabulary)
}

/// The gradient of the weighted loss with respect to the logits of `x` `[rows, width]`, and the values of the parts.
pub(super) fn chunk(x: &Tensor, decoder: &Decoder<'_>, taught: &Taught, labels: &Labels, step: &StepObjective) -> Result<Losses> {
    let logits = Logits::new(x, decoder, taught, labels, step.temperature)?;
    let numbers = logits.numbers(taught, step.temperature)?;
    let mut losses = numbers.losses(taught, step)?;
    let weighted = losses.iter().map(|(part, loss)| loss * step.weights.get(*part)).collect::<Result<Vec<_>>>()?;
    let slopes = match weighted.into_iter().map(Ok).reduce(|a, b| a? + b?).transpose()? {
        Some(sum) => {
            let gradients = sum.backward()?;
            let of = |var: &Var| gradient(&gradients, var);
            Some(NumberSlopes { stored: of(&numbers.stored)?, outside: of(&numbers.outside)?, tempered: of(&numbers.tempered)? })
        }
        None => None,
    };
    let worth = match labels.part(step) {
        Some((part, factor)) => {
            let (whole, of_labels) = logits.of_labels(labels)?;
            let loss = ((whole.log()? - of_labels)? * &labels.known)?.sum_all()?;
            losses.push((part, (loss * (1.0 / step.normalisers.labelled.max(1) as f64))?));
            Some(Worth { whole, factors: (&labels.known * factor)? })
        }
        None => None,
    };
    let slopes = logits.slopes(slopes.as_ref(), worth.as_ref(), taught, labels, step.temperature)?;
    let losses = losses.into_iter().map(|(part, loss)| (part, loss.detach())).collect();
    Ok((slopes, losses))
}

/// Without what it was made of, which candle would keep: `[rows, vocabulary]`, and another way back through it.
fn gradient(gradients: &GradStore, var: &Var) -> Result<Tensor> {
    gradients.get(var).map_or_else(|| var.zeros_like(), |gradient| Ok(gradient.detach()))
}

/// The gold answers of some rows.
pub(super) struct Labels {
    /// `[rows, 1]`: ids; without an answer `u32::MAX`, for which candle gathers 0 and adds nothing.
    pub(super) ids: Tensor,
    /// `[rows, 1]`: 1 where there is one, else 0.
    known: Tensor,
}

impl Labels {
    pub(super) fn new(targets: &HeadTargets<'_>, vocabulary: usize, step: &StepObjective, dtype: DType, device: &Device) -> Result<Self> {
        if step.weights.has(Part::Mlm) && step.weights.has(Part::Gold) {
            candle_core::bail!("mlm and gold are of the same labels");
        }
        let known: Vec<u32> = targets.labels.iter().filter_map(|label| u32::try_from(*label).ok()).collect();
        below("label", &known, vocabulary)?;
        let shape = (targets.labels.len(), 1);
        let ids: Vec<u32> = targets.labels.iter().map(|label| u32::try_from(*label).unwrap_or(u32::MAX)).collect();
        let known: Vec<f32> = targets.labels.iter().map(|label| f32::from(u8::from(*label >= 0))).collect();
        Ok(Self { ids: Tensor::from_vec(ids, shape, device)?, known: Tensor::from_vec(known, shape, device)?.to_dtype(dtype)? })
    }

    fn rows(&self, first: usize, count: usize) -> Result<Self> {
        Ok(Self { ids: self.ids.narrow(0, first, count)?.contiguous()?, known: self.known.narrow(0, first, count)?.contiguous()? })
    }

    /// What the answers are for, where it has a weight, and that weight over the answers of the step.
    fn part(&self, step: &StepObjective) -> Option<(Part, f64)> {
        let part = [Part::Mlm, Part::Gold].into_iter().find(|part| step.weights.has(*part))?;
        Some((part, step.weights.get(part) / step.normalisers.labelled.max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::random;
    use crate::loss::{Normalisers, Objective};

    /// A gradient that kept what it was made of would keep `[rows, vocabulary]` of every chunk until the step's backward pass.
    #[test]
    fn a_chunks_slopes_keep_nothing_of_what_they_were_made_of() {
        let (rows, weight) = (random(1, &[2, 3], 1.0), random(2, &[5, 3], 1.0));
        let decoder = Decoder { weight: &weight, bias: None, precision: Precision::Single };
        let log_probabilities = [-0.5, -1.5, -0.4, -1.8];
        let targets =
            HeadTargets { k: 2, top_ids: &[0, 1, 2, 3], log_probabilities: &log_probabilities, max_logit: &[1.0, 2.0], labels: &[-100, 3] };
        for parts in ["ce=1,mlm=1", "ce=1:tail=zero", "ce=1:tail=uniform", "reverse-kl=1", "jsd=1", "tvd=1", "logit-mse=1"] {
            let objective: Objective = parts.parse().unwrap();
            let normalisers = Normalisers { asked: 2, labelled: 1, ..Normalisers::default() };
            let step = StepObjective::new(&objective, (0, 1), 2.0, normalisers);
            let taught = Taught::new(&targets, 5, 2.0, DType::F64, &Device::Cpu).unwrap();
            let labels = Labels::new(&targets, 5, &step, DType::F64, &Device::Cpu).unwrap();
            let (slopes, values) = chunk(&rows, &decoder, &taught, &labels, &step).unwrap();
            assert!(!slopes.track_op() && values.iter().all(|(_, value)| !value.track_op()), "{parts}");
        }
    }
}
