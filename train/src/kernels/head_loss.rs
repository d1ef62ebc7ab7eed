//! The tied decoder and the losses over the vocabulary, fused.
//!
//! Logits exist for a chunk of rows at a time. Each row's losses and their gradient are computed in place, then the chunk's gradient goes
//! through the decoder; nothing of `[rows, vocabulary]` is ever whole in memory.

use super::element::Element;
use super::head_objectives::RowObjectives;
use super::head_row::{RowLosses, RowObjective, RowTargets, differentiate_row};
use super::level::Level;
use super::matrix::{Matrix, Threads, add_column_sums, multiply, product};
use super::parameter::Affine;
use super::precomputed::{Gradients, precomputed};
use super::storage::{check_parameter, failure, for_dtype, rows_and_width, with_slice};
use crate::loss::{LossParts, Normalisers, Part, StepObjective};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

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
    /// `[rows]`: the original id where the row was masked, else -100.
    pub labels: &'a [i32],
}

/// The parts of the logits, of `rows` `[rows, width]` under `decoder` (`[vocabulary, width]`, `[vocabulary]`). Gives the weighted scalar tensor
/// and the unweighted parts, sums divided by the counts of the whole step; a part of weight 0 is not computed.
pub fn head_loss(rows: &Tensor, decoder: &Affine, targets: &HeadTargets<'_>, step: &StepObjective) -> Result<(Tensor, LossParts)> {
    let (count, width) = rows_and_width("head_loss", rows)?;
    let vocabulary = decoder.bias.elements();
    check_parameter("head_loss", &decoder.weight, rows.dtype(), &[vocabulary, width])?;
    check_parameter("head_loss", &decoder.bias, rows.dtype(), &[vocabulary])?;
    let StepObjective { weights, temperature, normalisers, .. } = *step;
    check_targets(targets, count, vocabulary, &normalisers)?;
    if weights.has(Part::LogitMse) && targets.max_logit.len() != count {
        return Err(failure("head_loss", format!("{} largest logits for {count} rows", targets.max_logit.len())));
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(failure("head_loss", format!("a temperature of {temperature}")));
    }
    let objective = RowObjective {
        inverse_temperature: 1.0 / temperature,
        ce: weights.get(Part::Ce) * temperature / normalisers.asked.max(1) as f64,
        mlm: weights.get(Part::Mlm) / normalisers.masked.max(1) as f64,
        whole: targets.k == vocabulary,
        others: RowObjectives::new(step, vocabulary - targets.k),
    };
    for_dtype!("head_loss", rows.dtype(), T => {
        let (sums, gradients) = with_slice("head_loss", rows, |x: &[T]| run(x, width, decoder, targets, &objective, rows.track_op()))??;
        let count = |part| if part == Part::Mlm { normalisers.masked } else { normalisers.asked };
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
    let masked = labels.iter().filter(|label| **label >= 0).count();
    if rows > normalisers.asked || masked > normalisers.masked {
        let step = format!("{} asked and {} masked rows", normalisers.asked, normalisers.masked);
        return Err(failure("head_loss", format!("{rows} asked and {masked} masked rows in a step of {step}")));
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

fn run<T: Element>(
    x: &[T],
    width: usize,
    decoder: &Affine,
    targets: &HeadTargets<'_>,
    objective: &RowObjective,
    tracked: bool,
) -> Result<(RowLosses, Option<Gradients<T>>)> {
    let (rows, vocabulary, level) = (x.len() / width, decoder.bias.elements(), Level::best());
    let chunk = rows_per_chunk(rows, vocabulary);
    let mut logits = vec![T::zero(); chunk.min(rows) * vocabulary];
    let mut sums = RowLosses::default();
    let mut row_gradients = if tracked { vec![T::zero(); x.len()] } else { Vec::new() };
    let mut weight_gradient: Vec<T> = Vec::new();
    let mut bias_gradient = vec![T::zero(); if tracked { vocabulary } else { 0 }];
    decoder.weight.with_value(|weight: &[T]| {
        decoder.bias.with_value(|bias: &[T]| {
            let weight = Matrix::new(weight, vocabulary, width);
            for first in (0..rows).step_by(chunk) {
                let count = chunk.min(rows - first);
                let logits = &mut logits[..count * vocabulary];
                let x = Matrix::new(&x[first * width..(first + count) * width], count, width);
                multiply(logits, vocabulary, false, x, weight.transposed(), Threads::All);
                let losses: Vec<RowLosses> = logits
                    .par_chunks_mut(vocabulary)
                    .enumerate()
                    .map_init(Vec::new, |kept, (i, logits)| {
                        differentiate_row(level, logits, bias, RowTargets::new(targets, first + i), objective, kept)
                    })
                    .collect();
                losses.iter().for_each(|row| sums += *row);
                if tracked {
                    let slopes = Matrix::new(logits, count, vocabulary);
                    multiply(&mut row_gradients[first * width..], width, false, slopes, weight, Threads::All);
                    if first == 0 {
                        weight_gradient = product(slopes.transposed(), x, Threads::All);
                    } else {
                        multiply(&mut weight_gradient, width, true, slopes.transposed(), x, Threads::All);
                    }
                    add_column_sums(logits, vocabulary, 0, &mut bias_gradient);
                }
            }
        })
    })??;
    let parameters =
        if rows == 0 { Vec::new() } else { vec![(decoder.weight.clone(), weight_gradient), (decoder.bias.clone(), bias_gradient)] };
    Ok((sums, tracked.then_some(Gradients { activation: row_gradients, parameters })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, affines, assert_close, numbers, random, random_affine};
    use crate::kernels::{Parameter, ParameterRef};
    use crate::loss::{Objective, Tail};
    use logitcache::oracle;

    const WIDTH: usize = 7;

    /// Rows, k, vocabulary, labels.
    type Case = (usize, usize, Vec<i32>);

    struct Example {
        rows: Tensor,
        decoder: [Tensor; 2],
        k: usize,
        vocabulary: usize,
        top_ids: Vec<u32>,
        log_probabilities: Vec<f32>,
        max_logit: Vec<f32>,
        labels: Vec<i32>,
    }

    fn example((k, vocabulary, labels): Case) -> Example {
        let count = labels.len();
        let teacher = numbers(&random(5, &[count, vocabulary], 2.0));
        let (mut top_ids, mut log_probabilities, mut max_logit) = (Vec::new(), Vec::new(), Vec::new());
        for logits in teacher.chunks(vocabulary) {
            let logs = oracle::log_softmax(logits, 2.0);
            max_logit.push(logits.iter().copied().fold(f64::NEG_INFINITY, f64::max) as f32);
            for id in oracle::top_k(logits, k) {
                top_ids.push(id as u32);
                log_probabilities.push(logs[id] as f32);
            }
        }
        let (rows, decoder) = (random(1, &[count, WIDTH], 1.0), random_affine(2, &[vocabulary, WIDTH], 0.8));
        Example { rows, decoder, k, vocabulary, top_ids, log_probabilities, max_logit, labels }
    }

    impl Example {
        fn targets(&self) -> HeadTargets<'_> {
            let Self { k, top_ids, log_probabilities, max_logit, labels, .. } = self;
            HeadTargets { k: *k, top_ids, log_probabilities, max_logit, labels }
        }

        /// Of a step that has more rows than this batch.
        fn normalisers(&self) -> Normalisers {
            let masked = self.labels.iter().filter(|label| **label >= 0).count();
            Normalisers { asked: self.labels.len() + 3, masked: masked + 1, tokens: 20 }
        }

        fn wrapped(&self) -> Affine {
            let wrapped: Vec<ParameterRef> = self.decoder.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
            affines(&wrapped)[0].clone()
        }

        fn run(&self, rows: &Tensor, decoder: &Affine, loss: &str) -> Result<(Tensor, LossParts)> {
            let step = StepObjective::new(&loss.parse().unwrap(), (0, 1), 2.0, self.normalisers());
            head_loss(rows, decoder, &self.targets(), &step)
        }

        /// ce and mlm.
        fn reference(&self) -> [f64; 2] {
            let logits = self.rows.matmul(&self.decoder[0].t().unwrap()).unwrap().broadcast_add(&self.decoder[1]).unwrap();
            let mut loss = [0.0; 2];
            for (row, logits) in numbers(&logits).chunks(self.vocabulary).enumerate() {
                let stored = row * self.k..(row + 1) * self.k;
                let ids: Vec<usize> = self.top_ids[stored.clone()].iter().map(|id| *id as usize).collect();
                let logs: Vec<f64> = self.log_probabilities[stored].iter().map(|log| f64::from(*log)).collect();
                loss[0] += 4.0 * oracle::ghost_divergence(logits, &ids, &logs, 2.0).loss / self.normalisers().asked as f64;
                if let Ok(label) = usize::try_from(self.labels[row]) {
                    loss[1] += oracle::cross_entropy(logits, label).loss / self.normalisers().masked as f64;
                }
            }
            loss
        }
    }

    fn cases() -> Vec<Case> {
        vec![
            (3, 17, vec![-100, 4, -100, 16, 0]), // labels inside and outside the stored ids
            (1, 40, vec![39, 39]),
            (17, 17, vec![-100, 4, 5]), // k is the vocabulary
            (5, 33, vec![-100; 4]),     // nothing masked
            (2, 19, vec![]),            // nothing asked
        ]
    }

    #[test]
    fn parts_agree_with_the_oracle() {
        for case in cases() {
            let example = example(case.clone());
            let (scalar, parts) = example.run(&example.rows, &example.wrapped(), "ce=5,mlm=2").unwrap();
            let [ce, mlm] = example.reference();
            let found = [parts.get(Part::Ce), parts.get(Part::Mlm), numbers(&scalar)[0]];
            assert_close(&format!("{case:?}"), &found, &[ce, mlm, 5.0 * ce + 2.0 * mlm], 1e-6, 1e-7);
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        for case in cases().into_iter().filter(|case| !case.2.is_empty()) {
            let example = example(case);
            for loss in ["ce=5,mlm=2", "ce=1", "mlm=1"] {
                let run = |x: &[Tensor], p: &[ParameterRef]| Ok(example.run(&x[0], &affines(p)[0], loss)?.0);
                Proof { inputs: std::slice::from_ref(&example.rows), parameters: &example.decoder, run }.check();
            }
        }
    }

    /// Every part with each of its tails, and some together.
    const LOSSES: [&str; 19] = [
        "ce=1:tail=zero",
        "ce=1:tail=renormalised-teacher",
        "ce=1:tail=renormalised-both",
        "ce=1:tail=uniform",
        "reverse-kl=1",
        "reverse-kl=1:tail=renormalised-both",
        "jsd=1",
        "jsd=1:beta=0.1:tail=zero",
        "jsd=1:beta=0.9:tail=renormalised-teacher",
        "jsd=1:beta=0.3:tail=renormalised-both",
        "jsd=1:beta=0",
        "jsd=1:beta=1",
        "tvd=1",
        "tvd=1:tail=zero",
        "tvd=1:tail=renormalised-teacher",
        "tvd=1:tail=renormalised-both",
        "logit-mse=1",
        "logit-mse=0.5,mlm=2",
        "ce=5:tail=uniform,reverse-kl=0.5,jsd=3:beta=0.25,tvd=2,logit-mse=0.1,mlm=2",
    ];

    fn oracle_tail(tail: Tail) -> oracle::Tail {
        match tail {
            Tail::Ghost => oracle::Tail::Ghost,
            Tail::Zero => oracle::Tail::Zero,
            Tail::RenormalisedTeacher => oracle::Tail::RenormalisedTeacher,
            Tail::RenormalisedBoth => oracle::Tail::RenormalisedBoth,
            Tail::Uniform => oracle::Tail::Uniform,
        }
    }

    impl Example {
        /// A part in double precision, with its power of T = 2.
        fn reference_of(&self, part: Part, objective: &Objective) -> f64 {
            let logits = self.rows.matmul(&self.decoder[0].t().unwrap()).unwrap().broadcast_add(&self.decoder[1]).unwrap();
            let mut sum = 0.0;
            for (row, logits) in numbers(&logits).chunks(self.vocabulary).enumerate() {
                let stored = row * self.k..(row + 1) * self.k;
                let ids: Vec<usize> = self.top_ids[stored.clone()].iter().map(|id| *id as usize).collect();
                let logs: Vec<f64> = self.log_probabilities[stored].iter().map(|log| f64::from(*log)).collect();
                let of =
                    |divergence| oracle::truncated_divergence(divergence, oracle_tail(objective.tail(part)), logits, &ids, &logs, 2.0).loss;
                sum += match part {
                    Part::Ce => 4.0 * of(oracle::Divergence::ForwardKl),
                    Part::ReverseKl => 4.0 * of(oracle::Divergence::ReverseKl),
                    Part::Jsd if objective.beta() == 0.0 => 4.0 * of(oracle::Divergence::ForwardKl),
                    Part::Jsd if objective.beta() == 1.0 => 4.0 * of(oracle::Divergence::ReverseKl),
                    Part::Jsd => 4.0 * of(oracle::Divergence::JensenShannon(objective.beta())),
                    Part::Tvd => 2.0 * of(oracle::Divergence::TotalVariation),
                    Part::LogitMse => {
                        let teacher: Vec<f64> = logs.iter().map(|log| f64::from(self.max_logit[row]) + 2.0 * (log - logs[0])).collect();
                        oracle::logit_squared_error(logits, &ids, &teacher).loss
                    }
                    _ => 0.0,
                };
            }
            sum / self.normalisers().asked as f64
        }
    }

    #[test]
    fn every_objective_agrees_with_the_oracle() {
        for case in cases() {
            let example = example(case.clone());
            for loss in LOSSES {
                let objective: Objective = loss.parse().unwrap();
                let (scalar, parts) = example.run(&example.rows, &example.wrapped(), loss).unwrap();
                let expected = Part::ALL.map(|part| match part {
                    Part::Mlm if objective.has(part) => example.reference()[1],
                    part if objective.has(part) => example.reference_of(part, &objective),
                    _ => 0.0,
                });
                assert_close(&format!("{case:?} {loss}"), &parts.values, &expected, 1e-6, 1e-7);
                let total = objective.weights_at(0, 1).total(&expected);
                assert_close(&format!("{case:?} {loss}"), &[numbers(&scalar)[0], parts.total], &[total; 2], 1e-6, 1e-7);
            }
        }
    }

    #[test]
    fn every_objectives_gradient_agrees_with_finite_differences() {
        for case in cases().into_iter().filter(|case| !case.2.is_empty()) {
            let example = example(case);
            for loss in LOSSES {
                let run = |x: &[Tensor], p: &[ParameterRef]| Ok(example.run(&x[0], &affines(p)[0], loss)?.0);
                Proof { inputs: std::slice::from_ref(&example.rows), parameters: &example.decoder, run }.check();
            }
        }
    }

    #[test]
    fn stored_probabilities_that_round_past_one_are_slopes_all_the_same() {
        let mut example = example((3, 17, vec![-100, 4]));
        // About 1.003 in all.
        example.log_probabilities = [0.7f32, 0.2, 0.103].repeat(2).into_iter().map(f32::ln).collect();
        for loss in LOSSES.into_iter().chain(["ce=5,mlm=2"]) {
            let run = |x: &[Tensor], p: &[ParameterRef]| Ok(example.run(&x[0], &affines(p)[0], loss)?.0);
            Proof { inputs: std::slice::from_ref(&example.rows), parameters: &example.decoder, run }.check();
        }
    }

    #[test]
    fn extreme_logits_stay_finite_under_every_objective() {
        let single = candle_core::DType::F32;
        for scale in [1e2, 1e4] {
            let mut example = example((3, 17, vec![-100, 4]));
            example.rows = (example.rows * scale).unwrap().to_dtype(single).unwrap();
            example.decoder = example.decoder.map(|tensor| tensor.to_dtype(single).unwrap());
            for loss in LOSSES {
                let (rows, decoder) = (candle_core::Var::from_tensor(&example.rows).unwrap(), example.wrapped());
                let (scalar, parts) = example.run(&rows, &decoder, loss).unwrap();
                let gradients = scalar.backward().unwrap();
                assert!(parts.values.iter().all(|value| value.is_finite()), "{loss}: {parts:?}");
                assert!(numbers(gradients.get(&rows).unwrap()).iter().all(|value| value.is_finite()), "{loss}");
            }
        }
    }

    #[test]
    fn parts_of_weight_zero_leave_a_loss_of_zero() {
        let example = example((3, 17, vec![-100, 4]));
        let (rows, decoder) = (candle_core::Var::from_tensor(&example.rows).unwrap(), example.wrapped());
        let (scalar, parts) = example.run(&rows, &decoder, "ce=1:schedule=wsd,jsd=1:schedule=wsd:warmup=0.5,mlm=1:schedule=wsd").unwrap();
        scalar.backward().unwrap();
        assert_eq!(parts, LossParts::default());
        assert!(numbers(&decoder.weight.gradient_tensor().unwrap()).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn nothing_asked_gives_nothing() {
        let example = example((2, 19, vec![]));
        let (rows, decoder) = (candle_core::Var::from_tensor(&example.rows).unwrap(), example.wrapped());
        let (scalar, parts) = example.run(&rows, &decoder, "ce=5,mlm=2").unwrap();
        assert_eq!(parts, LossParts::default());
        scalar.backward().unwrap();
        assert!(numbers(&decoder.weight.gradient_tensor().unwrap()).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn extreme_logits_stay_finite_in_single_precision() {
        let mut example = example((3, 17, vec![-100, 4]));
        example.rows = (example.rows * 1e3).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        example.decoder = example.decoder.map(|tensor| tensor.to_dtype(candle_core::DType::F32).unwrap());
        let (rows, decoder) = (candle_core::Var::from_tensor(&example.rows).unwrap(), example.wrapped());
        let (scalar, parts) = example.run(&rows, &decoder, "ce=5,mlm=2").unwrap();
        let gradients = scalar.backward().unwrap();
        assert!(parts.total.is_finite());
        assert!(numbers(gradients.get(&rows).unwrap()).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn chunks_are_even_and_cover_all_rows() {
        for (rows, vocabulary) in [(2002, 591), (2048, 30522), (1, 30522), (0, 10), (5000, 8)] {
            let chunk = rows_per_chunk(rows, vocabulary);
            assert!(chunk >= 1 && chunk * rows.div_ceil(chunk) < rows + rows.div_ceil(chunk).max(1));
            assert!(chunk <= 1024);
        }
    }

    #[test]
    fn targets_are_checked() {
        let refused = |change: fn(&mut Example)| {
            let mut example = example((3, 17, vec![-100, 4]));
            let decoder = example.wrapped();
            change(&mut example);
            example.run(&example.rows, &decoder, "ce=5,mlm=2").unwrap_err().to_string()
        };
        assert!(refused(|example| example.top_ids[2] = 17).contains("stored id 17"));
        assert!(refused(|example| example.labels[0] = 17).contains("label 17"));
        assert!(refused(|example| example.labels[0] = -1).contains("label -1"));
        assert!(refused(|example| example.k = 18).contains("k = 18"));
        assert!(refused(|example| example.log_probabilities.truncate(5)).contains("5 log-probabilities"));
    }
}
