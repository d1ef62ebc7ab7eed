//! A student of each family, each with another activation: states, logits, gradients, ten steps of the default recipe.

use super::*;
use train::student::Family;

fn folder(family: Family) -> String {
    format!("families/{family}")
}

fn open(family: Family) -> (Golden, Batch) {
    let golden = Golden::open(&format!("{}/golden.safetensors", folder(family)));
    let batch = golden.batch("", 5);
    let batch = Batch { log_probabilities: golden.singles("log_probabilities"), hidden: vec![golden.singles("hidden")], ..batch };
    (golden, batch)
}

fn check_one_pass<T: Element>(dtype: DType, limits: (f64, f64)) {
    for family in Family::ENCODERS {
        let (golden, batch) = open(family);
        let student = open_student(&folder(family), dtype);
        assert_eq!(student.config().family, family);
        close(&format!("{family}: states"), &flattened(student.hidden_states(&batch)), &golden.floats("states"), limits);
        close(&format!("{family}: logits"), &flattened(student.logits(&batch)), &golden.floats("logits"), limits);
        close(&format!("{family}: losses"), &default_pass(&student, &batch), &golden.floats("losses")[..4], limits);
        let expected = golden.by_parameter("gradient", student.parameters());
        for parameter in student.parameters() {
            let what = format!("{family}: gradient of {}", parameter.name());
            close(&what, &gradient::<T>(parameter), &expected[parameter.name()], limits);
        }
    }
}

#[test]
fn every_family_agrees_with_transformers_in_double_precision() {
    check_one_pass::<f64>(DType::F64, DOUBLE);
}

#[test]
fn every_family_agrees_with_transformers_in_single_precision() {
    check_one_pass::<f32>(DType::F32, SINGLE);
}

#[test]
fn ten_steps_of_every_family_agree_with_transformers() {
    for family in Family::ENCODERS {
        let (golden, batch) = open(family);
        let student = open_student(&folder(family), DType::F32);
        let steps = ten_steps(student.parameters(), |_| default_pass(&student, &batch));
        close(&format!("{family}: losses of ten steps"), &steps.losses, &golden.floats("losses"), (2e-4, 1e-5));
        let after = golden.by_parameter("after", student.parameters());
        close_after(family.name(), student.parameters(), |parameter| after[parameter.name()].clone());
    }
}
