//! The positions where student and teacher differ most.

use crate::batcher::Batch;
use serde::{Deserialize, Serialize};

/// Positions that are kept.
pub const MOST_DISAGREEMENTS: usize = 20;

/// Tokens of context on either side.
pub const CONTEXT_TOKENS: usize = 8;

/// Guesses of each model that are shown.
pub const GUESSES: usize = 3;

/// A token or a class and how probable a model thinks it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guess {
    /// The token's or the class's id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// At temperature 1.
    pub probability: f64,
}

/// One position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Disagreement {
    /// Number of the sequence in the cache.
    pub sequence_id: u64,
    /// Which masked copy of it.
    pub pass: u16,
    /// The position within it, from 0.
    pub position: usize,
    /// The student's divergence from the teacher there, in nats.
    pub kl_nats: f64,
    /// Tokens before it, as the models saw them.
    pub before: Vec<String>,
    /// The token there, as the models saw it.
    pub seen: String,
    /// Tokens after it.
    pub after: Vec<String>,
    /// The gold token or class; empty where none is known.
    pub gold: String,
    /// The teacher's best, descending.
    pub teacher: Vec<Guess>,
    /// The student's best, descending.
    pub student: Vec<Guess>,
}

/// A position in ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    sequence_id: u64,
    pass: u16,
    position: usize,
    divergence: f64,
    before: Vec<u32>,
    seen: u32,
    after: Vec<u32>,
    gold: Option<u32>,
    teacher: Vec<(u32, f64)>,
    student: Vec<(u32, f64)>,
}

/// The largest divergences so far, descending.
#[derive(Clone, Debug, Default)]
pub struct Worst(Vec<Place>);

impl Worst {
    /// Whether a position of this divergence would be kept; of equals the earlier one stays.
    pub fn admits(&self, divergence: f64) -> bool {
        self.0.len() < MOST_DISAGREEMENTS || self.0.last().is_some_and(|last| divergence > last.divergence)
    }

    /// Keeps asked row `row` of `batch`, if it is among the largest.
    pub fn add(&mut self, batch: &Batch, row: usize, divergence: f64, teacher: &[(u32, f64)], student: &[(u32, f64)]) {
        if !self.admits(divergence) {
            return;
        }
        let token = batch.asked[row] as usize;
        let sequence = batch.offsets.partition_point(|offset| *offset <= token) - 1;
        let (first, end) = (batch.offsets[sequence], batch.offsets[sequence + 1]);
        let place = Place {
            sequence_id: batch.sequence_ids[sequence],
            pass: batch.passes.get(sequence).copied().unwrap_or_default(),
            position: token - first,
            divergence,
            before: batch.input_ids[token.saturating_sub(CONTEXT_TOKENS).max(first)..token].to_vec(),
            seen: batch.input_ids[token],
            after: batch.input_ids[token + 1..(token + 1 + CONTEXT_TOKENS).min(end)].to_vec(),
            gold: u32::try_from(batch.labels[row]).ok(),
            teacher: teacher.to_vec(),
            student: student.to_vec(),
        };
        let at = self.0.partition_point(|kept| kept.divergence >= divergence);
        self.0.insert(at, place);
        self.0.truncate(MOST_DISAGREEMENTS);
    }

    /// The positions with the texts of their tokens and of the answers' ids, `class`.
    pub fn finish(self, token: impl Fn(u32) -> String, class: impl Fn(u32) -> String) -> Vec<Disagreement> {
        let texts = |ids: &[u32]| ids.iter().map(|id| token(*id)).collect();
        let guesses = |best: &[(u32, f64)]| {
            best.iter().map(|(id, probability)| Guess { id: *id, token: class(*id), probability: *probability }).collect()
        };
        let told = |place: Place| Disagreement {
            sequence_id: place.sequence_id,
            pass: place.pass,
            position: place.position,
            kl_nats: place.divergence,
            before: texts(&place.before),
            seen: token(place.seen),
            after: texts(&place.after),
            gold: place.gold.map(&class).unwrap_or_default(),
            teacher: guesses(&place.teacher),
            student: guesses(&place.student),
        };
        self.0.into_iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_stay_with_their_own_context() {
        let batch = Batch {
            sequence_ids: vec![4, 9],
            passes: vec![0, 1],
            offsets: vec![0, 3, 6],
            input_ids: vec![10, 11, 12, 13, 14, 15],
            asked: vec![1, 3],
            labels: vec![7, 8],
            ..Batch::empty(1)
        };
        let mut worst = Worst::default();
        for i in 0..30 {
            worst.add(&batch, 0, f64::from(i % 3), &[(7, 0.9)], &[(6, 0.5)]);
        }
        worst.add(&batch, 1, 5.0, &[(7, 0.9)], &[(6, 0.5)]);
        let found = worst.finish(|id| id.to_string(), |id| id.to_string());
        assert_eq!(found.len(), MOST_DISAGREEMENTS);
        assert_eq!((found[0].sequence_id, found[0].pass, found[0].position, found[0].gold.as_str()), (9, 1, 0, "8"));
        assert!(found[0].before.is_empty());
        assert_eq!(found[0].after, ["14", "15"]);
        assert_eq!((&found[1].before, &found[1].after), (&vec!["10".to_owned()], &vec!["12".to_owned()]));
        assert!(found.windows(2).all(|pair| pair[0].kl_nats >= pair[1].kl_nats));
    }
}
