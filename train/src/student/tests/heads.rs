//! The heads of the other tasks: against the plain reference and finite differences, every parameter taught, first weights from a teacher.

use super::*;
use crate::kernels::gather_rows;
use logitcache::target::{Pooling, Problem, Task};

/// Of every family a student of every kind of head, with the loss that teaches all of it.
pub(crate) fn students() -> Vec<(StudentConfig, &'static str)> {
    let mut all = Vec::new();
    for base in families() {
        let named = |task, classes: usize| StudentConfig {
            task,
            classes,
            class_names: (0..classes).map(|id| format!("class {id}")).collect(),
            ..base.clone()
        };
        let sequence = |problem| StudentConfig { problem: Some(problem), ..named(Task::SequenceClassification, 4) };
        let vector = |pooling, embedding_output, normalized| StudentConfig {
            task: Task::SentenceEmbedding,
            pooling,
            embedding_output,
            normalized,
            ..base.clone()
        };
        all.extend([
            (sequence(Problem::SingleLabel), "ce=1,gold=0.5,logit-mse=0.1"),
            (sequence(Problem::MultiLabel), "ce=1,gold=0.5,logit-mse=0.1"),
            (sequence(Problem::Regression), "logit-mse=1,gold=0.5"),
            (named(Task::TokenClassification, 4), "ce=1,gold=0.5,jsd=1"),
            (vector(Pooling::Mean, 0, true), "embedding-cos=1,embedding-mse=3"),
            (vector(Pooling::Cls, 8, false), "embedding-cos=1,embedding-mse=1"),
            (vector(Pooling::Max, 8, true), "embedding-mse=3"),
        ]);
    }
    all
}

/// What the rows of [`batch`] are taught for a task.
pub(crate) fn taught(config: &StudentConfig) -> Batch {
    let base = batch(config);
    let mut stream = RandomStream::new(8, Purpose::Shuffling, &[]);
    let whole = config.classes;
    let asked: Vec<u32> = match config.task {
        Task::SequenceClassification => vec![0, 4, 11],
        Task::TokenClassification => base.asked.clone(),
        _ => vec![],
    };
    let mut taught = Batch { k: whole, asked, top_ids: vec![], log_probabilities: vec![], max_logit: vec![], labels: vec![], ..base };
    for row in 0..taught.asked.len() {
        let mut ids: Vec<u32> = (0..whole as u32).collect();
        stream.shuffle(&mut ids);
        taught.top_ids.extend(&ids);
        taught.log_probabilities.extend([0.6f32, 0.25, 0.1, 0.05].map(f32::ln));
        taught.max_logit.push(1.5);
        let has_class = matches!(config.problem, None | Some(Problem::SingleLabel)) && row % 3 != 1;
        taught.labels.push(if has_class { (row % whole) as i32 } else { -100 });
    }
    if matches!(config.problem, Some(Problem::MultiLabel | Problem::Regression)) {
        taught.has_label_values = vec![true, false, true];
        taught.label_values = (0..12).map(|i| if i / 4 == 1 { 0.0 } else { (i % 2) as f32 }).collect();
    }
    if config.task == Task::SentenceEmbedding {
        taught.embeddings = (0..3 * config.output_size()).map(|_| stream.normal() as f32).collect();
    }
    taught
}

fn step(batch: &Batch, loss: &str) -> StepObjective {
    let normalisers = Normalisers {
        asked: batch.asked.len() + 1,
        labelled: batch.labelled() + 1,
        tokens: batch.tokens(),
        sequences: batch.sequence_ids.len() + 1,
    };
    StepObjective::new(&loss.parse().unwrap(), (0, 1), TEMPERATURE, normalisers)
}

