//! How well a student stands in for its teacher, measured on masked positions it was never trained on.
//!
//! [`Tally`] is what training measures as it goes, [`FullTally`] what it measures at its end and `train evaluate` on any cache; [`pass`] is the
//! way both take through the data.

pub mod calibration;
pub mod classes;
pub mod disagreements;
mod full;
pub mod pass;

pub use full::{FullEvaluation, FullTally};

use crate::batcher::Batch;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// For a person, where [`tokens`] finds none.
pub const NO_TOKENS: &str = "The cache has no vocabulary.parquet: ids stand in place of tokens.";

/// The tokens of the cache by id; none where it has no `vocabulary.parquet`, without which everything can still be measured.
///
/// # Errors
/// [`Error::Data`] for a file that is not such a table.
pub fn tokens(cache: &Cache) -> Result<Vec<String>> {
    match cache.vocabulary() {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// What an evaluation found. Shares are in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Sequences read.
    pub sequences: u64,
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

/// What a refusal of the student's answers calls them.
pub const STUDENT_LOGITS: &str = "student logits";

/// Sums over scored positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    sequences: u64,
    positions: u64,
    agreements: u64,
    divergence: f64,
    teacher_gold: u64,
    student_gold: u64,
}

/// What one position adds.
struct Score {
    agrees: bool,
    divergence: f64,
    teacher_gold: bool,
    student_gold: bool,
}

impl Tally {
    /// Adds a batch whose asked rows are all masked and whose targets are at temperature 1.
    ///
    /// `logits`: `[asked, vocabulary]`, the student's, in row order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for logits of another size, or a row that holds a NaN or an infinity.
    pub fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        self.sequences += batch.sequence_ids.len() as u64;
        let asked = batch.asked.len();
        if asked == 0 {
            return Ok(());
        }
        if logits.is_empty() || !logits.len().is_multiple_of(asked) {
            return Err(Error::invalid(STUDENT_LOGITS, format!("{asked} rows"), format!("{} values", logits.len())));
        }
        // Scored in parallel, summed in order: the result does not depend on the number of threads.
        let scores: Vec<Option<Score>> = logits
            .par_chunks(logits.len() / asked)
            .enumerate()
            .map(|(row, logits)| {
                let targets = row * batch.k..(row + 1) * batch.k;
                score(logits, &batch.top_ids[targets.clone()], &batch.log_probabilities[targets], batch.labels[row])
            })
            .collect();
        for (row, score) in scores.into_iter().enumerate() {
            let score = score.ok_or_else(|| Error::invalid(STUDENT_LOGITS, "finite values", format!("another in asked row {row}")))?;
            self.positions += 1;
            self.agreements += u64::from(score.agrees);
            self.divergence += score.divergence;
            self.teacher_gold += u64::from(score.teacher_gold);
            self.student_gold += u64::from(score.student_gold);
        }
        Ok(())
    }

    /// The means, once everything is added; `None` where no position was scored.
    pub fn finish(self) -> Option<Evaluation> {
        let share = |sum: f64| sum / self.positions as f64;
        (self.positions > 0).then(|| Evaluation {
            sequences: self.sequences,
            masked_positions: self.positions,
            student_teacher_top1: share(self.agreements as f64),
            kl_nats: share(self.divergence),
            teacher_gold_top1: share(self.teacher_gold as f64),
            student_gold_top1: share(self.student_gold as f64),
        })
    }
}

