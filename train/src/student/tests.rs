//! The whole student: against a plain reference, against finite differences, alone and packed.

use super::*;
use crate::kernels::{Activation, Element};
use crate::loss::{Normalisers, Objective, Part};
use logitcache::seed::{Purpose, RandomStream};

pub(crate) const TEMPERATURE: f64 = 2.0;

fn config() -> StudentConfig {
    StudentConfig {
        vocab_size: 13,
        hidden_size: 8,
        embedding_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 7,
        dropout: 0.1,
        attention_dropout: 0.1,
        initializer_range: 0.3,
        pad_token_id: Some(0),
        ..StudentConfig::default()
    }
}

/// A small student of each family, with another activation each.
pub(crate) fn families() -> [StudentConfig; 4] {
    let of = |family, activation| StudentConfig { family, activation, type_vocab_size: 2, layer_norm_eps: 1e-5, ..config() };
    [
        config(),
        of(Family::Bert, Activation::Silu),
        // Its positions begin at 2, and its head keeps GELU.
        StudentConfig { pad_token_id: Some(1), max_position_embeddings: 9, ..of(Family::Roberta, Activation::Relu) },
        StudentConfig { embedding_size: 5, num_hidden_layers: 3, ..of(Family::Albert, Activation::GeluNew) },
    ]
}

/// A student whose every value is random, biases and LayerNorm weights included, so that none of them can be forgotten unnoticed.
pub(crate) fn student(config: StudentConfig, dtype: DType) -> Student {
    let mut source = |spec: &ParameterSpec| {
        let mut stream = RandomStream::new(11, Purpose::Initialisation, &[spec.number as u64]);
        let centre = if spec.shape.len() == 1 && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
        Ok((0..spec.shape.iter().product()).map(|_| (centre + 0.3 * stream.normal()) as f32).collect())
    };
    Student::new(config, dtype, &mut source).unwrap()
}

/// Sequences of 4, 7 and 3 tokens: most rows asked, some masked, targets and hidden states at random.
pub(crate) fn batch(config: &StudentConfig) -> Batch {
    let mut stream = RandomStream::new(3, Purpose::Shuffling, &[]);
    let offsets = vec![0, 4, 11, 14];
    let k = 4;
    let mut batch = Batch { sequence_ids: vec![5, 9, 2], passes: vec![0, 1, 0], offsets, k, hidden: vec![vec![]], ..Default::default() };
    for row in 0..14u32 {
        batch.input_ids.push(stream.below(config.vocab_size) as u32);
        if config.family.has_token_types() {
            batch.token_type_ids.push(u32::from(row % 4 == 2));
        }
        batch.hidden[0].extend((0..config.hidden_size).map(|_| stream.normal() as f32));
        if row % 5 == 3 {
            continue;
        }
        batch.asked.push(row);
        batch.labels.push(if row % 3 == 0 { stream.below(config.vocab_size) as i32 } else { -100 });
        let mut ids: Vec<u32> = (0..config.vocab_size as u32).collect();
        stream.shuffle(&mut ids);
        batch.top_ids.extend(&ids[..k]);
        batch.log_probabilities.extend([0.5f32, 0.2, 0.1, 0.05].map(f32::ln));
        batch.max_logit.push(3.0);
    }
    batch
}

/// The part of a batch that belongs to the given sequences.
fn part(batch: &Batch, sequences: std::ops::Range<usize>, dim: usize) -> Batch {
    let (start, end) = (batch.offsets[sequences.start], batch.offsets[sequences.end]);
    let rows = |row: &&u32| (start..end).contains(&(**row as usize));
    let first = batch.asked.iter().take_while(|row| (**row as usize) < start).count();
    let last = first + batch.asked.iter().filter(rows).count();
    Batch {
        sequence_ids: batch.sequence_ids[sequences.clone()].to_vec(),
        passes: batch.passes[sequences.clone()].to_vec(),
        offsets: batch.offsets[sequences.start..=sequences.end].iter().map(|offset| offset - start).collect(),
        input_ids: batch.input_ids[start..end].to_vec(),
        token_type_ids: batch.token_type_ids.get(start..end).map(<[u32]>::to_vec).unwrap_or_default(),
        asked: batch.asked[first..last].iter().map(|row| row - start as u32).collect(),
        k: batch.k,
        top_ids: batch.top_ids[first * batch.k..last * batch.k].to_vec(),
        log_probabilities: batch.log_probabilities[first * batch.k..last * batch.k].to_vec(),
        max_logit: batch.max_logit[first..last].to_vec(),
        labels: batch.labels[first..last].to_vec(),
        hidden: vec![batch.hidden[0][start * dim..end * dim].to_vec()],
        ..Batch::default()
    }
}

