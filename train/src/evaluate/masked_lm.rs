//! A masked language model: the masked positions, where the gold answer is the original token.

use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{RowSums, scores};
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1], over the masked positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MaskedLm {
    /// Masked positions scored; every share below is over these.
    pub masked_positions: u64,
    /// Share where the student's largest logit is at the teacher's.
    pub student_teacher_top1: f64,
    /// Mean divergence of the student from the teacher at temperature 1, in nats; what lies outside the stored ids counts as one outcome.
    pub kl_nats: f64,
    /// Share where the teacher's largest logit is at the original token.
    pub teacher_gold_top1: f64,
    /// Share where the student's largest logit is at the original token.
    pub student_gold_top1: f64,
}

impl Measured for MaskedLm {
    fn count(&self) -> (u64, &'static str) {
        (self.masked_positions, "masked positions")
    }

    fn divergence(&self) -> f64 {
        self.kl_nats
    }

    fn figures(&self) -> Vec<Figure> {
        let chart = "Top-1 agreement on held-out masked positions";
        let gold = [self.student_gold_top1, self.teacher_gold_top1];
        vec![
            Figure::of_student("student_teacher_top1", "student-teacher top-1 agreement", self.student_teacher_top1, Better::Higher)
                .said("agreement with the teacher", "")
                .in_chart(chart, "with teacher"),
            Figure::of_student("kl_nats", "KL at temperature 1, nats", self.kl_nats, Better::Lower)
                .said("divergence", " nats")
                .in_chart("Divergence from the teacher there, nats", ""),
            Figure::of_both(["student_gold_top1", "teacher_gold_top1"], "gold top-1", gold, Better::Higher)
                .said("gold", "")
                .in_chart(chart, "gold"),
        ]
    }
}

/// Sums over scored positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct MaskedLmTally {
    sums: RowSums,
    teacher_gold: u64,
    student_gold: u64,
}

impl TaskTally for MaskedLmTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        for score in scores(batch, logits)? {
            self.sums.add(&score);
            self.teacher_gold += u64::from(score.gold == Some(score.teacher));
            self.student_gold += u64::from(score.gold == Some(score.student));
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let share = |count: u64| count as f64 / self.sums.rows as f64;
        (self.sums.rows > 0).then(|| {
            Measures::MaskedLm(MaskedLm {
                masked_positions: self.sums.rows,
                student_teacher_top1: self.sums.agreement(),
                kl_nats: self.sums.kl_nats(),
                teacher_gold_top1: share(self.teacher_gold),
                student_gold_top1: share(self.student_gold),
            })
        })
    }
}
