//! How probable the gold tokens are to a language model: the mean of -ln p, and its exponential, the perplexity.

use super::figures::{Better, Figure};
use super::rows::Score;
use serde::{Deserialize, Serialize};

/// Over all scored positions with a gold token unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldNats {
    /// Mean of -ln p(gold token), in nats.
    pub student_gold_nats: f64,
    /// Its exponential.
    pub student_perplexity: f64,
    /// Positions where the cache stores the gold token's logit: the teacher's figures below are over these, and flatter it.
    pub teacher_gold_positions: u64,
    /// The teacher's mean of -ln p(gold token) over `teacher_gold_positions`; absent where there are none.
    pub teacher_gold_nats: Option<f64>,
    /// Its exponential.
    pub teacher_perplexity: Option<f64>,
    /// The student's perplexity over `teacher_gold_positions`, to compare.
    pub student_perplexity_there: Option<f64>,
}

impl GoldNats {
    /// The student's perplexity, then both models' where the teacher's is known.
    pub(super) fn figures(&self) -> Vec<Figure> {
        let all = Figure::of_student("student_perplexity", "perplexity, student", self.student_perplexity, Better::Lower);
        let there = self.student_perplexity_there.zip(self.teacher_perplexity).map(|(student, teacher)| {
            let keys = ["student_perplexity_there", "teacher_perplexity"];
            Figure::of_both(keys, "perplexity where stored", [student, teacher], Better::Lower)
        });
        std::iter::once(all).chain(there).collect()
    }
}

/// Sums of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct GoldNatsTally {
    positions: u64,
    student: f64,
    stored: u64,
    teacher: f64,
    student_there: f64,
}

impl GoldNatsTally {
    /// Adds a row, `ids` and `log_probabilities` `[k]` being the teacher's; nothing for one without gold token.
    pub(super) fn add(&mut self, score: &Score, ids: &[u32], log_probabilities: &[f32]) {
        let (Some(gold), Some(nats)) = (score.gold, score.gold_nats) else { return };
        self.positions += 1;
        self.student += nats;
        if let Some(place) = ids.iter().position(|id| *id as usize == gold) {
            self.stored += 1;
            self.teacher -= f64::from(log_probabilities[place]);
            self.student_there += nats;
        }
    }

    /// The means; none where no row had a gold token.
    pub(super) fn finish(self) -> Option<GoldNats> {
        let there = |sum: f64| (self.stored > 0).then(|| sum / self.stored as f64);
        let mean = self.student / self.positions as f64;
        (self.positions > 0).then(|| GoldNats {
            student_gold_nats: mean,
            student_perplexity: perplexity(mean),
            teacher_gold_positions: self.stored,
            teacher_gold_nats: there(self.teacher),
            teacher_perplexity: there(self.teacher).map(perplexity),
            student_perplexity_there: there(self.student_there).map(perplexity),
        })
    }
}

/// The exponential of a mean of nats, at most the largest that a double holds: JSON, which checkpoints are told in, has no infinity.
fn perplexity(nats: f64) -> f64 {
    let perplexity = nats.exp();
    // `min` would make a number of NaN.
    if perplexity == f64::INFINITY { f64::MAX } else { perplexity }
}

#[cfg(test)]
mod tests {
    use super::perplexity;

    #[test]
    fn a_perplexity_is_a_number_unless_the_nats_are_none() {
        assert_eq!((perplexity(0.0), perplexity(710.0)), (1.0, f64::MAX));
        assert!(perplexity(709.0) < f64::MAX && perplexity(f64::NAN).is_nan());
    }
}
