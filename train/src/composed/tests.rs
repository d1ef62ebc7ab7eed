//! The composed student against the kernels: losses and every parameter's gradient, in double precision, under the kernels' own masks of dropout;
//! then ten steps of the optimiser. In a build for a GPU it runs there.

mod steps;

use super::*;
use crate::kernels::dropout::{Rate, stream_of};
use crate::kernels::proof::{assert_close, numbers};
use crate::kernels::{DropoutSite, Packing, dropout};
use crate::loss::Normalisers;
use crate::loss::hidden_map::HiddenPair;
use crate::student::decoder::tests::decoders;
use crate::student::tests::heads::{students, taught};
use crate::student::tests::{TEMPERATURE, batch, families, student};
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::Task;
use std::sync::Arc;

const PLAN: DropoutPlan = DropoutPlan { seed: 3, step: 5, hidden: 0.2, attention: 0.3 };

/// The GPU of a build that has one, else candle's processor.
fn device() -> Device {
    Device::cuda_if_available(0).unwrap()
}

/// The masks that the kernels draw for `batch`.
fn kernel_factors<'a>(config: &'a StudentConfig, batch: &'a Batch, plan: &'a DropoutPlan) -> Box<Factors<'a>> {
    let all = Packing::new(&batch.offsets, &batch.sequence_ids, &batch.passes).unwrap();
    Box::new(move |site, shape| match site {
        DropoutSite::Attention(_) => attention_factors(&all, plan, site, shape).to_device(&device()).map(Some),
        _ => {
            // A sequence's class is read off one row, which is then a sequence of its own.
            let of_firsts =
                config.task == Task::SequenceClassification && matches!(site, DropoutSite::Classifier | DropoutSite::ClassifierInput);
            let firsts = || Packing::new(&(0..=shape[0]).collect::<Vec<_>>(), &batch.sequence_ids, &batch.passes).unwrap();
            let packing: Arc<Packing> = if of_firsts { firsts() } else { all.clone() };
            dropout(&Tensor::ones(shape, DType::F64, &Device::Cpu)?, &packing, plan, site)?.to_device(&device()).map(Some)
        }
    })
}

fn attention_factors(packing: &Packing, plan: &DropoutPlan, site: DropoutSite, shape: &[usize]) -> Tensor {
    let [sequences, heads, longest, _] = shape.try_into().unwrap();
    let mut factors = vec![1.0f64; shape.iter().product()];
    let Some(rate) = Rate::new("attention", plan.attention).unwrap() else {
        return Tensor::from_vec(factors, shape, &Device::Cpu).unwrap();
    };
    for (sequence, head) in (0..sequences).flat_map(|sequence| (0..heads).map(move |head| (sequence, head))) {
        let (length, stream) = (packing.range(sequence).len(), stream_of(plan, packing, sequence, site, head));
        for row in 0..length {
            let first = ((sequence * heads + head) * longest + row) * longest;
            rate.factors(&stream, row, &mut factors[first..first + length]);
        }
    }
    Tensor::from_vec(factors, shape, &Device::Cpu).unwrap()
}

/// The batch and another of the same targets: the same tokens backwards, of other sequences.
fn two_batches(batch: Batch) -> Step {
    let mut other = Batch { sequence_ids: batch.sequence_ids.iter().map(|id| id + 10).collect(), ..batch.clone() };
    other.input_ids.reverse();
    Step { micro_batches: vec![batch, other] }
}

/// A step of a language model with two states of a teacher of this width.
fn step_of(config: &StudentConfig, teacher_width: usize) -> Step {
    let (mut batch, mut stream) = (batch(config), RandomStream::new(23, Purpose::Shuffling, &[]));
    let numbers = batch.tokens() * teacher_width;
    batch.hidden = (0..2).map(|_| (0..numbers).map(|_| stream.normal() as f32).collect()).collect();
    two_batches(batch)
}

