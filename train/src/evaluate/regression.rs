//! A regression of sequences: the logits are the numbers.

use super::correlation::{pearson, spearman};
use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{not_finite, width};
use super::sample::Sample;
use super::teacher_logits::teacher_logits;
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Sequences that correlations are of at most; a [`Sample`] where there are more.
pub const MOST_CORRELATED: usize = 100_000;

/// Where there are several numbers a sequence, errors are means over them, and correlations too, of those that change at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Regression {
    /// Sequences scored.
    pub regressed_sequences: u64,
    /// Mean square of the student's difference from the teacher.
    pub teacher_mse: f64,
    /// Pearson's coefficient of the student's numbers with the teacher's; absent where one never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_teacher_pearson: Option<f64>,
    /// Spearman's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_teacher_spearman: Option<f64>,
    /// Sequences whose numbers are known.
    pub gold_sequences: u64,
    /// Against these; absent where there are none.
    #[serde(flatten)]
    pub gold: Option<GoldNumbers>,
}

/// Both models against gold numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldNumbers {
    /// Mean square of the student's error.
    pub student_gold_mse: f64,
    /// The teacher's.
    pub teacher_gold_mse: f64,
    /// Pearson's coefficient of the student's numbers with the gold ones; absent where one never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_pearson: Option<f64>,
    /// The teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_pearson: Option<f64>,
    /// Spearman's of the student.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_spearman: Option<f64>,
    /// The teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_spearman: Option<f64>,
}

impl Measured for Regression {
    fn count(&self) -> (u64, &'static str) {
        (self.regressed_sequences, "sequences")
    }

    fn divergence(&self) -> f64 {
        self.teacher_mse
    }

    fn figures(&self) -> Vec<Figure> {
        let (errors, correlation) = ("Mean squared error, held out", "Correlation, held out");
        let student = |key, title, value: Option<f64>| value.map(|value| Figure::of_student(key, title, value, Better::Higher));
        let pearson = student("student_teacher_pearson", "Pearson, student-teacher", self.student_teacher_pearson);
        let mut figures = vec![
            Figure::of_student("teacher_mse", "squared difference from teacher", self.teacher_mse, Better::Lower)
                .said("squared difference from the teacher", "")
                .in_chart(errors, "from teacher"),
        ];
        figures.extend(pearson.map(|figure| figure.said("Pearson", "").in_chart(correlation, "with teacher")));
        figures.extend(student("student_teacher_spearman", "Spearman, student-teacher", self.student_teacher_spearman));
        let Some(gold) = self.gold else { return figures };
        let error = [gold.student_gold_mse, gold.teacher_gold_mse];
        figures.push(
            Figure::of_both(["student_gold_mse", "teacher_gold_mse"], "squared error", error, Better::Lower)
                .said("squared error", "")
                .in_chart(errors, "gold"),
        );
        let both = |keys, title, student: Option<f64>, teacher: Option<f64>| {
            student.map(|value| Figure { teacher, ..Figure::of_both(keys, title, [value, 0.0], Better::Higher) })
        };
        let pearson = both(["student_pearson", "teacher_pearson"], "Pearson with gold", gold.student_pearson, gold.teacher_pearson);
        figures.extend(pearson.map(|figure| figure.said("Pearson with gold", "").in_chart(correlation, "gold")));
        figures.extend(both(["student_spearman", "teacher_spearman"], "Spearman with gold", gold.student_spearman, gold.teacher_spearman));
        figures
    }
}

/// The numbers of a sequence, `[outputs]` each.
#[derive(Clone, Debug)]
struct Numbers {
    student: Vec<f32>,
    teacher: Vec<f32>,
    gold: Option<Vec<f32>>,
}

/// Sums over sequences, and a sample of their numbers.
#[derive(Clone, Debug)]
pub(super) struct RegressionTally {
    sequences: u64,
    labelled: u64,
    /// Squared differences: student from teacher, student from gold, teacher from gold.
    squares: [f64; 3],
    numbers: Sample<Numbers>,
}

impl RegressionTally {
    /// Nothing yet, for `outputs` numbers a sequence.
    pub(super) fn new(outputs: usize) -> Self {
        Self { sequences: 0, labelled: 0, squares: [0.0; 3], numbers: Sample::new(MOST_CORRELATED / outputs.max(1)) }
    }

