//! A causal language model: every asked position, where the gold answer is the token that comes next.

use super::figures::{Better, Figure};
use super::gold_nats::{GoldNats, GoldNatsTally};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{RowSums, scores};
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1], over the asked positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NextTokens {
    /// Positions scored.
    pub next_tokens: u64,
    /// Share where the student's largest logit is at the teacher's.
    pub student_teacher_top1: f64,
    /// Mean divergence of the student from the teacher at temperature 1, in nats; what lies outside the stored ids counts as one outcome.
    pub kl_nats: f64,
    /// Share where the teacher's largest logit is at the next token.
    pub teacher_gold_top1: f64,
    /// Share where the student's largest logit is at the next token.
    pub student_gold_top1: f64,
    /// Perplexities.
    #[serde(flatten)]
    pub gold: GoldNats,
}

impl Measured for NextTokens {
    fn count(&self) -> (u64, &'static str) {
        (self.next_tokens, "next tokens")
    }

    fn divergence(&self) -> f64 {
        self.kl_nats
    }

    fn figures(&self) -> Vec<Figure> {
        let (agreement, perplexity) = ("Top-1 agreement on held-out next tokens", "Perplexity of the held-out tokens");
        let gold = [self.student_gold_top1, self.teacher_gold_top1];
        let mut figures = vec![
            Figure::of_student("student_teacher_top1", "student-teacher top-1 agreement", self.student_teacher_top1, Better::Higher)
                .said("agreement with the teacher", "")
                .in_chart(agreement, "with teacher"),
            Figure::of_student("kl_nats", "KL at temperature 1, nats", self.kl_nats, Better::Lower)
                .said("divergence", " nats")
                .in_chart("Divergence from the teacher there, nats", ""),
            Figure::of_both(["student_gold_top1", "teacher_gold_top1"], "gold top-1", gold, Better::Higher).in_chart(agreement, "gold"),
        ];
        for figure in self.gold.figures() {
            let everywhere = figure.key == "student_perplexity";
            let said = if everywhere { "perplexity" } else { "where the teacher's is known" };
            figures.push(figure.said(said, "").in_chart(perplexity, if everywhere { "student, all" } else { "stored" }));
        }
        figures
    }
}

/// Sums over scored positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct NextTokensTally {
    sums: RowSums,
    labelled: u64,
    teacher_gold: u64,
    student_gold: u64,
    gold: GoldNatsTally,
}

impl TaskTally for NextTokensTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        for (row, score) in scores(batch, logits)?.iter().enumerate() {
            let targets = row * batch.k..(row + 1) * batch.k;
            self.sums.add(score);
            self.labelled += u64::from(score.gold.is_some());
            self.teacher_gold += u64::from(score.gold == Some(score.teacher));
            self.student_gold += u64::from(score.gold == Some(score.student));
            self.gold.add(score, &batch.top_ids[targets.clone()], &batch.log_probabilities[targets]);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let share = |count: u64| count as f64 / self.labelled as f64;
        // Every asked position has a next token: without any there is nothing to measure.
        let gold = self.gold.finish()?;
        Some(Measures::NextTokens(NextTokens {
            next_tokens: self.sums.rows,
            student_teacher_top1: self.sums.agreement(),
            kl_nats: self.sums.kl_nats(),
            teacher_gold_top1: share(self.teacher_gold),
            student_gold_top1: share(self.student_gold),
            gold,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_made_logits_give_hand_made_figures() {
        let logs = |of: [f32; 4]| of.map(f32::ln).to_vec();
        // The next tokens are 2, which is stored, and 0, which is not; at the last position none is known.
        let batch = Batch {
            asked: vec![0, 1, 2],
            labels: vec![2, 0, -100],
            top_ids: vec![2, 3, 1, 3, 1, 3],
            log_probabilities: vec![0.5f32.ln(), 0.25f32.ln(), 0.5f32.ln(), 0.25f32.ln(), 0.5f32.ln(), 0.25f32.ln()],
            ..Batch::empty(2)
        };
        let logits = [logs([0.2, 0.3, 0.4, 0.1]), logs([0.8, 0.1, 0.05, 0.05]), logs([0.1, 0.7, 0.1, 0.1])].concat();
        let mut tally = Box::new(NextTokensTally::default());
        tally.add(&batch, &logits).unwrap();
        let Some(Measures::NextTokens(found)) = tally.finish() else { panic!("figures expected") };
        assert_eq!((found.next_tokens, found.gold.teacher_gold_positions), (3, 1));
        assert_eq!((found.student_teacher_top1, found.student_gold_top1, found.teacher_gold_top1), (2.0 / 3.0, 1.0, 0.5));
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} against {expected}");
        near(found.gold.student_perplexity, (0.4f64 * 0.8).powf(-0.5));
        near(found.gold.teacher_perplexity.unwrap(), 2.0);
        near(found.gold.student_perplexity_there.unwrap(), 2.5);
        assert!(found.figures().iter().all(|figure| figure.chart.is_some()));
    }
}
