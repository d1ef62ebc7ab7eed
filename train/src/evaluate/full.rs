//! Everything that `evaluation.json` holds, summed while the positions stream by: memory grows with the vocabulary, not with the cache.

use crate::batcher::Batch;
use crate::evaluate::calibration::{Calibration, CalibrationTally};
use crate::evaluate::classes::{ClassTally, Classes};
use crate::evaluate::disagreements::{Disagreement, GUESSES, Worst};
use crate::evaluate::gold_nats::{GoldNats, GoldNatsTally};
use crate::evaluate::rows::{Score, scores};
use crate::evaluate::{Better, Evaluation, Figure, Subject, Tally};
use logitcache::error::Result;
use logitcache::target::Task;
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

/// How many of the best count for the top-5 figures; fewer where the cache stores fewer.
const TOP: usize = 5;

/// The whole of an evaluation. What a task does not have is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FullEvaluation {
    /// The figures of the evaluations during training.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Of language models: the best ids of both.
    #[serde(flatten)]
    pub top_five: Option<TopFive>,
    /// Of masked language models; causal ones have it among the figures during training.
    #[serde(flatten, deserialize_with = "gold_of_masked_positions")]
    pub gold: Option<GoldNats>,
    /// Confidence of the best id against how often it is the gold one; where an answer is one of several and gold ones are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_calibration: Option<Calibration>,
    /// The teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_calibration: Option<Calibration>,
    /// Scores by class, which of a language model is the gold token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
    /// Scores by type of entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entities: Option<Classes>,
    /// Where the two differ most, the largest divergence first; of answers that are one of several.
    #[serde(default)]
    pub disagreements: Vec<Disagreement>,
}

/// The same keys belong to the evaluation itself where next tokens were measured.
fn gold_of_masked_positions<'de, D: Deserializer<'de>>(fields: D) -> std::result::Result<Option<GoldNats>, D::Error> {
    #[derive(Deserialize)]
    struct Fields {
        masked_positions: Option<u64>,
        #[serde(flatten)]
        gold: Option<GoldNats>,
    }
    let found = Fields::deserialize(fields)?;
    Ok(found.gold.filter(|_| found.masked_positions.is_some()))
}

/// The five best ids of both models. Shares are in [0, 1] and over all scored positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TopFive {
    /// Share where the teacher's best id is among the student's five best.
    pub teacher_top1_in_student_top5: f64,
    /// Share where the student's best id is among the teacher's five best, or all it stores if fewer.
    pub student_top1_in_teacher_top5: f64,
    /// Mean share of the teacher's five best (or all it stores) that are among as many best of the student.
    pub top5_overlap: f64,
}

impl FullEvaluation {
    /// What a person is shown: the figures during training, then the others that are one number.
    pub fn figures(&self) -> Vec<Figure> {
        let of = |key, title, value| Figure::of_student(key, title, value, Better::Higher);
        let mut figures = self.evaluation.figures();
        if let Some(top) = self.top_five {
            figures.extend([
                of("teacher_top1_in_student_top5", "teacher's best in student's 5", top.teacher_top1_in_student_top5),
                of("student_top1_in_teacher_top5", "student's best in teacher's 5", top.student_top1_in_teacher_top5),
                of("top5_overlap", "overlap of the 5 best", top.top5_overlap),
            ]);
        }
        figures.extend(self.gold.iter().flat_map(GoldNats::figures));
        if let (Some(student), Some(teacher)) = (&self.student_calibration, &self.teacher_calibration) {
            let keys = ["student_calibration", "teacher_calibration"];
            figures.push(Figure::of_both(keys, "calibration error (ECE)", [student.ece, teacher.ece], Better::Lower));
        }
        figures
    }

    /// What a class is, for a heading: of a language model the gold token.
    pub fn what_classes_are(&self) -> &'static str {
        self.evaluation.measures.what_classes_are()
    }
}

/// Everything that is measured.
pub struct FullTally {
    quick: Tally,
    subject: Subject,
    answers: Option<Answers>,
}

/// Sums over answers that are one of several ids.
#[derive(Clone, Debug)]
struct Answers {
    positions: u64,
    labelled: u64,
    teacher_best_found: u64,
    student_best_found: u64,
    overlap: f64,
    gold: GoldNatsTally,
    student_calibration: CalibrationTally,
    teacher_calibration: CalibrationTally,
    classes: ClassTally,
    worst: Worst,
}

impl FullTally {
    /// Nothing yet.
    pub fn new(subject: Subject) -> Self {
        let answers = subject.is_one_of_several().then(|| Answers {
            positions: 0,
            labelled: 0,
            teacher_best_found: 0,
            student_best_found: 0,
            overlap: 0.0,
            gold: GoldNatsTally::default(),
            student_calibration: CalibrationTally::default(),
            teacher_calibration: CalibrationTally::default(),
            classes: ClassTally::new(subject.classes),
            worst: Worst::default(),
        });
        Self { quick: Tally::new(&subject), subject, answers }
    }

    /// Adds a batch; see [`Tally::add`].
    ///
    /// # Errors
    /// See [`Tally::add`].
    pub fn add(&mut self, batch: &Batch, answers: &[f32]) -> Result<()> {
        self.quick.add(batch, answers)?;
        if let Some(tally) = &mut self.answers {
            tally.add(batch, answers)?;
        }
        Ok(())
    }

