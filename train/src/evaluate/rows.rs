//! One asked row of logits against the teacher's answer, where the answer is one of several: agreement and divergence. Pure.

use crate::batcher::Batch;
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::error::{Error, Result};
use rayon::prelude::*;

/// What a refusal of the student's answers calls them.
pub const STUDENT_LOGITS: &str = "student logits";

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    /// The teacher's largest logit.
    pub(super) teacher: usize,
    /// The student's, ties by the smaller id.
    pub(super) student: usize,
    /// The gold answer, if there is one.
    pub(super) gold: Option<usize>,
    /// Nats, of the student from the teacher at temperature 1.
    pub(super) divergence: f64,
    /// -ln p(gold answer) of the student, in nats.
    pub(super) gold_nats: Option<f64>,
}

impl Score {
    pub(super) fn agrees(&self) -> bool {
        self.student == self.teacher
    }
}

/// The rows of `answers`, `[asked, width]`, and their width; none for a batch that asks nothing.
///
/// # Errors
/// [`Error::Invalid`] for answers of another size.
pub(super) fn width(answers: &[f32], rows: usize) -> Result<Option<usize>> {
    if rows == 0 {
        return Ok(None);
    }
    if answers.is_empty() || !answers.len().is_multiple_of(rows) {
        return Err(Error::invalid(STUDENT_LOGITS, format!("{rows} rows"), format!("{} values", answers.len())));
    }
    Ok(Some(answers.len() / rows))
}

/// The refusal of row `row`, which holds a NaN or an infinity.
pub(super) fn not_finite(row: usize) -> Error {
    Error::invalid(STUDENT_LOGITS, "finite values", format!("another in asked row {row}"))
}

/// The scores of a batch whose targets are at temperature 1, row by row; `logits` `[asked, classes]`.
///
/// # Errors
/// [`Error::Invalid`] for logits of another size, or a row that holds a NaN or an infinity.
pub(super) fn scores(batch: &Batch, logits: &[f32]) -> Result<Vec<Score>> {
    let Some(width) = width(logits, batch.asked.len())? else { return Ok(Vec::new()) };
    // Scored in parallel, in order: the result does not depend on the number of threads.
    let scores: Vec<Option<Score>> = logits
        .par_chunks(width)
        .enumerate()
        .map(|(row, logits)| {
            let targets = row * batch.k..(row + 1) * batch.k;
            score(logits, &batch.top_ids[targets.clone()], &batch.log_probabilities[targets], batch.labels[row])
        })
        .collect();
    scores.into_iter().enumerate().map(|(row, score)| score.ok_or_else(|| not_finite(row))).collect()
}

/// One row: `logits` `[classes]` of the student, `ids` and `log_probabilities` `[k]` of the teacher; none where a logit is not finite.
///
/// With t and p the two distributions, a and b their masses on the stored ids, the divergence is that of the distributions over the stored
/// ids and "anything else": sum t ln(t / p) + (1 - a) ln((1 - a) / (1 - b)).
pub(super) fn score(logits: &[f32], ids: &[u32], log_probabilities: &[f32], label: i32) -> Option<Score> {
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
    let gold = usize::try_from(label).ok().filter(|_| label != IGNORED_LABEL);
    let gold_nats = gold.map(|gold| total.ln() - shifted(logits[gold]));
    Some(Score { teacher: ids[0] as usize, student: best, gold, divergence, gold_nats })
}

/// Agreement and divergence summed over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RowSums {
    pub(super) rows: u64,
    agreements: u64,
    divergence: f64,
}

impl RowSums {
    pub(super) fn add(&mut self, score: &Score) {
        self.rows += 1;
        self.agreements += u64::from(score.agrees());
        self.divergence += score.divergence;
    }

    /// The share that agrees.
    pub(super) fn agreement(&self) -> f64 {
        self.agreements as f64 / self.rows as f64
    }

    /// The mean divergence in nats.
    pub(super) fn kl_nats(&self) -> f64 {
        self.divergence / self.rows as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::golden::golden;

    #[derive(serde::Deserialize)]
    struct Divergence {
        student: Vec<Vec<f32>>,
        teacher: Vec<Vec<f64>>,
        gold: Vec<i32>,
        kl_nats: f64,
        agreement: f64,
        student_perplexity: f64,
    }

    #[test]
    fn divergence_and_gold_nats_are_those_of_scipy() {
        for case in golden::<Divergence>("divergence") {
            let (mut sums, mut nats) = (RowSums::default(), 0.0);
            for ((student, teacher), gold) in case.student.iter().zip(&case.teacher).zip(&case.gold) {
                let log_z = teacher.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                let mut ids: Vec<u32> = (0..teacher.len() as u32).collect();
                ids.sort_by(|a, b| teacher[*b as usize].total_cmp(&teacher[*a as usize]));
                let logs: Vec<f32> = ids.iter().map(|id| (teacher[*id as usize] - log_z) as f32).collect();
                let found = score(student, &ids, &logs, *gold).unwrap();
                sums.add(&found);
                nats += found.gold_nats.unwrap();
            }
            assert!((sums.kl_nats() - case.kl_nats).abs() < 1e-6, "{} against {}", sums.kl_nats(), case.kl_nats);
            assert!((sums.agreement() - case.agreement).abs() < 1e-11);
            let perplexity = (nats / sums.rows as f64).exp();
            assert!((perplexity - case.student_perplexity).abs() < 1e-5, "{perplexity} against {}", case.student_perplexity);
        }
    }

    #[test]
    fn broken_logits_are_refused() {
        let batch = Batch { asked: vec![0], labels: vec![IGNORED_LABEL], ..crate::batcher::Batch::empty(0) };
        let refused = |logits: &[f32]| scores(&batch, logits).unwrap_err().to_string();
        assert!(refused(&[]).contains("1 rows") && score(&[0.0, f32::NAN], &[0], &[0.0], 0).is_none());
        assert_eq!(score(&[0.0, 1.0], &[0], &[0.0], IGNORED_LABEL).unwrap().gold, None);
    }
}
