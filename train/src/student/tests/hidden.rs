//! All hidden states, and what they are compared with.

use super::*;
use crate::kernels::proof::assert_close;
use crate::loss::hidden_map::HiddenPair;
use logitcache::oracle::cosine_distance;
use logitcache::oracle::hidden::hidden_squared_error;

const TEACHER_WIDTH: usize = 5;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn pairs(pairs: &[(usize, u32)]) -> Vec<HiddenPair> {
    pairs.iter().map(|(student, teacher)| HiddenPair { student: *student, teacher: *teacher }).collect()
}

/// The batch with two states of a teacher of this width.
fn with_teacher(config: &StudentConfig, width: usize) -> Batch {
    let (mut batch, mut stream) = (batch(config), RandomStream::new(17, Purpose::Shuffling, &[]));
    let rows = batch.tokens();
    batch.hidden = (0..2).map(|_| (0..rows * width).map(|_| stream.normal() as f32).collect()).collect();
    batch
}

fn step(loss: &str, batch: &Batch) -> StepObjective {
    StepObjective::new(&loss.parse().unwrap(), (0, 1), TEMPERATURE, normalisers(batch))
}

#[test]
fn the_states_are_those_of_a_plain_reference() {
    for config in families() {
        let student = student(config, DType::F32);
        let batch = batch(student.config());
        let states = student.forward_states(&batch, &DropoutPlan::off()).unwrap();
        assert_eq!(states.len(), student.config().num_hidden_layers + 1);
        for (layers, state) in states.iter().enumerate() {
            let expected: Vec<f64> = reference::states(&student, &batch, layers).concat();
            assert_close(&format!("state {layers}"), &values(state), &expected, 1e-4, 1e-4);
        }
        assert_eq!(values(&states[states.len() - 1]), values(&student.hidden_states(&batch).unwrap()));
    }
}

#[test]
fn parts_are_means_over_the_pairs() {
    for width in [8, TEACHER_WIDTH] {
        let student = student(config(), DType::F64);
        let batch = with_teacher(student.config(), width);
        let pairs = pairs(&[(0, 3), (1, 1), (2, 3)]);
        let hidden = HiddenObjective::new(&pairs, (8, width), DType::F64, 1).unwrap();
        assert_eq!(hidden.parameters().len(), if width == 8 { 0 } else { 6 });
        let (_, parts) = student.mapped_loss(&batch, &step("cos=3,hidden-mse=2", &batch), &hidden, &DropoutPlan::off()).unwrap();
        let states = student.forward_states(&batch, &DropoutPlan::off()).unwrap();
        let (mut cosine, mut square, mut count) = (0.0, 0.0, 0.0);
        for (index, (pair, buffer)) in pairs.iter().zip([1, 0, 1]).enumerate() {
            let teacher: Vec<f64> = batch.hidden[buffer].iter().map(|value| f64::from(*value)).collect();
            for (state, teacher) in values(&states[pair.student]).chunks(8).zip(teacher.chunks(width)) {
                let mut state = state.to_vec();
                if let Some([weight, bias]) = hidden.parameters().get(2 * index..2 * index + 2) {
                    assert_eq!((weight.shape().dims(), bias.shape().dims()), (&[width, 8][..], &[width][..]));
                    let dot = |row: &[f64]| row.iter().zip(&state).map(|(w, x)| w * x).sum::<f64>();
                    state = values(weight.value()).chunks(8).zip(values(bias.value())).map(|(row, bias)| dot(row) + bias).collect();
                }
                cosine += cosine_distance(&state, teacher).loss;
                square += hidden_squared_error(&state, teacher).loss;
                count += 1.0;
            }
        }
        let found = [parts.get(Part::Cos), parts.get(Part::HiddenMse), parts.total];
        assert_close("parts", &found, &[cosine / count, square / count, (3.0 * cosine + 2.0 * square) / count], 1e-9, 1e-11);
    }
}

