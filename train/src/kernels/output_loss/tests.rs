//! Losses and gradients against plain sums and finite differences.

use super::*;
use crate::kernels::proof::{Proof, assert_close, numbers, random};
use crate::loss::{Normalisers, Objective};

const CLASSES: usize = 3;
const TEMPERATURE: f64 = 2.0;

struct Example {
    teacher: Vec<f64>,
    top_ids: Vec<u32>,
    log_probabilities: Vec<f32>,
    max_logit: Vec<f32>,
    label_values: Vec<f32>,
    has_label_values: Vec<bool>,
}

/// Four sequences, the second without gold answers.
fn example(problem: Problem) -> Example {
    let teacher = numbers(&random(3, &[4, CLASSES], 2.0));
    let (mut top_ids, mut log_probabilities, mut max_logit) = (Vec::new(), Vec::new(), Vec::new());
    for logits in teacher.chunks(CLASSES) {
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        max_logit.push(logits[order[0]] as f32);
        // Any normaliser serves: only differences count.
        log_probabilities.extend(order.iter().map(|id| (logits[*id] / TEMPERATURE - 1.5) as f32));
        top_ids.extend(order.iter().map(|id| *id as u32));
    }
    let gold = |i: usize| if problem == Problem::MultiLabel { (i % 2) as f32 } else { i as f32 * 0.3 - 1.0 };
    let label_values = (0..4 * CLASSES).map(|i| if i / CLASSES == 1 { 0.0 } else { gold(i) }).collect();
    Example { teacher, top_ids, log_probabilities, max_logit, label_values, has_label_values: vec![true, false, true, true] }
}

fn run(example: &Example, problem: Problem, logits: &Tensor, loss: &str) -> Result<(Tensor, LossParts)> {
    let Example { top_ids, log_probabilities, max_logit, label_values, has_label_values, .. } = example;
    let targets = OutputTargets { problem, top_ids, log_probabilities, max_logit, label_values, has_label_values };
    let normalisers = Normalisers { asked: 6, labelled: 5, tokens: 20, sequences: 6 };
    let objective: Objective = loss.parse().unwrap();
    output_loss(logits, &targets, &StepObjective::new(&objective, (0, 1), TEMPERATURE, normalisers))
}

#[test]
fn values_and_gradients_are_those_of_plain_sums() {
    let logits = random(4, &[4, CLASSES], 2.0);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for problem in [Problem::MultiLabel, Problem::Regression] {
        let example = example(problem);
        let (mut ce, mut mse, mut gold) = (0.0, 0.0, 0.0);
        for (i, (student, teacher)) in numbers(&logits).iter().zip(&example.teacher).enumerate() {
            let (p, t) = (sigmoid(student / TEMPERATURE), sigmoid(teacher / TEMPERATURE));
            ce += TEMPERATURE.powi(2) * (t * (t / p).ln() + (1.0 - t) * ((1.0 - t) / (1.0 - p)).ln()) / 6.0;
            mse += (student - teacher).powi(2) / CLASSES as f64 / 6.0;
            let (label, p) = (f64::from(example.label_values[i]), sigmoid(*student));
            gold += match (example.has_label_values[i / CLASSES], problem) {
                (false, _) => 0.0,
                (true, Problem::MultiLabel) => -(label * p.ln() + (1.0 - label) * (1.0 - p).ln()) / CLASSES as f64 / 5.0,
                (true, _) => (student - label).powi(2) / CLASSES as f64 / 5.0,
            };
        }
        let loss = if problem == Problem::MultiLabel { "ce=2,logit-mse=0.5,gold=1" } else { "logit-mse=0.5,gold=1" };
        let (scalar, parts) = run(&example, problem, &logits, loss).unwrap();
        let ce = if problem == Problem::MultiLabel { ce } else { 0.0 };
        let found = [parts.get(Part::Ce), parts.get(Part::LogitMse), parts.get(Part::Gold), numbers(&scalar)[0]];
        assert_close(&format!("{problem:?}"), &found, &[ce, mse, gold, 2.0 * ce + 0.5 * mse + gold], 1e-5, 1e-6);
        let run = |x: &[Tensor], _: &[_]| Ok(run(&example, problem, &x[0], loss)?.0);
        Proof { inputs: std::slice::from_ref(&logits), parameters: &[], run }.check();
    }
}

#[test]
fn counts_are_checked() {
    let (problem, logits) = (Problem::MultiLabel, random(4, &[4, CLASSES], 2.0));
    let refused = |change: fn(&mut Example)| {
        let mut example = example(problem);
        change(&mut example);
        run(&example, problem, &logits, "ce=1").unwrap_err().to_string()
    };
    assert!(refused(|example| example.top_ids.truncate(11)).contains("11 ids"));
    assert!(refused(|example| example.top_ids[0] = 3).contains("class 3 of 3"));
    assert!(refused(|example| example.has_label_values.truncate(3)).contains("gold numbers of 3 sequences"));
}
