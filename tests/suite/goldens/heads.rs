//! Classifiers, taggers and sentence encoders of each family: answers, every part of their losses, every gradient, ten steps.

use super::*;
use train::batcher::Step;

/// A line of `heads.json` with its student's tensors.
struct Case {
    name: String,
    is_encoder: bool,
    objective: Objective,
    parts: Vec<Part>,
    golden: Golden,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data("golden/heads/heads.json")).expect("the list of students");
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list in JSON");
    let case = |entry: &serde_json::Value| {
        let text = |key: &str| entry[key].as_str().expect("a text").to_owned();
        Case {
            golden: Golden::open(&format!("heads/{}/golden.safetensors", text("name"))),
            name: text("name"),
            is_encoder: text("task") == "sentence-embedding",
            objective: text("loss").parse().expect("an objective"),
            parts: entry["parts"].as_array().expect("a list").iter().map(|part| part.as_str().and_then(Part::from_name).expect("a part")).collect(),
        }
    };
    list.iter().map(case).collect()
}

impl Case {
    /// The student in `dtype`, a projection's values from the file in its folder.
    fn student(&self, dtype: DType) -> Student {
        let folder = data("golden/heads").join(&self.name);
        let config = StudentConfig::read(&folder.join("config.json")).expect("the reference student's settings");
        let mut file = TensorFile::open(&folder.join("model.safetensors")).expect("the reference student's weights");
        let source = &mut |parameter: &ParameterSpec| match parameter.name.split_once("2_Dense.") {
            Some((_, name)) => TensorFile::open(&folder.join("2_Dense/model.safetensors"))?.read(name, &parameter.shape),
            None => file.read(&parameter.name, &parameter.shape),
        };
        Student::new(config, dtype, source).expect("the reference student")
    }

    fn batch(&self) -> Batch {
        let golden = &self.golden;
        let singles = |name: &str| if golden.has(name) { golden.singles(name) } else { Vec::new() };
        let integers = |name: &str| if golden.has(name) { golden.integers(name) } else { Vec::new() };
        let asked = integers("asked").len();
        let labels = if golden.has("labels") { integers("labels") } else { vec![-100; asked] };
        let offsets: Vec<usize> = integers("offsets").into_iter().map(|offset| offset as usize).collect();
        let unsigned = |name: &str| integers(name).into_iter().map(|id| id as u32).collect::<Vec<_>>();
        let top_ids = unsigned("top_ids");
        Batch {
            sequence_ids: (0..offsets.len() as u64 - 1).collect(),
            document_ids: (0..offsets.len() as u64 - 1).collect(),
            passes: vec![0; offsets.len() - 1],
            offsets,
            input_ids: unsigned("input_ids"),
            token_type_ids: unsigned("token_type_ids"),
            asked: unsigned("asked"),
            k: if asked == 0 { 0 } else { top_ids.len() / asked },
            top_ids,
            log_probabilities: singles("log_probabilities"),
            max_logit: singles("max_logit"),
            labels: labels.into_iter().map(|label| label as i32).collect(),
            label_values: singles("label_values"),
            has_label_values: integers("has_label_values").into_iter().map(|known| known == 1).collect(),
            embeddings: singles("embeddings"),
            hidden: vec![golden.singles("hidden")],
        }
    }

    /// One forward and backward pass: the total, then the parts.
    fn pass(&self, student: &Student, batch: &Batch) -> Vec<f64> {
        let normalisers = Step { micro_batches: vec![batch.clone()] }.normalisers();
        let objective = StepObjective::new(&self.objective, (0, 1), TEMPERATURE, normalisers);
        let (loss, parts) = student.loss(batch, &objective, &DropoutPlan::off()).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        loss.backward().expect("a backward pass");
        std::iter::once(parts.total).chain(self.parts.iter().map(|part| parts.get(*part))).collect()
    }

    fn check_one_pass<T: Element>(&self, dtype: DType, limits: (f64, f64)) {
        let (student, batch, golden, name) = (self.student(dtype), self.batch(), &self.golden, &self.name);
        let answers = if self.is_encoder { student.embeddings(&batch) } else { student.logits(&batch) };
        close(&format!("{name}: states"), &flattened(student.hidden_states(&batch)), &golden.floats("states"), limits);
        close(&format!("{name}: answers"), &flattened(answers), &golden.floats("answers"), limits);
        close(&format!("{name}: losses"), &self.pass(&student, &batch), &golden.floats("losses")[..1 + self.parts.len()], limits);
        let expected = golden.by_parameter("gradient", student.parameters());
        for parameter in student.parameters() {
            let what = format!("{name}: gradient of {}", parameter.name());
            close(&what, &gradient::<T>(parameter), &expected[parameter.name()], limits);
        }
    }
}

#[test]
fn every_head_agrees_with_pytorch_in_double_precision() {
    cases().iter().for_each(|case| case.check_one_pass::<f64>(DType::F64, DOUBLE));
}

#[test]
fn every_head_agrees_with_pytorch_in_single_precision() {
    cases().iter().for_each(|case| case.check_one_pass::<f32>(DType::F32, SINGLE));
}

#[test]
fn ten_steps_of_every_head_agree_with_pytorch() {
    for case in cases() {
        let (student, batch) = (case.student(DType::F32), case.batch());
        let steps = ten_steps(student.parameters(), |_| case.pass(&student, &batch));
        close(&format!("{}: losses of ten steps", case.name), &steps.losses, &case.golden.floats("losses"), (5e-4, 1e-5));
        let after = case.golden.by_parameter("after", student.parameters());
        close_after(&case.name, student.parameters(), |parameter| after[parameter.name()].clone());
    }
}
