//! Everything that `evaluation.json` holds, summed while the positions stream by: memory grows with the vocabulary, not with the cache.

use crate::batcher::Batch;
use crate::evaluate::calibration::{Calibration, CalibrationTally};
use crate::evaluate::classes::{ClassTally, Classes};
use crate::evaluate::disagreements::{Disagreement, GUESSES, Worst};
use crate::evaluate::{Evaluation, Tally, score};
use logitcache::error::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How many of the best count for the top-5 figures; fewer where the cache stores fewer.
const TOP: usize = 5;

/// The whole of an evaluation. Shares are in [0, 1] and over all masked positions unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FullEvaluation {
    /// The figures of the evaluations during training.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Share where the teacher's best id is among the student's five best.
    pub teacher_top1_in_student_top5: f64,
    /// Share where the student's best id is among the teacher's five best, or all it stores if fewer.
    pub student_top1_in_teacher_top5: f64,
    /// Mean share of the teacher's five best (or all it stores) that are among as many best of the student.
    pub top5_overlap: f64,
    /// Mean of -ln p(original token), in nats.
    pub student_gold_nats: f64,
    /// Its exponential.
    pub student_perplexity: f64,
    /// Positions where the cache stores the original token's logit: the teacher's figures below are over these, and flatter it.
    pub teacher_gold_positions: u64,
    /// The teacher's mean of -ln p(original token) over `teacher_gold_positions`; absent where there are none.
    pub teacher_gold_nats: Option<f64>,
    /// Its exponential.
    pub teacher_perplexity: Option<f64>,
    /// The student's perplexity over `teacher_gold_positions`, to compare.
    pub student_perplexity_there: Option<f64>,
    /// Confidence of the best id against how often it is the original token.
    pub student_calibration: Calibration,
    /// The teacher's.
    pub teacher_calibration: Calibration,
    /// Scores by original token.
    pub classes: Classes,
    /// Where the two differ most, the largest divergence first.
    pub disagreements: Vec<Disagreement>,
}

/// Sums over scored positions.
#[derive(Clone, Debug)]
pub struct FullTally {
    quick: Tally,
    positions: u64,
    teacher_best_found: u64,
    student_best_found: u64,
    overlap: f64,
    gold_nats: f64,
    stored: u64,
    teacher_gold_nats: f64,
    student_gold_nats_there: f64,
    student_calibration: CalibrationTally,
    teacher_calibration: CalibrationTally,
    classes: ClassTally,
    worst: Worst,
}

/// What one position adds.
struct Row {
    divergence: f64,
    /// The student's best, descending, and their probabilities; ties by the smaller id.
    best: Vec<(u32, f64)>,
    gold_nats: f64,
}

impl FullTally {
    /// Nothing yet, for ids below `vocabulary`.
    pub fn new(vocabulary: usize) -> Self {
        Self {
            quick: Tally::default(),
            positions: 0,
            teacher_best_found: 0,
            student_best_found: 0,
            overlap: 0.0,
            gold_nats: 0.0,
            stored: 0,
            teacher_gold_nats: 0.0,
            student_gold_nats_there: 0.0,
            student_calibration: CalibrationTally::default(),
            teacher_calibration: CalibrationTally::default(),
            classes: ClassTally::new(vocabulary),
            worst: Worst::default(),
        }
    }

    /// Adds a batch whose asked rows are all masked and whose targets are at temperature 1.
    ///
    /// `logits`: `[asked, vocabulary]`, the student's, in row order.
    ///
    /// # Errors
    /// See [`Tally::add`].
    pub fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        self.quick.add(batch, logits)?;
        let asked = batch.asked.len();
        if asked == 0 {
            return Ok(());
        }
        let rows: Vec<Row> = logits
            .par_chunks(logits.len() / asked)
            .enumerate()
            .map(|(row, logits)| {
                let targets = row * batch.k..(row + 1) * batch.k;
                measure(logits, &batch.top_ids[targets.clone()], &batch.log_probabilities[targets], batch.labels[row])
            })
            .collect();
        for (row, measured) in rows.iter().enumerate() {
            self.add_row(batch, row, measured);
        }
        Ok(())
    }

    fn add_row(&mut self, batch: &Batch, row: usize, measured: &Row) {
        let targets = row * batch.k..(row + 1) * batch.k;
        let (ids, logs) = (&batch.top_ids[targets.clone()], &batch.log_probabilities[targets]);
        let gold = batch.labels[row].max(0) as u32;
        let stored = TOP.min(batch.k).min(measured.best.len());
        let (teacher_best, student_best) = (ids[0], measured.best[0]);
        let among = |id: u32, count: usize| measured.best[..count].iter().any(|(best, _)| *best == id);
        self.positions += 1;
        self.teacher_best_found += u64::from(among(teacher_best, measured.best.len()));
        self.student_best_found += u64::from(ids[..stored].contains(&student_best.0));
        self.overlap += ids[..stored].iter().filter(|id| among(**id, stored)).count() as f64 / stored as f64;
        self.gold_nats += measured.gold_nats;
        if let Some(place) = ids.iter().position(|id| *id == gold) {
            self.stored += 1;
            self.teacher_gold_nats -= f64::from(logs[place]);
            self.student_gold_nats_there += measured.gold_nats;
        }
        self.student_calibration.add(student_best.1, student_best.0 == gold);
        self.teacher_calibration.add(f64::from(logs[0]).exp(), teacher_best == gold);
        self.classes.add(gold as usize, student_best.0 as usize, teacher_best as usize);
        if self.worst.admits(measured.divergence) {
            let teacher: Vec<(u32, f64)> = ids.iter().zip(logs).take(GUESSES).map(|(id, log)| (*id, f64::from(*log).exp())).collect();
            self.worst.add(batch, row, measured.divergence, &teacher, &measured.best[..GUESSES.min(measured.best.len())]);
        }
    }

    /// The means, once everything is added; `None` where no position was scored. `vocabulary` holds the tokens' texts by id.
    pub fn finish(self, vocabulary: &[String]) -> Option<FullEvaluation> {
        let evaluation = self.quick.finish()?;
        let share = |sum: f64| sum / self.positions as f64;
        let there = |sum: f64| (self.stored > 0).then(|| sum / self.stored as f64);
        let token = |id: u32| vocabulary.get(id as usize).cloned().unwrap_or_else(|| format!("#{id}"));
        Some(FullEvaluation {
            evaluation,
            teacher_top1_in_student_top5: share(self.teacher_best_found as f64),
            student_top1_in_teacher_top5: share(self.student_best_found as f64),
            top5_overlap: share(self.overlap),
            student_gold_nats: share(self.gold_nats),
            student_perplexity: share(self.gold_nats).exp(),
            teacher_gold_positions: self.stored,
            teacher_gold_nats: there(self.teacher_gold_nats),
            teacher_perplexity: there(self.teacher_gold_nats).map(f64::exp),
            student_perplexity_there: there(self.student_gold_nats_there).map(f64::exp),
            student_calibration: self.student_calibration.finish(),
            teacher_calibration: self.teacher_calibration.finish(),
            classes: self.classes.finish(token),
            disagreements: self.worst.finish(token),
        })
    }
}