    /// The means, once everything is added; `None` where nothing was scored. `vocabulary` holds the tokens' texts by id.
    pub fn finish(self, vocabulary: &[String]) -> Option<FullEvaluation> {
        let Self { quick, subject, answers } = self;
        let token = |id: u32| vocabulary.get(id as usize).cloned().unwrap_or_else(|| format!("#{id}"));
        let class = |id: u32| if subject.task.is_language_model() { token(id) } else { subject.class_name(id) };
        let sets = quick.of_task.by_class().map(|tally| tally.finish(class));
        let entities = quick.of_task.entities().map(|tally| tally.by_type());
        let found = FullEvaluation { evaluation: quick.finish()?, classes: sets, entities, ..FullEvaluation::default() };
        let Some(of) = answers else { return Some(found) };
        let labelled = of.labelled > 0;
        Some(FullEvaluation {
            top_five: subject.task.is_language_model().then(|| of.top_five()),
            gold: if subject.task == Task::MaskedLm { of.gold.finish() } else { None },
            student_calibration: labelled.then(|| of.student_calibration.finish()),
            teacher_calibration: labelled.then(|| of.teacher_calibration.finish()),
            classes: labelled.then(|| of.classes.finish(class)),
            disagreements: of.worst.finish(token, class),
            ..found
        })
    }
}

impl Answers {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        let scores = scores(batch, logits)?;
        if scores.is_empty() {
            return Ok(());
        }
        let best: Vec<Vec<(u32, f64)>> = logits.par_chunks(logits.len() / scores.len()).map(best_ids).collect();
        for (row, (score, best)) in scores.iter().zip(&best).enumerate() {
            self.add_row(batch, row, score, best);
        }
        Ok(())
    }

    /// `best`: the student's best ids, descending, and their probabilities; ties by the smaller id.
    fn add_row(&mut self, batch: &Batch, row: usize, score: &Score, best: &[(u32, f64)]) {
        let targets = row * batch.k..(row + 1) * batch.k;
        let (ids, logs) = (&batch.top_ids[targets.clone()], &batch.log_probabilities[targets]);
        let stored = TOP.min(batch.k).min(best.len());
        let (teacher_best, student_best) = (ids[0], best[0]);
        let among = |id: u32, count: usize| best[..count].iter().any(|(best, _)| *best == id);
        self.positions += 1;
        self.teacher_best_found += u64::from(among(teacher_best, best.len()));
        self.student_best_found += u64::from(ids[..stored].contains(&student_best.0));
        self.overlap += ids[..stored].iter().filter(|id| among(**id, stored)).count() as f64 / stored as f64;
        self.gold.add(score, ids, logs);
        if let Some(gold) = score.gold {
            self.labelled += 1;
            self.student_calibration.add(student_best.1, student_best.0 as usize == gold);
            self.teacher_calibration.add(f64::from(logs[0]).exp(), teacher_best as usize == gold);
            self.classes.add(gold, student_best.0 as usize, teacher_best as usize);
        }
        if self.worst.admits(score.divergence) {
            let teacher: Vec<(u32, f64)> = ids.iter().zip(logs).take(GUESSES).map(|(id, log)| (*id, f64::from(*log).exp())).collect();
            self.worst.add(batch, row, score.divergence, &teacher, &best[..GUESSES.min(best.len())]);
        }
    }

    fn top_five(&self) -> TopFive {
        let share = |sum: f64| sum / self.positions as f64;
        TopFive {
            teacher_top1_in_student_top5: share(self.teacher_best_found as f64),
            student_top1_in_teacher_top5: share(self.student_best_found as f64),
            top5_overlap: share(self.overlap),
        }
    }
}

/// The best ids of a row of finite logits, descending, and their probabilities; of equals the smaller id.
fn best_ids(logits: &[f32]) -> Vec<(u32, f64)> {
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
    best.into_iter().map(|id| (id as u32, (f64::from(logits[id]) - largest - log_total).exp())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject { task: Task::MaskedLm, problem: None, classes: 7, class_names: vec![] }
    }

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
        let mut tally = FullTally::new(subject());
        tally.add(&batch(), &logits).unwrap();
        let found = tally.finish(&["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned)).unwrap();
        let (top, gold) = (found.top_five.unwrap(), found.gold.unwrap());
        assert_eq!((top.teacher_top1_in_student_top5, top.student_top1_in_teacher_top5, top.top5_overlap), (1.0, 0.0, 0.5));
        assert!((gold.student_perplexity - 1.0 / 0.3).abs() < 1e-5, "{}", gold.student_perplexity);
        assert!((gold.teacher_perplexity.unwrap() - 1.0 / 0.3).abs() < 1e-5);
        assert_eq!(gold.teacher_gold_positions, 1);
        assert!(
            (found.student_calibration.as_ref().unwrap().ece - 0.4).abs() < 1e-6
                && (found.teacher_calibration.as_ref().unwrap().ece - 0.6).abs() < 1e-6
        );
        let classes = found.classes.as_ref().unwrap();
        assert_eq!((classes.total, classes.rows[0].token.as_str(), classes.rows[0].student.recall), (1, "a", 0.0));
        let worst = &found.disagreements[0];
        assert_eq!(worst.student.iter().map(|guess| guess.token.as_str()).collect::<String>(), "dac", "of equals the smaller id");
        assert_eq!((worst.seen.as_str(), worst.kl_nats), ("e", found.evaluation.divergence()));
        let text = serde_json::to_string(&found).unwrap();
        // JSON numbers are read to within the last bit, so what holds no fractions is compared.
        let read: FullEvaluation = serde_json::from_str(&text).unwrap();
        assert_eq!((read.classes, read.gold.unwrap().teacher_gold_positions, read.disagreements.len()), (found.classes, 1, 1));
        assert!(FullTally::new(subject()).finish(&[]).is_none());
    }
}
