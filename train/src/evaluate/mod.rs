//! How well a student stands in for its teacher, measured on sequences it was never trained on.
//!
//! [`Tally`] is what training measures as it goes, [`FullTally`] what it measures at its end and `train evaluate` on any cache; [`pass`] is the
//! way both take through the data. What is measured depends on the task: [`measures`] has the list, and a file each has [`masked_lm`],
//! [`next_tokens`], [`sequence_classes`], [`multi_label`], [`regression`], [`token_classes`] and [`sentence_vectors`]. [`figures`] is what those who
//! show an evaluation know of it.

pub mod calibration;
pub mod classes;
pub mod correlation;
pub mod disagreements;
pub mod entities;
pub mod figures;
mod full;
mod gold_nats;
#[cfg(test)]
mod golden;
pub mod masked_lm;
pub mod measures;
pub mod multi_label;
pub mod neighbours;
pub mod next_tokens;
pub mod pass;
pub mod regression;
mod rows;
pub mod sample;
pub mod sentence_vectors;
pub mod sequence_classes;
mod teacher_logits;
pub mod token_classes;
#[cfg(test)]
mod whole_runs;

pub use figures::{Better, Figure};
pub use full::{FullEvaluation, FullTally};
pub use gold_nats::GoldNats;
pub use measures::{Measures, Subject};
pub use rows::STUDENT_LOGITS;
pub use sentence_vectors::STUDENT_VECTORS;

use crate::batcher::Batch;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use measures::TaskTally;
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

/// What an evaluation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Sequences read.
    pub sequences: u64,
    /// What the task has to say.
    #[serde(flatten)]
    pub measures: Measures,
}

impl Evaluation {
    /// What was scored: how many and of what.
    pub fn count(&self) -> (u64, &'static str) {
        self.measures.of_task().count()
    }

    /// How far the student is from its teacher; lower is better, whatever the task.
    pub fn divergence(&self) -> f64 {
        self.measures.of_task().divergence()
    }

    /// What a person is shown, the most telling first.
    pub fn figures(&self) -> Vec<Figure> {
        self.measures.of_task().figures()
    }
}

/// What training measures as it goes.
pub struct Tally {
    sequences: u64,
    of_task: Box<dyn TaskTally>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(subject: &Subject) -> Self {
        Self { sequences: 0, of_task: subject.tally() }
    }

    /// Adds a batch whose targets are at temperature 1 and whose asked rows are, of a masked language model, all masked.
    ///
    /// `answers`: the student's, in row order: logits `[asked, classes]`, or the vectors `[sequence, width]` of a sentence encoder.
    ///
    /// # Errors
    /// [`Error::Invalid`] for answers of another size, or one that holds a NaN or an infinity.
    pub fn add(&mut self, batch: &Batch, answers: &[f32]) -> Result<()> {
        self.sequences += batch.sequence_ids.len() as u64;
        self.of_task.add(batch, answers)
    }

    /// The means, once everything is added; `None` where nothing was scored.
    pub fn finish(self) -> Option<Evaluation> {
        Some(Evaluation { sequences: self.sequences, measures: self.of_task.finish()? })
    }
}

#[cfg(test)]
mod tests {
    use super::masked_lm::MaskedLm;
    use super::*;
    use logitcache::target::Task;

    fn tally() -> Tally {
        Tally::new(&Subject { task: Task::MaskedLm, problem: None, classes: 4, class_names: vec![] })
    }

    fn finish(tally: Tally) -> (u64, MaskedLm) {
        let found = tally.finish().unwrap();
        let Measures::MaskedLm(measures) = found.measures else { panic!("{found:?}") };
        assert_eq!((found.divergence(), found.count()), (measures.kl_nats, (measures.masked_positions, "masked positions")));
        (found.sequences, measures)
    }

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
        let mut tally = tally();
        tally.add(&batch(), &logits).unwrap();
        let (sequences, found) = finish(tally);
        assert_eq!((sequences, found.masked_positions), (1, 2));
        assert_eq!(found.student_teacher_top1, 0.5);
        assert_eq!((found.teacher_gold_top1, found.student_gold_top1), (0.5, 1.0));
        let second = 0.5 * (0.5f64 / 0.2).ln() + 0.25 * (0.25f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.3).ln();
        assert!((found.kl_nats - second / 2.0).abs() < 1e-6, "{} against {}", found.kl_nats, second / 2.0);
    }

    #[test]
    fn ties_go_to_the_smaller_id_as_in_the_cache() {
        let mut tally = tally();
        tally.add(&batch(), &[1.0, 0.0, 1.0, 0.0, 0.0, 9.0, 9.0, 9.0]).unwrap();
        assert_eq!(finish(tally).1.student_teacher_top1, 0.5, "id 0 before the teacher's 2; the teacher's 1 before 2 and 3");
    }

    #[test]
    fn two_batches_count_as_one() {
        let (mut once, mut twice) = (tally(), tally());
        let logits = [0.5, 0.1, 0.7, -0.2, 1.0, 2.0, 0.0, -1.0];
        once.add(&batch(), &logits).unwrap();
        twice.add(&batch(), &logits).unwrap();
        twice.add(&batch(), &logits).unwrap();
        let (once, twice) = (finish(once).1, finish(twice).1);
        assert_eq!((once.kl_nats, once.student_teacher_top1), (twice.kl_nats, twice.student_teacher_top1));
        assert_eq!(2 * once.masked_positions, twice.masked_positions);
    }

    #[test]
    fn broken_logits_are_refused_and_nothing_gives_nothing() {
        assert!(tally().add(&batch(), &[0.0; 7]).is_err());
        assert!(tally().add(&batch(), &[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0]).is_err());
        assert_eq!(tally().finish(), None);
    }
}
