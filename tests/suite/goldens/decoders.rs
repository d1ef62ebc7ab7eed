//! Causal language models: states, logits, gradients, ten steps against transformers.

use super::*;

const NAMES: [&str; 3] = ["llama", "llama-untied", "gpt2"];

fn open(name: &str) -> (Golden, Batch) {
    let golden = Golden::open(&format!("decoders/{name}/golden.safetensors"));
    let batch = golden.batch("", 5);
    let batch = Batch { log_probabilities: golden.singles("log_probabilities"), hidden: vec![golden.singles("hidden")], ..batch };
    (golden, batch)
}

fn student(name: &str, dtype: DType) -> Student {
    open_student(&format!("decoders/{name}"), dtype)
}

fn losses(student: &Student, batch: &Batch) -> Vec<f64> {
    let objective: Objective = "ce=5,gold=2,cos=1".parse().expect("an objective");
    pass(student, batch, &objective, &[Part::Ce, Part::Gold, Part::Cos])
}

fn check_one_pass<T: Element>(dtype: DType, limits: (f64, f64)) {
    for name in NAMES {
        let ((golden, batch), student) = (open(name), student(name, dtype));
        let states = student.forward_states(&batch, &DropoutPlan::off()).expect("a forward pass");
        for (number, state) in states.into_iter().enumerate() {
            close(&format!("{name}: state {number}"), &flattened(Ok(state)), &golden.floats(&format!("states.{number}")), limits);
        }
        close(&format!("{name}: logits"), &flattened(student.logits(&batch)), &golden.floats("logits"), limits);
        close(&format!("{name}: losses"), &losses(&student, &batch), &golden.floats("losses")[..4], limits);
        let expected = golden.by_parameter("gradient", student.parameters());
        for parameter in student.parameters() {
            let what = format!("{name}: gradient of {}", parameter.name());
            close(&what, &gradient::<T>(parameter), &expected[parameter.name()], limits);
        }
    }
}

#[test]
fn every_decoder_agrees_with_transformers_in_double_precision() {
    check_one_pass::<f64>(DType::F64, DOUBLE);
}

#[test]
fn every_decoder_agrees_with_transformers_in_single_precision() {
    check_one_pass::<f32>(DType::F32, SINGLE);
}

#[test]
fn ten_steps_of_every_decoder_agree_with_transformers() {
    for name in NAMES {
        let ((golden, batch), student) = (open(name), student(name, DType::F32));
        let steps = ten_steps(student.parameters(), |_| losses(&student, &batch));
        close(&format!("{name}: losses of ten steps"), &steps.losses, &golden.floats("losses"), (2e-4, 1e-5));
        let after = golden.by_parameter("after", student.parameters());
        close_after(name, student.parameters(), |parameter| after[parameter.name()].clone());
    }
}