#[test]
fn answers_are_those_of_a_plain_reference() {
    for (config, _) in students() {
        let student = student(config, DType::F32);
        let batch = taught(student.config());
        let (found, expected) = match student.config().task {
            Task::SentenceEmbedding => (student.embeddings(&batch).unwrap(), reference::vectors(&student, &batch)),
            _ => (student.logits(&batch).unwrap(), reference::class_logits(&student, &batch)),
        };
        let rows = found.to_vec2::<f32>().unwrap();
        assert_eq!((rows.len(), rows[0].len()), (expected.len(), student.config().output_size()));
        for (a, b) in rows.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f64::from(*a) - b).abs() < 1e-4, "{:?}: {a}, reference {b}", student.config());
        }
        let other = match student.config().task {
            Task::SentenceEmbedding => student.logits(&batch),
            _ => student.embeddings(&batch),
        };
        assert!(other.is_err());
    }
}

#[test]
fn every_parameter_is_taught_by_its_finite_differences() {
    for (config, loss) in students() {
        let student = student(config, DType::F64);
        let batch = taught(student.config());
        let (step, plan) = (step(&batch, loss), student.dropout_plan(1, 2));
        let (total, parts) = student.loss(&batch, &step, &plan).unwrap();
        total.backward().unwrap();
        let weighted: f64 = step.weights.total(&parts.values);
        assert!(parts.total > 0.0 && (parts.total - weighted).abs() < 1e-12, "{parts:?}");
        let value = |change: &dyn Fn()| {
            change();
            student.loss(&batch, &step, &plan).unwrap().1.total
        };
        for (spec, parameter) in layout(student.config()).iter().zip(student.parameters()) {
            let gradient: Vec<f64> = parameter.with_gradient(|gradient: &mut [f64]| gradient.to_vec()).unwrap();
            // A key's bias is not seen by a softmax.
            let unseen = spec.bias && matches!(spec.role, Role::Layer(_, LayerPart::Key));
            assert!(unseen || norm(&gradient) > 1e-6, "{} of {:?} {loss}: {}", spec.name, student.config().family, norm(&gradient));
            let of_head = matches!(spec.role, Role::Pooler | Role::SequenceClassifier | Role::TokenClassifier | Role::Projection);
            let stride = if of_head { 5 } else { 61 };
            for i in (0..gradient.len()).step_by(stride) {
                let shift = |by: f64| parameter.update(|value: &mut [f64], _: &mut [f64]| value[i] += by).unwrap();
                let (above, below) = (value(&|| shift(1e-5)), value(&|| shift(-2e-5)));
                shift(1e-5);
                let slope = (above - below) / 2e-5;
                let error = (slope - gradient[i]).abs();
                assert!(error < 1e-8 + 1e-6 * slope.abs(), "{} element {i}, {loss}: {} against {slope}", spec.name, gradient[i]);
            }
        }
    }
}

#[test]
fn losses_that_a_head_does_not_have_are_errors() {
    for (config, _) in students() {
        let student = student(config, DType::F64);
        let batch = taught(student.config());
        let foreign = if student.config().task == Task::SentenceEmbedding { "ce=1" } else { "embedding-cos=1" };
        assert!(student.loss(&batch, &step(&batch, foreign), &DropoutPlan::off()).is_err());
    }
    let (config, _) = students().remove(0);
    let student = student(config, DType::F64);
    let elsewhere = Batch { asked: vec![0, 5, 11], ..taught(student.config()) };
    assert!(student.logits(&elsewhere).unwrap_err().to_string().contains("row 5 is no sequence's first"));
}

#[test]
fn hidden_states_can_be_taught_beside_every_head() {
    for (config, loss) in students() {
        let student = student(config, DType::F64);
        let batch = taught(student.config());
        let (_, parts) = student.loss(&batch, &step(&batch, &format!("{loss},cos=1")), &DropoutPlan::off()).unwrap();
        assert!(parts.get(Part::Cos) > 0.0 && parts.total > parts.get(Part::Cos));
        let last = student.hidden_states(&batch).unwrap();
        assert_eq!(gather_rows(&last, &[0]).unwrap().dims(), [1, student.config().hidden_size]);
    }
}
