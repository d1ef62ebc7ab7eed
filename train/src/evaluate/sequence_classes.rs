//! A classifier of sequences, one class of several each.

use super::classes::ClassTally;
use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{RowSums, scores};
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1], over the sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SequenceClasses {
    /// Sequences scored.
    pub classified_sequences: u64,
    /// Share where student and teacher choose the same class.
    pub student_teacher_top1: f64,
    /// Mean divergence of the student from the teacher at temperature 1, in nats.
    pub kl_nats: f64,
    /// Sequences whose class is known.
    pub gold_sequences: u64,
    /// Against their classes; absent where there are none.
    #[serde(flatten)]
    pub gold: Option<GoldClasses>,
}

/// Both models against gold classes. Micro-averaged F1 of one class of several is the accuracy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldClasses {
    /// Share where the student's class is the gold one.
    pub student_accuracy: f64,
    /// Share where the teacher's class is the gold one.
    pub teacher_accuracy: f64,
    /// The student's mean F1 of the classes that occur or are predicted.
    pub student_macro_f1: f64,
    /// The teacher's.
    pub teacher_macro_f1: f64,
    /// The student's Matthews correlation coefficient, from -1 to 1.
    pub student_matthews: f64,
    /// The teacher's.
    pub teacher_matthews: f64,
}

impl Measured for SequenceClasses {
    fn count(&self) -> (u64, &'static str) {
        (self.classified_sequences, "sequences")
    }

    fn divergence(&self) -> f64 {
        self.kl_nats
    }

    fn figures(&self) -> Vec<Figure> {
        let accuracy = "Agreement and accuracy, held out";
        let mut figures = vec![
            Figure::of_student("student_teacher_top1", "student-teacher agreement", self.student_teacher_top1, Better::Higher)
                .said("agreement with the teacher", "")
                .in_chart(accuracy, "with teacher"),
            Figure::of_student("kl_nats", "KL at temperature 1, nats", self.kl_nats, Better::Lower)
                .said("divergence", " nats")
                .in_chart("Divergence from the teacher, nats", ""),
        ];
        let Some(gold) = self.gold else { return figures };
        let both = |keys, title, values| Figure::of_both(keys, title, values, Better::Higher);
        figures.extend([
            both(["student_accuracy", "teacher_accuracy"], "accuracy", [gold.student_accuracy, gold.teacher_accuracy])
                .said("accuracy", "")
                .in_chart(accuracy, "gold"),
            both(["student_macro_f1", "teacher_macro_f1"], "macro F1", [gold.student_macro_f1, gold.teacher_macro_f1])
                .said("macro F1", "")
                .in_chart("Macro F1, held out", "F1"),
            both(["student_matthews", "teacher_matthews"], "Matthews correlation", [gold.student_matthews, gold.teacher_matthews])
                .in_chart("Matthews correlation with gold classes, held out", "gold"),
        ]);
        figures
    }
}

/// Counts over sequences.
#[derive(Clone, Debug)]
pub(super) struct SequenceClassesTally {
    sums: RowSums,
    labelled: u64,
    classes: ClassTally,
}

impl SequenceClassesTally {
    pub(super) fn new(classes: usize) -> Self {
        Self { sums: RowSums::default(), labelled: 0, classes: ClassTally::new(classes) }
    }
}

impl TaskTally for SequenceClassesTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        for score in scores(batch, logits)? {
            self.sums.add(&score);
            if let Some(gold) = score.gold {
                self.labelled += 1;
                self.classes.add(gold, score.student, score.teacher);
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let (student, teacher) = (self.classes.student(), self.classes.teacher());
        (self.sums.rows > 0).then(|| {
            Measures::SequenceClasses(SequenceClasses {
                classified_sequences: self.sums.rows,
                student_teacher_top1: self.sums.agreement(),
                kl_nats: self.sums.kl_nats(),
                gold_sequences: self.labelled,
                gold: (self.labelled > 0).then_some(GoldClasses {
                    student_accuracy: student.accuracy,
                    teacher_accuracy: teacher.accuracy,
                    student_macro_f1: student.macro_f1,
                    teacher_macro_f1: teacher.macro_f1,
                    student_matthews: student.matthews,
                    teacher_matthews: teacher.matthews,
                }),
            })
        })
    }
}
