//! Every part and tail against the float64 oracle, finite differences and each instruction level.

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
        Normalisers { asked: self.labels.len() + 3, labelled: masked + 1, tokens: 20, sequences: 4 }
    }

    fn wrapped(&self) -> Affine {
        let wrapped: Vec<ParameterRef> = self.decoder.iter().map(|tensor| Parameter::new("p", tensor).unwrap()).collect();
        affines(&wrapped)[0].clone()
    }

    fn step(&self, loss: &str) -> StepObjective {
        StepObjective::new(&loss.parse().unwrap(), (0, 1), 2.0, self.normalisers())
    }

    fn run(&self, rows: &Tensor, decoder: &Affine, loss: &str) -> Result<(Tensor, LossParts)> {
        head_loss(rows, decoder, &self.targets(), &self.step(loss))
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
                loss[1] += oracle::cross_entropy(logits, label).loss / self.normalisers().labelled as f64;
            }
        }
        loss
    }
}

fn cases() -> Vec<Case> {
    vec![
        (3, 17, vec![-100, 4, -100, 16, 0]), // labels inside and outside the stored ids
        (1, 40, vec![39, 39]),
        (17, 17, vec![-100, 4, 5]),    // k is the vocabulary
        (5, 33, vec![-100; 4]),        // nothing masked
        (4, 150, vec![-100, 149, 64]), // several tiles, the last one short
        (2, 19, vec![]),               // nothing asked
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
fn without_a_bias_it_is_a_bias_of_zeros() {
    for case in cases().into_iter().filter(|case| !case.2.is_empty()) {
        let mut example = example(case);
        example.decoder[1] = example.decoder[1].zeros_like().unwrap();
        for loss in ["ce=5,mlm=2", "ce=1:tail=zero,jsd=1", "mlm=1"] {
            let step = example.step(loss);
            let run = |x: &[Tensor], p: &[ParameterRef]| Ok(head_loss_without_bias(&x[0], &p[0], &example.targets(), &step)?.0);
            let (_, expected) = example.run(&example.rows, &example.wrapped(), loss).unwrap();
            let (_, found) = head_loss_without_bias(&example.rows, &example.wrapped().weight, &example.targets(), &step).unwrap();
            assert_eq!(found, expected, "{loss}");
            Proof { inputs: std::slice::from_ref(&example.rows), parameters: &example.decoder[..1], run }.check();
        }
    }
}

impl Example {
    /// The same under a vocabulary of the ids alone that its rows store or answer with.
    fn of_few_ids(&self) -> Self {
        let answers = self.labels.iter().filter_map(|label| u32::try_from(*label).ok());
        let mut ids: Vec<u32> = self.top_ids.iter().copied().chain(answers).collect();
        ids.sort_unstable();
        ids.dedup();
        let place = |id: u32| ids.binary_search(&id).unwrap() as u32;
        let taken = Tensor::new(&ids[..], &candle_core::Device::Cpu).unwrap();
        Self {
            rows: self.rows.clone(),
            decoder: self.decoder.clone().map(|tensor| tensor.index_select(&taken, 0).unwrap()),
            k: self.k,
            vocabulary: ids.len(),
            top_ids: self.top_ids.iter().map(|id| place(*id)).collect(),
            log_probabilities: self.log_probabilities.clone(),
            max_logit: self.max_logit.clone(),
            labels: self.labels.iter().map(|label| u32::try_from(*label).map_or(*label, |id| place(id) as i32)).collect(),
        }
    }
}

#[test]
fn few_ids_are_a_vocabulary_of_their_own() {
    for case in [(3, 400, vec![-100, 399, 0, 7]), (4, 150, vec![-100, 149, 64]), (2, 60, vec![-100; 3])] {
        let example = example(case);
        let few = example.of_few_ids();
        for loss in LOSSES.into_iter().chain(["ce=5,mlm=2"]) {
            let step = example.step(loss).with_few_ids(true);
            let (_, expected) = few.run(&few.rows, &few.wrapped(), loss).unwrap();
            let (_, found) = head_loss(&example.rows, &example.wrapped(), &example.targets(), &step).unwrap();
            assert_close(loss, &found.values, &expected.values, 1e-12, 1e-12);
            let run = |x: &[Tensor], p: &[ParameterRef]| Ok(head_loss(&x[0], &affines(p)[0], &example.targets(), &step)?.0);
            Proof { inputs: std::slice::from_ref(&example.rows), parameters: &example.decoder, run }.check();
        }
    }
}

#[test]
fn few_ids_that_are_nearly_all_are_all() {
    for case in [(17, 17, vec![-100, 4]), (9, 20, vec![-100, 4, 19, 0]), (3, 40, vec![]), (5, 90, vec![-100])] {
        let example = example(case);
        let step = example.step("ce=5,mlm=2");
        let run = |step| head_loss(&example.rows, &example.wrapped(), &example.targets(), &step).unwrap().1;
        assert_eq!(run(step), run(step.with_few_ids(true)));
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
