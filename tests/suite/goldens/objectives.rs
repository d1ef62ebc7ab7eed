//! Every part of `--loss` with every tail, one after the other, against plain PyTorch: value, gradients, ten steps.

use super::*;
use train::loss::hidden_map::HiddenPair;
use train::student::HiddenObjective;
use train::trainer::trainable;

const FOLDER: &str = "objectives";
/// Widths of the student's hidden states and of those of a teacher that needs a projection.
const WIDTHS: (usize, usize) = (8, 6);

/// A line of `objectives.json`.
struct Case {
    name: String,
    objective: Objective,
    parts: Vec<Part>,
    temperature: u64,
    pairs: Vec<HiddenPair>,
    projected: bool,
    /// Whose numbers in `golden.safetensors` are the reference.
    numbers: String,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data("golden/objectives/objectives.json")).expect("the list of objectives");
    let list: serde_json::Value = serde_json::from_str(&text).expect("a list in JSON");
    let case = |entry: &serde_json::Value| {
        let text = |key: &str| entry[key].as_str().expect("a text").to_owned();
        let list = |key: &str| entry[key].as_array().expect("a list").clone();
        let state = |value: &serde_json::Value| value.as_u64().expect("the number of a state");
        Case {
            name: text("name"),
            objective: text("loss").parse().expect("an objective"),
            parts: list("parts").iter().map(|part| part.as_str().and_then(Part::from_name).expect("a part")).collect(),
            temperature: entry["temperature"].as_u64().expect("a temperature"),
            pairs: list("pairs")
                .iter()
                .map(|pair| HiddenPair { student: state(&pair[0]) as usize, teacher: state(&pair[1]) as u32 })
                .collect(),
            projected: entry["projected"].as_bool().expect("true or false"),
            numbers: text("numbers"),
        }
    };
    list.as_array().expect("a list").iter().map(case).collect()
}

/// A case ready to run.
struct Taught {
    student: Student,
    hidden: HiddenObjective,
    batch: Batch,
}

impl Taught {
    fn new<T: Element>(case: &Case, golden: &Golden, dtype: DType) -> Self {
        let (student, kind) = (open_student(FOLDER, dtype), if case.projected { "wide" } else { "hidden" });
        let teacher_width = if case.projected { WIDTHS.1 } else { WIDTHS.0 };
        let hidden = HiddenObjective::new(&case.pairs, (WIDTHS.0, teacher_width), dtype, 0).expect("a comparison");
        for parameter in hidden.parameters() {
            let values = golden.floats(parameter.name());
            let set = parameter.update(|value: &mut [T], _: &mut [T]| {
                assert_eq!(value.len(), values.len());
                value.iter_mut().zip(&values).for_each(|(value, given)| *value = T::from_f64(*given));
            });
            set.expect("a projection of this type");
        }
        let states = train::loss::hidden_map::teacher_states(&case.pairs);
        let batch = Batch {
            log_probabilities: golden.singles(&format!("log_probabilities.{}", case.temperature)),
            max_logit: golden.singles("max_logit"),
            hidden: states.iter().map(|state| golden.singles(&format!("{kind}.{state}"))).collect(),
            ..golden.batch("", 6)
        };
        Self { student, hidden, batch }
    }

    fn parameters(&self) -> Vec<ParameterRef> {
        trainable(&self.student, &self.hidden)
    }

    /// Forward and backward of step `step` of ten: the total, then the parts in the case's order.
    fn pass(&self, case: &Case, step: u64) -> Vec<f64> {
        let objective = StepObjective::new(&case.objective, (step, 10), case.temperature as f64, normalisers(&self.batch));
        let (loss, parts) = self.student.mapped_loss(&self.batch, &objective, &self.hidden, &DropoutPlan::off()).expect("a loss");
        loss.backward().expect("a backward pass");
        std::iter::once(parts.total).chain(case.parts.iter().map(|part| parts.get(*part))).collect()
    }
}

fn check_one_pass<T: Element>(dtype: DType, limits: (f64, f64)) {
    let golden = Golden::open("objectives/golden.safetensors");
    for case in cases() {
        let taught = Taught::new::<T>(&case, &golden, dtype);
        let expected = golden.floats(&format!("{}.losses", case.numbers));
        close(&format!("{}: values", case.name), &taught.pass(&case, 0), &expected[..1 + case.parts.len()], limits);
        let parameters = taught.parameters();
        let expected = golden.by_parameter(&format!("{}.gradient", case.numbers), &parameters);
        for parameter in &parameters {
            let what = format!("{}: gradient of {}", case.name, parameter.name());
            close(&what, &gradient::<T>(parameter), &expected[parameter.name()], limits);
        }
    }
}

#[test]
fn every_objective_agrees_with_pytorch_in_double_precision() {
    check_one_pass::<f64>(DType::F64, DOUBLE);
}

#[test]
fn every_objective_agrees_with_pytorch_in_single_precision() {
    check_one_pass::<f32>(DType::F32, SINGLE);
}

#[test]
fn ten_steps_of_every_objective_agree_with_pytorch() {
    let golden = Golden::open("objectives/golden.safetensors");
    for case in cases() {
        let taught = Taught::new::<f32>(&case, &golden, DType::F32);
        let parameters = taught.parameters();
        let steps = ten_steps(&parameters, |step| taught.pass(&case, step));
        let expected = golden.floats(&format!("{}.losses", case.numbers));
        close(&format!("{}: losses of ten steps", case.name), &steps.losses, &expected, (2e-4, 1e-5));
        let after = golden.by_parameter(&format!("{}.after", case.numbers), &parameters);
        close_after(&case.name, &parameters, |parameter| after[parameter.name()].clone());
    }
}

#[test]
fn every_part_and_every_tail_has_a_reference() {
    let cases = cases();
    // Those that a masked language model does not have are compared in `heads`.
    let of_other_heads = [Part::Gold, Part::EmbeddingCos, Part::EmbeddingMse];
    for part in Part::ALL.into_iter().filter(|part| !of_other_heads.contains(part)) {
        let with: Vec<&Case> = cases.iter().filter(|case| case.objective.has(part)).collect();
        assert!(!with.is_empty(), "{} has none", part.name());
        if [Part::Ce, Part::ReverseKl].contains(&part) {
            for tail in train::loss::Tail::ALL.into_iter().filter(|tail| tail.refusal(part, 0.5).is_none()) {
                assert!(with.iter().any(|case| case.objective.tail(part) == tail), "{} with tail {}", part.name(), tail.name());
            }
        }
    }
}