/// One position: `logits` `[vocabulary]` of the student, `ids` and `log_probabilities` `[k]` of the teacher; none where a logit is not finite.
///
/// With t and p the two distributions, a and b their masses on the stored ids, the divergence is that of the distributions over the stored
/// ids and "anything else": sum t ln(t / p) + (1 - a) ln((1 - a) / (1 - b)).
fn score(logits: &[f32], ids: &[u32], log_probabilities: &[f32], label: i32) -> Option<Score> {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return None;
        }
        if *logit > logits[best] {
            best = id;
        }
    }
    let shifted = |logit: f32| f64::from(logit) - f64::from(logits[best]);
    let total: f64 = logits.iter().map(|logit| shifted(*logit).exp()).sum();
    let (mut divergence, mut teacher_mass, mut student_mass) = (0.0, 0.0, 0.0);
    for (id, log_teacher) in ids.iter().zip(log_probabilities) {
        let log_teacher = f64::from(*log_teacher);
        let log_student = shifted(logits[*id as usize]) - total.ln();
        divergence += log_teacher.exp() * (log_teacher - log_student);
        teacher_mass += log_teacher.exp();
        student_mass += log_student.exp();
    }
    let rest = 1.0 - teacher_mass;
    if ids.len() < logits.len() && rest > 0.0 {
        divergence += rest * (rest / (1.0 - student_mass).max(f64::EPSILON)).ln();
    }
    Some(Score {
        agrees: ids[0] as usize == best,
        divergence,
        teacher_gold: i64::from(ids[0]) == i64::from(label),
        student_gold: best as i64 == i64::from(label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two masked rows over a vocabulary of 4, k = 2: the teacher gives (0.6, 0.3) to ids 2 and 0, then (0.5, 0.25) to ids 1 and 3.
    fn batch() -> Batch {
        let logs = [0.6f32, 0.3, 0.5, 0.25].map(f32::ln);
        Batch {
            sequence_ids: vec![7],
            offsets: vec![0, 4],
            asked: vec![1, 2],
            k: 2,
            top_ids: vec![2, 0, 1, 3],
            log_probabilities: logs.to_vec(),
            labels: vec![2, 3],
            ..Batch::empty(2)
        }
    }

    #[test]
    fn hand_made_logits_give_hand_made_numbers() {
        // The student's probabilities: (0.3, 0.05, 0.6, 0.05), the teacher's own; and (0.1, 0.2, 0.2, 0.5), which prefers the gold id 3.
        let logits: Vec<f32> = [0.3f32, 0.05, 0.6, 0.05, 0.1, 0.2, 0.2, 0.5].iter().map(|p| p.ln() + 4.0).collect();
        let mut tally = Tally::default();
        tally.add(&batch(), &logits).unwrap();
        let found = tally.finish().unwrap();
        assert_eq!((found.sequences, found.masked_positions), (1, 2));
        assert_eq!(found.student_teacher_top1, 0.5);
        assert_eq!((found.teacher_gold_top1, found.student_gold_top1), (0.5, 1.0));
        let second = 0.5 * (0.5f64 / 0.2).ln() + 0.25 * (0.25f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.3).ln();
        assert!((found.kl_nats - second / 2.0).abs() < 1e-6, "{} against {}", found.kl_nats, second / 2.0);
    }

    #[test]
    fn ties_go_to_the_smaller_id_as_in_the_cache() {
        let mut tally = Tally::default();
        tally.add(&batch(), &[1.0, 0.0, 1.0, 0.0, 0.0, 9.0, 9.0, 9.0]).unwrap();
        assert_eq!(tally.finish().unwrap().student_teacher_top1, 0.5, "id 0 before the teacher's 2; the teacher's 1 before 2 and 3");
    }

    #[test]
    fn two_batches_count_as_one() {
        let (mut once, mut twice) = (Tally::default(), Tally::default());
        let logits = [0.5, 0.1, 0.7, -0.2, 1.0, 2.0, 0.0, -1.0];
        once.add(&batch(), &logits).unwrap();
        twice.add(&batch(), &logits).unwrap();
        twice.add(&batch(), &logits).unwrap();
        let (once, twice) = (once.finish().unwrap(), twice.finish().unwrap());
        assert_eq!((once.kl_nats, once.student_teacher_top1), (twice.kl_nats, twice.student_teacher_top1));
        assert_eq!(2 * once.masked_positions, twice.masked_positions);
    }

    #[test]
    fn broken_logits_are_refused_and_nothing_gives_nothing() {
        assert!(Tally::default().add(&batch(), &[0.0; 7]).is_err());
        assert!(Tally::default().add(&batch(), &[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0]).is_err());
        assert_eq!(Tally::default().finish(), None);
    }
}