    fn add_sequence(&mut self, (sequence_id, pass): (u64, u16), student: &[f32], teacher: Vec<f32>, gold: Option<&[f32]>) {
        self.sequences += 1;
        self.squares[0] += mean_square(student, &teacher);
        if let Some(gold) = gold {
            self.labelled += 1;
            self.squares[1] += mean_square(student, gold);
            self.squares[2] += mean_square(&teacher, gold);
        }
        self.numbers.add(sequence_id, pass, || Numbers { student: student.to_vec(), teacher, gold: gold.map(<[f32]>::to_vec) });
    }
}

fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>() / a.len().max(1) as f64
}

/// The mean of a coefficient over the outputs that have one; `pair` gives a sequence's two numbers of an output.
fn mean_over_outputs(
    numbers: &[Numbers],
    coefficient: fn(&[(f64, f64)]) -> Option<f64>,
    pair: impl Fn(&Numbers, usize) -> Option<(f32, f32)>,
) -> Option<f64> {
    let outputs = numbers.first().map_or(0, |first| first.student.len());
    let of_output = |output: usize| {
        let pairs = numbers.iter().filter_map(|of| pair(of, output)).map(|(a, b)| (f64::from(a), f64::from(b)));
        coefficient(&pairs.collect::<Vec<_>>())
    };
    let found: Vec<f64> = (0..outputs).filter_map(of_output).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

impl TaskTally for RegressionTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        let Some(outputs) = width(logits, batch.asked.len())? else { return Ok(()) };
        for (row, student) in logits.chunks_exact(outputs).enumerate() {
            if student.iter().any(|logit| !logit.is_finite()) {
                return Err(not_finite(row));
            }
            let gold = batch.has_label_values.get(row).filter(|known| **known);
            let gold = gold.and_then(|_| batch.label_values.get(row * outputs..(row + 1) * outputs));
            self.add_sequence((batch.sequence_ids[row], batch.passes[row]), student, teacher_logits(batch, row), gold);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let Self { sequences, labelled, squares, numbers } = *self;
        let numbers = numbers.finish();
        let both = |of: &Numbers, output: usize| Some((of.student[output], of.teacher[output]));
        let student = |of: &Numbers, output: usize| Some((of.student[output], of.gold.as_ref()?[output]));
        let teacher = |of: &Numbers, output: usize| Some((of.teacher[output], of.gold.as_ref()?[output]));
        (sequences > 0).then(|| {
            Measures::Regression(Regression {
                regressed_sequences: sequences,
                teacher_mse: squares[0] / sequences as f64,
                student_teacher_pearson: mean_over_outputs(&numbers, pearson, both),
                student_teacher_spearman: mean_over_outputs(&numbers, spearman, both),
                gold_sequences: labelled,
                gold: (labelled > 0).then(|| GoldNumbers {
                    student_gold_mse: squares[1] / labelled as f64,
                    teacher_gold_mse: squares[2] / labelled as f64,
                    student_pearson: mean_over_outputs(&numbers, pearson, student),
                    teacher_pearson: mean_over_outputs(&numbers, pearson, teacher),
                    student_spearman: mean_over_outputs(&numbers, spearman, student),
                    teacher_spearman: mean_over_outputs(&numbers, spearman, teacher),
                }),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::golden::golden;

    #[derive(serde::Deserialize)]
    struct Case {
        gold: Vec<f32>,
        predicted: Vec<f32>,
        mse: f64,
        pearson: f64,
        spearman: f64,
    }

    #[test]
    fn figures_are_those_of_scikit_learn_and_scipy() {
        for case in golden::<Case>("numbers") {
            let mut tally = Box::new(RegressionTally::new(1));
            for (id, (gold, predicted)) in case.gold.iter().zip(&case.predicted).enumerate() {
                tally.add_sequence((id as u64, 0), &[*predicted], vec![*gold], Some(&[*gold]));
            }
            let Some(Measures::Regression(found)) = tally.finish() else { panic!("figures expected") };
            let gold = found.gold.unwrap();
            for (found, expected) in [
                (gold.student_gold_mse, case.mse),
                (gold.student_pearson.unwrap(), case.pearson),
                (gold.student_spearman.unwrap(), case.spearman),
                (found.teacher_mse, case.mse),
                (found.student_teacher_spearman.unwrap(), case.spearman),
            ] {
                assert!((found - expected).abs() < 1e-6, "{found} against {expected}: the numbers are in single precision here");
            }
            assert_eq!((gold.teacher_gold_mse, found.figures().len()), (0.0, 6));
        }
    }
}
