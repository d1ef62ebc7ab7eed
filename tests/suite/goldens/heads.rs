//! The heads of the other tasks, each in every family: answers, losses, gradients, ten steps.

use super::*;
use logitcache::target::Task;
use train::student::names::PROJECTION_FOLDER;

/// A line of `heads.json`.
struct Case {
    name: String,
    objective: Objective,
    parts: Vec<Part>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data("golden/heads/heads.json")).expect("the list of heads");
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list in JSON");
    let case = |entry: &serde_json::Value| Case {
        name: entry["name"].as_str().expect("a name").to_owned(),
        objective: entry["loss"].as_str().expect("a loss").parse().expect("an objective"),
        parts: entry["parts"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|part| part.as_str().and_then(Part::from_name).expect("a part"))
            .collect(),
    };
    list.iter().map(case).collect()
}

/// The reference student, its projection from the folder beside.
fn open(case: &Case, dtype: DType) -> (Student, Golden, Batch) {
    let folder = data("golden/heads").join(&case.name);
    let config = StudentConfig::read(&folder.join("config.json")).expect("the reference student's settings");
    let mut file = TensorFile::open(&folder.join("model.safetensors")).expect("the reference student's weights");
    let prefix = format!("{PROJECTION_FOLDER}.");
    let source = &mut |parameter: &ParameterSpec| match parameter.name.strip_prefix(&prefix) {
        Some(name) => TensorFile::open(&folder.join(PROJECTION_FOLDER).join("model.safetensors"))?.read(name, &parameter.shape),
        None => file.read(&parameter.name, &parameter.shape),
    };
    let student = Student::new(config, dtype, source).expect("the reference student");
    let golden = Golden::open(&format!("heads/{}/golden.safetensors", case.name));
    let batch = batch(&golden, student.config());
    (student, golden, batch)
}

fn batch(golden: &Golden, config: &StudentConfig) -> Batch {
    let unsigned = |name: &str| golden.integers(name).into_iter().map(|id| id as u32).collect::<Vec<_>>();
    let offsets: Vec<usize> = golden.integers("offsets").into_iter().map(|offset| offset as usize).collect();
    let sequences = offsets.len() - 1;
    let batch = Batch {
        sequence_ids: (0..sequences as u64).collect(),
        passes: vec![0; sequences],
        offsets,
        input_ids: unsigned("input_ids"),
        token_type_ids: if golden.has("token_type_ids") { unsigned("token_type_ids") } else { Vec::new() },
        hidden: vec![golden.singles("hidden")],
        ..Batch::default()
    };
    if config.task == Task::SentenceEmbedding {
        return Batch { embeddings: golden.singles("embeddings"), ..batch };
    }
    let asked = unsigned("asked");
    let labels = match golden.has("labels") {
        true => golden.integers("labels").into_iter().map(|label| label as i32).collect(),
        false => vec![-100; asked.len()],
    };
    let (mut label_values, mut has_label_values) = (Vec::new(), Vec::new());
    if golden.has("label_values") {
        label_values = golden.singles("label_values");
        has_label_values = golden.integers("has_label_values").into_iter().map(|known| known == 1).collect();
    }
    let (top_ids, log_probabilities, max_logit) = (unsigned("top_ids"), golden.singles("log_probabilities"), golden.singles("max_logit"));
    Batch { asked, k: config.classes, top_ids, log_probabilities, max_logit, labels, label_values, has_label_values, ..batch }
}

/// One forward and backward pass: total, then the case's parts.
fn pass(case: &Case, student: &Student, batch: &Batch) -> Vec<f64> {
    let normalisers = Normalisers { labelled: batch.labelled(), ..normalisers(batch) };
    let objective = StepObjective::new(&case.objective, (0, 1), TEMPERATURE, normalisers);
    let (loss, parts) = student.loss(batch, &objective, &DropoutPlan::off()).expect("a loss");
    loss.backward().expect("a backward pass");
    std::iter::once(parts.total).chain(case.parts.iter().map(|part| parts.get(*part))).collect()
}

fn check_one_pass<T: Element>(dtype: DType, limits: (f64, f64)) {
    for case in cases() {
        let (student, golden, batch) = open(&case, dtype);
        let name = &case.name;
        close(&format!("{name}: states"), &flattened(student.hidden_states(&batch)), &golden.floats("states"), limits);
        let answers = match student.config().task {
            Task::SentenceEmbedding => student.embeddings(&batch),
            _ => student.logits(&batch),
        };
        close(&format!("{name}: answers"), &flattened(answers), &golden.floats("answers"), limits);
        let losses = pass(&case, &student, &batch);
        close(&format!("{name}: losses"), &losses, &golden.floats("losses")[..losses.len()], limits);
        let expected = golden.by_parameter("gradient", student.parameters());
        for parameter in student.parameters() {
            let what = format!("{name}: gradient of {}", parameter.name());
            close(&what, &gradient::<T>(parameter), &expected[parameter.name()], limits);
        }
    }
}

#[test]
fn every_head_agrees_with_transformers_in_double_precision() {
    check_one_pass::<f64>(DType::F64, DOUBLE);
}

#[test]
fn every_head_agrees_with_transformers_in_single_precision() {
    check_one_pass::<f32>(DType::F32, SINGLE);
}

#[test]
fn ten_steps_of_every_head_agree_with_transformers() {
    for case in cases() {
        let (student, golden, batch) = open(&case, DType::F32);
        let steps = ten_steps(student.parameters(), |_| pass(&case, &student, &batch));
        close(&format!("{}: losses of ten steps", case.name), &steps.losses, &golden.floats("losses"), (5e-4, 2e-5));
        let after = golden.by_parameter("after", student.parameters());
        close_after(&case.name, student.parameters(), |parameter| after[parameter.name()].clone());
    }
}
