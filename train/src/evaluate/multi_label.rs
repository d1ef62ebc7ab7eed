//! A classifier of sequences whose classes are each for themselves: a sigmoid of each logit, present where it is above 0.

use super::classes::ClassTally;
use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{not_finite, width};
use super::teacher_logits::teacher_logits;
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MultiLabel {
    /// Sequences scored.
    pub multi_label_sequences: u64,
    /// Share of all answers, one a sequence and class, where student and teacher agree.
    pub student_teacher_labels: f64,
    /// Mean over the sequences of the student's divergence from the teacher in nats, summed over the classes.
    pub kl_nats: f64,
    /// Sequences whose classes are known.
    pub gold_sequences: u64,
    /// Against their classes; absent where there are none.
    #[serde(flatten)]
    pub gold: Option<GoldLabels>,
}

/// Both models against gold classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldLabels {
    /// Share of the sequences of which the student has every class right.
    pub student_exact: f64,
    /// The teacher's.
    pub teacher_exact: f64,
    /// The student's F1 over the answers of all classes together.
    pub student_micro_f1: f64,
    /// The teacher's.
    pub teacher_micro_f1: f64,
    /// The student's mean F1 of all classes, 0 for one that neither occurs nor is predicted.
    pub student_macro_f1: f64,
    /// The teacher's.
    pub teacher_macro_f1: f64,
}

impl Measured for MultiLabel {
    fn count(&self) -> (u64, &'static str) {
        (self.multi_label_sequences, "sequences")
    }

    fn divergence(&self) -> f64 {
        self.kl_nats
    }

    fn figures(&self) -> Vec<Figure> {
        let agreement = "Agreement and exact matches, held out";
        let mut figures = vec![
            Figure::of_student("student_teacher_labels", "student-teacher agreement", self.student_teacher_labels, Better::Higher)
                .said("agreement with the teacher", "")
                .in_chart(agreement, "with teacher"),
            Figure::of_student("kl_nats", "KL of all classes, nats", self.kl_nats, Better::Lower)
                .said("divergence", " nats")
                .in_chart("Divergence from the teacher, nats", ""),
        ];
        let Some(gold) = self.gold else { return figures };
        let both = |keys, title, values| Figure::of_both(keys, title, values, Better::Higher);
        figures.extend([
            both(["student_micro_f1", "teacher_micro_f1"], "micro F1", [gold.student_micro_f1, gold.teacher_micro_f1])
                .said("micro F1", "")
                .in_chart("Micro F1, held out", "F1"),
            both(["student_macro_f1", "teacher_macro_f1"], "macro F1", [gold.student_macro_f1, gold.teacher_macro_f1])
                .said("macro F1", "")
                .in_chart("Macro F1, held out", "F1"),
            both(["student_exact", "teacher_exact"], "exact matches", [gold.student_exact, gold.teacher_exact]).in_chart(agreement, "gold"),
        ]);
        figures
    }
}

/// Counts over sequences.
#[derive(Clone, Debug)]
pub(super) struct MultiLabelTally {
    sequences: u64,
    answers: u64,
    agreements: u64,
    divergence: f64,
    labelled: u64,
    student_exact: u64,
    teacher_exact: u64,
    classes: ClassTally,
}

impl MultiLabelTally {
    pub(super) fn new(classes: usize) -> Self {
        Self {
            sequences: 0,
            answers: 0,
            agreements: 0,
            divergence: 0.0,
            labelled: 0,
            student_exact: 0,
            teacher_exact: 0,
            classes: ClassTally::new(classes),
        }
    }

    /// Adds a sequence, `[classes]` each; `gold` holds 0 or 1.
    fn add_sequence(&mut self, student: &[f32], teacher: &[f32], gold: Option<&[f32]>) {
        let present = |values: &[f32], above: f32| values.iter().map(|value| *value > above).collect::<Vec<bool>>();
        let (found, taught) = (present(student, 0.0), present(teacher, 0.0));
        self.sequences += 1;
        self.answers += found.len() as u64;
        self.agreements += found.iter().zip(&taught).filter(|(a, b)| a == b).count() as u64;
        self.divergence += student.iter().zip(teacher).map(|(student, teacher)| binary_kl(*student, *teacher)).sum::<f64>();
        if let Some(gold) = gold {
            let gold = present(gold, 0.5);
            self.labelled += 1;
            self.student_exact += u64::from(found == gold);
            self.teacher_exact += u64::from(taught == gold);
            self.classes.add_set(&gold, &found, &taught);
        }
    }
}