fn assert_equal(config: StudentConfig, step: &Step, loss: &str, pairs: &[HiddenPair], teacher_width: usize) {
    let what = format!("{} for {}, {loss}", config.family, config.task);
    let student = student(config, DType::F64);
    let hidden = HiddenObjective::new(pairs, (student.config().hidden_size, teacher_width), DType::F64, 1).unwrap();
    let parameters: Vec<ParameterRef> = student.parameters().iter().chain(hidden.parameters()).cloned().collect();
    let objective = StepObjective::new(&loss.parse().unwrap(), (0, 1), TEMPERATURE, step.normalisers());
    let composed = Composed::new(&student, &hidden, &device(), Precision::Single).unwrap();
    let mut training = composed.train(AdamWSettings::default(), &Moments::zeros(&parameters)).unwrap();
    for batch in &step.micro_batches {
        let (scalar, expected) = student.mapped_loss(batch, &objective, &hidden, &PLAN).unwrap();
        scalar.backward().unwrap();
        let (scalar, values) = training.composed.loss(batch, &objective, &kernel_factors(student.config(), batch, &PLAN)).unwrap();
        training.optimiser.add_gradients(&scalar.unwrap(), &training.composed.values).unwrap();
        let expected: Vec<f64> =
            Part::ALL.iter().map(|part| if objective.weights.has(*part) { expected.get(*part) } else { 0.0 }).collect();
        assert_close(&format!("parts of {what}"), &numbers(&values), &expected, 1e-10, 1e-12);
    }
    let mut squares = 0.0;
    for (parameter, gradient) in parameters.iter().zip(training.optimiser.gradients()) {
        let expected = numbers(&parameter.gradient_tensor().unwrap());
        squares += expected.iter().map(|slope| slope * slope).sum::<f64>();
        let found = gradient.as_ref().map_or_else(|| vec![0.0; expected.len()], numbers);
        assert_close(&format!("{}, {what}", parameter.name()), &found, &expected, 1e-10, 1e-12);
    }
    let found = numbers(&training.optimiser.squared_norm(&device()).unwrap());
    assert_close(&format!("norm of {what}"), &found, &[squares], 1e-10, 0.0);
    assert!(squares > 0.0, "{what}");
}

/// Every part of a language model with every tail that it can have, and all together.
const LANGUAGE_MODEL_LOSSES: [&str; 17] = [
    "ce=5,mlm=2,cos=1",
    "ce=1:tail=zero",
    "ce=1:tail=renormalised-teacher",
    "ce=1:tail=renormalised-both",
    "ce=1:tail=uniform,gold=1",
    "reverse-kl=1",
    "reverse-kl=1:tail=renormalised-both",
    "jsd=1",
    "jsd=1:beta=0.3:tail=zero",
    "jsd=1:beta=0.3:tail=renormalised-teacher",
    "jsd=1:beta=0:tail=renormalised-both",
    "jsd=1:beta=1",
    "tvd=1",
    "tvd=1:tail=zero",
    "logit-mse=1,hidden-mse=1",
    "mlm=1",
    "ce=1:tail=uniform,reverse-kl=0.5,jsd=2,tvd=1:tail=renormalised-teacher,logit-mse=0.1,gold=1,cos=1,hidden-mse=2",
];

fn last(config: &StudentConfig) -> Vec<HiddenPair> {
    vec![HiddenPair { student: config.num_hidden_layers, teacher: 2 }]
}

#[test]
fn language_models_are_the_kernels() {
    for config in families().into_iter().chain(decoders()) {
        let step = step_of(&config, config.hidden_size);
        for loss in LANGUAGE_MODEL_LOSSES {
            assert_equal(config.clone(), &step, loss, &last(&config), config.hidden_size);
        }
    }
}

#[test]
fn a_whole_vocabulary_leaves_no_tail() {
    for config in families().into_iter().chain(decoders()) {
        let mut step = step_of(&config, config.hidden_size);
        let mut stream = RandomStream::new(29, Purpose::Shuffling, &[]);
        for batch in &mut step.micro_batches {
            batch.k = config.vocab_size;
            (batch.top_ids, batch.log_probabilities) = (vec![], vec![]);
            for _ in &batch.asked {
                let mut ids: Vec<u32> = (0..config.vocab_size as u32).collect();
                stream.shuffle(&mut ids);
                batch.top_ids.extend(&ids);
                let logits: Vec<f64> = ids.iter().map(|_| stream.normal()).collect();
                let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                batch.log_probabilities.extend(logits.iter().map(|logit| (logit - log_sum) as f32));
            }
        }
        for loss in ["ce=1,mlm=1", "ce=1:tail=uniform", "reverse-kl=1,jsd=1,tvd=1,logit-mse=1", "ce=1:tail=renormalised-both"] {
            assert_equal(config.clone(), &step, loss, &[], config.hidden_size);
        }
    }
}

