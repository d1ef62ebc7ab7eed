//! The two-layer reference student, and the demo's: forward pass, gradients, ten steps.

use super::*;
use train::export;
use train::student::{FirstWeights, Overrides, TeacherTensors};

const FOLDER: &str = "student-small";

fn reference() -> Golden {
    Golden::open("student-small/golden.safetensors")
}

fn batch(golden: &Golden, number: u64) -> Batch {
    let prefix = format!("batch.{number}.");
    let single = |part: &str| golden.singles(&format!("{prefix}{part}"));
    Batch { log_probabilities: single("log_probabilities"), hidden: vec![single("hidden")], ..golden.batch(&prefix, 8) }
}

fn check_one_pass<T: Element>(dtype: DType, limits: (f64, f64)) {
    let (student, golden) = (open_student(FOLDER, dtype), reference());
    let batch = batch(&golden, 0);
    let expected = |part: &str| golden.floats(&format!("float64.{part}"));
    close("hidden", &flattened(student.hidden_states(&batch)), &expected("hidden"), limits);
    close("logits", &flattened(student.logits(&batch)), &expected("logits"), limits);
    close("loss", &default_pass(&student, &batch), &expected("loss"), limits);
    for parameter in student.parameters() {
        let expected = expected(&format!("gradient.{}", parameter.name()));
        close(&format!("gradient of {}", parameter.name()), &gradient::<T>(parameter), &expected, limits);
    }
}

#[test]
fn every_loss_and_gradient_agrees_with_pytorch_in_double_precision() {
    check_one_pass::<f64>(DType::F64, DOUBLE);
}

#[test]
fn every_loss_and_gradient_agrees_with_pytorch_in_single_precision() {
    check_one_pass::<f32>(DType::F32, SINGLE);
}

#[test]
fn ten_steps_agree_with_pytorch() {
    let (student, golden) = (open_student(FOLDER, DType::F32), reference());
    let steps = ten_steps(student.parameters(), |step| default_pass(&student, &batch(&golden, step % 3)));
    close("learning rates", &steps.rates, &golden.floats("float64.steps.learning_rate"), (1e-12, 0.0));
    close("losses of ten steps", &steps.losses, &golden.floats("float64.steps.loss"), (2e-4, 1e-5));
    close("gradient norms", &steps.norms, &golden.floats("float64.steps.gradient_norm"), (1e-3, 1e-5));
    close_after("small", student.parameters(), |parameter| golden.floats(&format!("float64.after.{}", parameter.name())));
}

#[test]
fn the_demos_student_starts_where_pytorchs_does() {
    let golden = Golden::open("student-real.safetensors");
    let teacher = Golden::open("teacher.safetensors");
    let config =
        StudentConfig::from_teacher(&data("teacher/config.json"), &Overrides { num_hidden_layers: Some(6), ..Overrides::default() });
    let config = config.expect("the demo teacher's settings");
    let mut tensors = TeacherTensors::open(
        &data("teacher/model.onnx"),
        &config,
        &FirstWeights { layers: Some(vec![0, 2, 4, 7, 9, 11]), ..FirstWeights::default() },
    )
    .expect("the demo teacher's weights");
    let student = Student::new(config, DType::F32, &mut |parameter: &ParameterSpec| tensors.values(parameter)).expect("a student");
    let ids: Vec<u32> = teacher.integers("input_ids").into_iter().map(|id| id as u32).collect();
    let offsets: Vec<usize> = teacher.integers("offsets").into_iter().map(|offset| offset as usize).collect();
    let sequences = offsets.len() - 1;
    let sequence_ids = (0..sequences as u64).collect();
    let batch = Batch { sequence_ids, passes: vec![0; sequences], offsets, input_ids: ids, ..Batch::default() };
    close("the first hidden state", &flattened(student.hidden_states(&batch)), &golden.floats("hidden"), (1e-4, 1e-4));
}

#[test]
fn a_saved_student_loads_as_itself() {
    let student = open_student(FOLDER, DType::F32);
    let folder = tempfile::tempdir().expect("a temporary directory");
    export::save(&student, &data("teacher"), folder.path()).expect("it is saved");
    let loaded = export::load(folder.path()).expect("it is loaded");
    for (saved, loaded) in student.parameters().iter().zip(loaded.parameters()) {
        let values = |parameter: &Parameter| parameter.with_value(|value: &[f32]| value.to_vec()).expect("single precision");
        assert!(saved.name() == loaded.name() && values(saved) == values(loaded), "{} changed on disk", saved.name());
    }
}