/// The divergence of sigmoid(student) from sigmoid(teacher) in nats.
///
/// With t and p the two: t (ln t - ln p) + (1 - t) (ln (1 - t) - ln (1 - p)), where ln sigmoid(z) = -ln(1 + exp(-z)), which neither overflows
/// nor loses what is near 0, and ln(1 - sigmoid(z)) = ln sigmoid(-z).
fn binary_kl(student: f32, teacher: f32) -> f64 {
    let (p, t) = (f64::from(student), f64::from(teacher));
    let log_sigmoid = |z: f64| z.min(0.0) - (-z.abs()).exp().ln_1p();
    log_sigmoid(t).exp() * (log_sigmoid(t) - log_sigmoid(p)) + log_sigmoid(-t).exp() * (log_sigmoid(-t) - log_sigmoid(-p))
}

impl TaskTally for MultiLabelTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        let Some(classes) = width(logits, batch.asked.len())? else { return Ok(()) };
        for (row, student) in logits.chunks_exact(classes).enumerate() {
            if student.iter().any(|logit| !logit.is_finite()) {
                return Err(not_finite(row));
            }
            let gold = batch.has_label_values.get(row).filter(|known| **known);
            let gold = gold.and_then(|_| batch.label_values.get(row * classes..(row + 1) * classes));
            self.add_sequence(student, &teacher_logits(batch, row), gold);
        }
        Ok(())
    }

    fn by_class(&self) -> Option<&ClassTally> {
        (self.labelled > 0).then_some(&self.classes)
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let (student, teacher) = (self.classes.student(), self.classes.teacher());
        let share = |count: u64| count as f64 / self.labelled as f64;
        (self.sequences > 0).then(|| {
            Measures::MultiLabel(MultiLabel {
                multi_label_sequences: self.sequences,
                student_teacher_labels: self.agreements as f64 / self.answers as f64,
                kl_nats: self.divergence / self.sequences as f64,
                gold_sequences: self.labelled,
                gold: (self.labelled > 0).then(|| GoldLabels {
                    student_exact: share(self.student_exact),
                    teacher_exact: share(self.teacher_exact),
                    student_micro_f1: student.micro_f1,
                    teacher_micro_f1: teacher.micro_f1,
                    student_macro_f1: student.macro_f1,
                    teacher_macro_f1: teacher.macro_f1,
                }),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::golden::{Scores, golden};

    #[derive(serde::Deserialize)]
    struct Labelled {
        classes: usize,
        gold: Vec<Vec<f32>>,
        student: Vec<Vec<f32>>,
        teacher: Vec<Vec<f32>>,
        kl_nats: f64,
        agreement: f64,
        exact: f64,
        micro_f1: f64,
        macro_f1: f64,
        by_class: Scores,
    }

    #[test]
    fn figures_are_those_of_scikit_learn_and_scipy() {
        for case in golden::<Labelled>("multi_label") {
            let mut tally = MultiLabelTally::new(case.classes);
            for ((student, teacher), gold) in case.student.iter().zip(&case.teacher).zip(&case.gold) {
                tally.add_sequence(student, teacher, Some(gold));
            }
            case.by_class.expect(&tally.by_class().unwrap().finish(|id| id.to_string()));
            let Some(Measures::MultiLabel(found)) = Box::new(tally).finish() else { panic!("figures expected") };
            let gold = found.gold.unwrap();
            for (found, expected) in [
                (found.student_teacher_labels, case.agreement),
                (gold.student_exact, case.exact),
                (gold.student_micro_f1, case.micro_f1),
                (gold.student_macro_f1, case.macro_f1),
            ] {
                assert!((found - expected).abs() < 1e-11, "{found} against {expected}");
            }
            assert!((found.kl_nats - case.kl_nats).abs() < 1e-6, "{} against {}", found.kl_nats, case.kl_nats);
        }
    }

    #[test]
    fn certain_answers_have_finite_divergence() {
        assert_eq!(binary_kl(200.0, 200.0), 0.0);
        assert!((binary_kl(-500.0, 500.0) - 500.0).abs() < 1e-9);
    }
}