#[test]
fn gradients_of_projections_and_student_are_those_of_finite_differences() {
    for config in families() {
        let student = student(config, DType::F64);
        let batch = with_teacher(student.config(), TEACHER_WIDTH);
        let last = student.config().num_hidden_layers;
        let hidden = HiddenObjective::new(&pairs(&[(0, 3), (1, 1), (last, 3)]), (8, TEACHER_WIDTH), DType::F64, 1).unwrap();
        let (step_objective, plan) = (step("ce=1,cos=3,hidden-mse=2", &batch), student.dropout_plan(1, 2));
        student.mapped_loss(&batch, &step_objective, &hidden, &plan).unwrap().0.backward().unwrap();
        let loss = || student.mapped_loss(&batch, &step_objective, &hidden, &plan).unwrap().1.total;
        let projections = hidden.parameters().iter().map(|each| (each, 1));
        // Of the student's own parameters a few elements each; of the projections all.
        for (parameter, stride) in student.parameters().iter().map(|each| (each, 11)).chain(projections) {
            let gradient = parameter.with_gradient(|gradient: &mut [f64]| gradient.to_vec()).unwrap();
            let shift = |i: usize, by: f64| parameter.update(|value: &mut [f64], _: &mut [f64]| value[i] += by).unwrap();
            for i in (0..gradient.len()).step_by(stride) {
                shift(i, 1e-5);
                let above = loss();
                shift(i, -2e-5);
                let below = loss();
                shift(i, 1e-5);
                let slope = (above - below) / 2e-5;
                assert_close(&format!("{} element {i}", parameter.name()), &[gradient[i]], &[slope], 1e-6, 1e-8);
            }
        }
        assert!(hidden.parameters().iter().all(|each| norm(&values(&each.gradient_tensor().unwrap())) > 1e-3));
    }
}

#[test]
fn projections_are_drawn_from_the_seed_and_named_after_their_states() {
    let drawn = |seed| {
        let hidden = HiddenObjective::new(&pairs(&[(1, 4), (2, 4)]), (64, 96), DType::F32, seed).unwrap();
        let names: Vec<String> = hidden.parameters().iter().map(|each| each.name().to_owned()).collect();
        assert_eq!(names, ["projection.1-4.weight", "projection.1-4.bias", "projection.2-4.weight", "projection.2-4.bias"]);
        hidden.parameters().iter().map(|each| values(each.value())).collect::<Vec<_>>()
    };
    let first = drawn(1);
    assert_eq!(first, drawn(1));
    assert_ne!(first[0], drawn(2)[0]);
    assert_ne!(first[0], first[2]);
    let deviation = (first[0].iter().map(|value| value * value).sum::<f64>() / first[0].len() as f64).sqrt();
    assert!((deviation - 0.125).abs() < 0.005 && first[1].iter().all(|value| *value == 0.0), "{deviation}");
}

#[test]
fn a_part_without_its_states_is_an_error_and_never_nothing() {
    let student = student(config(), DType::F32);
    let batch = with_teacher(student.config(), 8);
    let run = |batch: &Batch, given: &[(usize, u32)], loss: &str| {
        let hidden = HiddenObjective::new(&pairs(given), (8, 8), DType::F32, 1).unwrap();
        student.mapped_loss(batch, &step(loss, batch), &hidden, &DropoutPlan::off()).map(|(_, parts)| parts.get(Part::HiddenMse))
    };
    assert!(run(&batch, &[(2, 2)], "hidden-mse=1").unwrap() > 0.0);
    assert!(run(&batch, &[], "hidden-mse=1").unwrap_err().to_string().contains("no states to compare"));
    assert!(run(&batch, &[(3, 2)], "hidden-mse=1").unwrap_err().to_string().contains("state 3 of 3"));
    assert!(
        run(&Batch { hidden: vec![], ..batch.clone() }, &[(2, 2)], "hidden-mse=1").unwrap_err().to_string().contains("of 0 of the teacher")
    );
    assert_eq!(run(&batch, &[], "ce=1").unwrap(), 0.0);
}