#[test]
fn states_are_compared_through_projections() {
    for config in families().into_iter().chain(decoders()) {
        let step = step_of(&config, 5);
        let pair = |student, teacher| HiddenPair { student, teacher };
        let pairs = [pair(0, 3), pair(1, 1), pair(config.num_hidden_layers, 3)];
        assert_equal(config, &step, "ce=1,cos=3,hidden-mse=2", &pairs, 5);
    }
}

#[test]
fn every_head_is_the_kernels() {
    for (config, loss) in students() {
        let step = two_batches(taught(&config));
        for loss in [loss.to_owned(), format!("{loss},cos=1,hidden-mse=1")] {
            assert_equal(config.clone(), &step, &loss, &last(&config), config.hidden_size);
        }
    }
}

#[test]
fn answers_are_the_kernels() {
    let language_models = families().into_iter().chain(decoders()).map(|config| (batch(&config), config));
    for (batch, config) in language_models.chain(students().into_iter().map(|(config, _)| (taught(&config), config))) {
        let student = student(config, DType::F64);
        let hidden = HiddenObjective::last(student.config().num_hidden_layers);
        let composed = Composed::new(&student, &hidden, &device(), Precision::Single).unwrap();
        let of_vectors = student.config().task == Task::SentenceEmbedding;
        let (found, expected, other) = match of_vectors {
            true => (composed.embeddings(&batch), student.embeddings(&batch), composed.logits(&batch)),
            false => (composed.logits(&batch), student.logits(&batch), composed.embeddings(&batch)),
        };
        let (found, expected) = (found.unwrap(), expected.unwrap());
        assert_eq!(found.dims(), expected.dims());
        assert!(!found.track_op(), "nothing is kept for a backward pass");
        assert_close(student.config().family.name(), &numbers(&found), &numbers(&expected), 1e-11, 1e-12);
        assert!(other.is_err());
    }
}

#[test]
fn what_is_out_of_range_is_refused_before_the_device_sees_it() {
    let [config, bert, ..] = families();
    let refused = |config: &StudentConfig, batch: Batch, loss: &str| {
        let student = student(config.clone(), DType::F64);
        let hidden = HiddenObjective::last(config.num_hidden_layers);
        let composed = Composed::new(&student, &hidden, &device(), Precision::Single).unwrap();
        let counts = Normalisers { asked: 20, labelled: 20, tokens: 20, sequences: 3 };
        let objective = StepObjective::new(&loss.parse().unwrap(), (0, 1), TEMPERATURE, counts);
        composed.loss(&batch, &objective, &off).unwrap_err().to_string()
    };
    let good = batch(&config);
    assert!(refused(&config, Batch { input_ids: vec![13; 14], ..good.clone() }, "ce=1").contains("id 13 of 13"));
    assert!(refused(&config, Batch { offsets: vec![0, 9, 11, 14], ..good.clone() }, "ce=1").contains("9 tokens for 7 positions"));
    assert!(refused(&config, Batch { asked: vec![3, 14], ..good.clone() }, "ce=1").contains("row 14 of 14"));
    assert!(refused(&config, Batch { labels: vec![13; good.asked.len()], ..good.clone() }, "mlm=1").contains("label 13 of 13"));
    assert!(refused(&config, Batch { top_ids: vec![13; good.top_ids.len()], ..good.clone() }, "ce=1").contains("stored id 13 of 13"));
    assert!(refused(&config, Batch { hidden: vec![], ..good.clone() }, "cos=1").contains("of 0 of the teacher"));
    assert!(refused(&config, good, "embedding-cos=1").contains("vectors"));
    assert!(refused(&bert, Batch { token_type_ids: vec![2; 14], ..batch(&bert) }, "ce=1").contains("token type 2 of 2"));
}