/// One position whose logits are finite; shapes as in [`score`].
fn measure(logits: &[f32], ids: &[u32], log_probabilities: &[f32], label: i32) -> Row {
    let mut best: Vec<usize> = Vec::with_capacity(TOP + 1);
    for (id, logit) in logits.iter().enumerate() {
        if best.len() < TOP || *logit > logits[best[best.len() - 1]] {
            let at = best.partition_point(|kept| logits[*kept] >= *logit);
            best.insert(at, id);
            best.truncate(TOP);
        }
    }
    let largest = f64::from(logits[best[0]]);
    let log_total = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln();
    let log_probability = |id: usize| f64::from(logits[id]) - largest - log_total;
    Row {
        divergence: score(logits, ids, log_probabilities, label).map_or(f64::NAN, |score| score.divergence),
        gold_nats: -log_probability(label.max(0) as usize),
        best: best.into_iter().map(|id| (id as u32, log_probability(id).exp())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One masked row over a vocabulary of 7, k = 2: the teacher gives (0.6, 0.3) to ids 2 and 0; the original token is 0.
    fn batch() -> Batch {
        Batch {
            sequence_ids: vec![7],
            passes: vec![0],
            offsets: vec![0, 3],
            input_ids: vec![1, 4, 2],
            asked: vec![1],
            k: 2,
            top_ids: vec![2, 0],
            log_probabilities: vec![0.6f32.ln(), 0.3f32.ln()],
            labels: vec![0],
            ..Batch::empty(2)
        }
    }

    #[test]
    fn hand_made_logits_give_hand_made_figures() {
        let logits: Vec<f32> = [0.3f32, 0.02, 0.1, 0.4, 0.1, 0.05, 0.03].iter().map(|p| p.ln() - 3.0).collect();
        let mut tally = FullTally::new(7);
        tally.add(&batch(), &logits).unwrap();
        let found = tally.finish(&["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned)).unwrap();
        assert_eq!((found.teacher_top1_in_student_top5, found.student_top1_in_teacher_top5, found.top5_overlap), (1.0, 0.0, 0.5));
        assert!((found.student_perplexity - 1.0 / 0.3).abs() < 1e-5, "{}", found.student_perplexity);
        assert!((found.teacher_perplexity.unwrap() - 1.0 / 0.3).abs() < 1e-5);
        assert_eq!(found.teacher_gold_positions, 1);
        assert!((found.student_calibration.ece - 0.4).abs() < 1e-6 && (found.teacher_calibration.ece - 0.6).abs() < 1e-6);
        assert_eq!((found.classes.total, found.classes.rows[0].token.as_str(), found.classes.rows[0].student.recall), (1, "a", 0.0));
        let worst = &found.disagreements[0];
        assert_eq!(worst.student.iter().map(|guess| guess.token.as_str()).collect::<String>(), "dac", "of equals the smaller id");
        assert_eq!((worst.seen.as_str(), worst.kl_nats), ("e", found.evaluation.kl_nats));
        let text = serde_json::to_string(&found).unwrap();
        // JSON numbers are read to within the last bit, so what holds no fractions is compared.
        let read: FullEvaluation = serde_json::from_str(&text).unwrap();
        assert_eq!((read.classes, read.teacher_gold_positions, read.disagreements.len()), (found.classes, 1, 1));
        assert!(FullTally::new(7).finish(&[]).is_none());
    }
}