fn normalisers(batch: &Batch) -> Normalisers {
    let masked = batch.labels.iter().filter(|label| **label >= 0).count();
    Normalisers { asked: batch.asked.len(), labelled: masked, tokens: batch.input_ids.len(), sequences: batch.sequence_ids.len() }
}

fn gradients<T: Element>(student: &Student) -> Vec<Vec<f64>> {
    let read = |parameter: &ParameterRef| parameter.with_gradient(|gradient: &mut [T]| gradient.iter().map(|g| g.to_f64()).collect());
    student.parameters().iter().map(|parameter| read(parameter).unwrap()).collect()
}

/// The default objective, at the first step.
fn objective(normalisers: &Normalisers) -> StepObjective {
    StepObjective::new(&Objective::default(), (0, 1), TEMPERATURE, *normalisers)
}

fn backward(student: &Student, batch: &Batch, normalisers: &Normalisers, plan: &DropoutPlan) -> LossParts {
    let (total, parts) = student.loss(batch, &objective(normalisers), plan).unwrap();
    total.backward().unwrap();
    parts
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn every_parameter_receives_a_finite_gradient_that_is_not_zero() {
    for config in families().into_iter().chain(decoder::tests::decoders()) {
        let student = student(config, DType::F32);
        let batch = batch(student.config());
        let parts = backward(&student, &batch, &normalisers(&batch), &student.dropout_plan(1, 2));
        let expected = 5.0 * parts.get(Part::Ce) + 2.0 * parts.get(Part::Mlm) + parts.get(Part::Cos);
        assert!(parts.total > 0.0 && (parts.total - expected).abs() < 1e-5, "{parts:?}");
        let gradients = gradients::<f32>(&student);
        let norms: Vec<f64> = gradients.iter().map(|gradient| norm(gradient)).collect();
        for (spec, norm) in layout(student.config()).iter().zip(&norms) {
            assert!(norm.is_finite(), "{}: {norm}", spec.name);
            // A key's bias adds the same number to all of a query's scores, which a softmax does not see: its gradient is 0 but for rounding.
            if spec.bias && matches!(spec.role, Role::Layer(_, LayerPart::Key)) {
                assert!(*norm < 1e-5, "{}: {norm}", spec.name);
            } else {
                assert!(*norm > 1e-4, "{}: {norm}", spec.name);
            }
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for config in families().into_iter().chain(decoder::tests::decoders()) {
        let student = student(config, DType::F64);
        let batch = batch(student.config());
        let (normalisers, plan) = (normalisers(&batch), student.dropout_plan(1, 2));
        backward(&student, &batch, &normalisers, &plan);
        let gradients = gradients::<f64>(&student);
        let loss = || student.loss(&batch, &objective(&normalisers), &plan).unwrap().1.total;
        let step = 1e-5;
        for (parameter, gradient) in student.parameters().iter().zip(&gradients) {
            let shift = |i: usize, by: f64| parameter.update(|value: &mut [f64], _: &mut [f64]| value[i] += by).unwrap();
            // A stride that is prime to the widths, so that the elements tried lie in many rows and columns.
            for i in (0..gradient.len()).step_by(if gradient.len() > 20 { 7 } else { 1 }) {
                shift(i, step);
                let above = loss();
                shift(i, -2.0 * step);
                let below = loss();
                shift(i, step);
                let slope = (above - below) / (2.0 * step);
                let error = (slope - gradient[i]).abs();
                assert!(error < 1e-8 + 1e-6 * slope.abs(), "{} element {i}: {} against a slope of {slope}", parameter.name(), gradient[i]);
            }
        }
    }
}

#[test]
fn logits_are_those_of_a_plain_reference() {
    for config in families() {
        let student = student(config, DType::F32);
        let batch = batch(student.config());
        let expected = reference::logits(&student, &batch);
        let found = student.logits(&batch).unwrap();
        assert_eq!(found.dims(), [batch.asked.len(), 13]);
        for (row, (found, expected)) in found.to_vec2::<f32>().unwrap().iter().zip(&expected).enumerate() {
            for (id, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!((f64::from(*a) - b).abs() < 1e-4, "asked row {row}, id {id}: {a}, reference {b}");
            }
        }
    }
}

#[test]
fn a_sequence_in_a_batch_is_the_sequence_alone() {
    for config in std::iter::once(config()).chain(decoder::tests::decoders()) {
        let student = student(config, DType::F64);
        let whole = batch(student.config());
        let together = student.logits(&whole).unwrap().to_vec2::<f64>().unwrap();
        let part = |i| student.logits(&part(&whole, i..i + 1, 8)).unwrap().to_vec2::<f64>().unwrap();
        let alone: Vec<Vec<f64>> = (0..3).flat_map(part).collect();
        assert_eq!(together.len(), alone.len());
        for (a, b) in together.iter().flatten().zip(alone.iter().flatten()) {
            assert!((a - b).abs() < 1e-12, "{a} in the batch, {b} alone");
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    let whole_student = student(config(), DType::F64);
    let whole = batch(whole_student.config());
    let normalisers = normalisers(&whole);
    let plan = whole_student.dropout_plan(1, 2);
    let expected_parts = backward(&whole_student, &whole, &normalisers, &plan);
    let cut_student = student(config(), DType::F64);
    let mut parts = backward(&cut_student, &part(&whole, 0..1, 8), &normalisers, &plan);
    parts += backward(&cut_student, &part(&whole, 1..3, 8), &normalisers, &plan);
    assert!((parts.total - expected_parts.total).abs() < 1e-12, "{parts:?} against {expected_parts:?}");
    let (found, expected) = (gradients::<f64>(&cut_student), gradients::<f64>(&whole_student));
    for (parameter, (found, expected)) in whole_student.parameters().iter().zip(found.iter().zip(&expected)) {
        let difference = norm(&found.iter().zip(expected).map(|(a, b)| a - b).collect::<Vec<_>>());
        assert!(difference < 1e-12 + 1e-12 * norm(expected), "{}: off by {difference:e}", parameter.name());
    }
}

#[test]
fn parts_without_a_target_cost_nothing_and_still_train() {
    let student = student(config(), DType::F64);
    let whole = batch(student.config());
    let normalisers = normalisers(&whole);
    let nothing_asked =
        Batch { asked: vec![], labels: vec![], top_ids: vec![], log_probabilities: vec![], max_logit: vec![], ..whole.clone() };
    let parts = backward(&student, &nothing_asked, &normalisers, &DropoutPlan::off());
    assert!(parts.get(Part::Ce) == 0.0 && parts.get(Part::Mlm) == 0.0 && parts.get(Part::Cos) > 0.0, "{parts:?}");
    assert!(norm(&gradients::<f64>(&student)[1]) > 0.0);
    assert_eq!(student.logits(&nothing_asked).unwrap().dims(), [0, 13]);

    let no_cosine = StepObjective::new(&"ce=5,mlm=2".parse().unwrap(), (0, 1), TEMPERATURE, normalisers);
    let no_hidden = Batch { hidden: vec![], ..whole };
    let (_, parts) = student.loss(&no_hidden, &no_cosine, &DropoutPlan::off()).unwrap();
    assert!(parts.get(Part::Cos) == 0.0 && parts.get(Part::Ce) > 0.0, "{parts:?}");
    assert!(student.loss(&no_hidden, &objective(&normalisers), &DropoutPlan::off()).is_err());
}

#[test]
fn batches_that_cannot_be_run_are_errors() {
    let student = student(config(), DType::F32);
    let good = batch(student.config());
    let refused = |batch: Batch| student.logits(&batch).unwrap_err().to_string();
    assert!(refused(Batch { input_ids: vec![13; 14], ..good.clone() }).contains("of 13 rows"));
    let long = Batch { offsets: vec![0, 9, 11, 14], ..good.clone() };
    assert!(refused(long).contains("9 tokens for 7 positions"));
    assert!(refused(Batch { asked: vec![3, 14], ..good }).contains("row 14"));
    let short = Student::new(config(), DType::F32, &mut |_: &ParameterSpec| Ok(vec![0.0])).err().unwrap().to_string();
    assert!(short.contains("word_embeddings.weight: expected 104 values, found 1"), "{short}");
}

pub(crate) mod heads;
mod hidden;
mod reference;
