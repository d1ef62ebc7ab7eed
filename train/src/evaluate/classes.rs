//! Precision, recall and F1 of student and teacher for each original token.

use serde::{Deserialize, Serialize};

/// Classes that are listed at most; the most frequent where there are more.
pub const MOST_CLASSES: usize = 50;

/// One model on one class. F1 is 2 hits / (predicted + support).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// The share of its predictions of this class that are right; absent where it made none.
    pub precision: Option<f64>,
    /// The share of the class that it found.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

/// Both models on one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// The original token's id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Masked positions that hold it.
    pub support: u64,
    /// The student's.
    pub student: ClassScore,
    /// The teacher's.
    pub teacher: ClassScore,
}

/// The classes by support, descending, ties by the smaller id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// Distinct original tokens that were masked somewhere.
    pub total: u64,
    /// Those of `rows`.
    pub listed: u64,
    /// At most [`MOST_CLASSES`].
    pub rows: Vec<Class>,
}

/// Counts per id.
#[derive(Clone, Debug)]
pub struct ClassTally {
    support: Vec<u64>,
    student: Predictions,
    teacher: Predictions,
}

#[derive(Clone, Debug)]
struct Predictions {
    made: Vec<u64>,
    hits: Vec<u64>,
}

impl Predictions {
    fn new(vocabulary: usize) -> Self {
        Self { made: vec![0; vocabulary], hits: vec![0; vocabulary] }
    }

    fn add(&mut self, id: usize, gold: usize) {
        self.made[id] += 1;
        self.hits[id] += u64::from(id == gold);
    }

    fn score(&self, id: usize, support: u64) -> ClassScore {
        let (made, hits) = (self.made[id], self.hits[id] as f64);
        ClassScore {
            precision: (made > 0).then(|| hits / made as f64),
            recall: hits / support.max(1) as f64,
            f1: 2.0 * hits / (made + support).max(1) as f64,
        }
    }
}

impl ClassTally {
    /// No counts yet, for ids below `vocabulary`.
    pub fn new(vocabulary: usize) -> Self {
        Self { support: vec![0; vocabulary], student: Predictions::new(vocabulary), teacher: Predictions::new(vocabulary) }
    }

    /// Adds a position; the three ids are below the vocabulary's size.
    pub fn add(&mut self, gold: usize, student: usize, teacher: usize) {
        self.support[gold] += 1;
        self.student.add(student, gold);
        self.teacher.add(teacher, gold);
    }

    /// The scores; `token` gives an id's text.
    pub fn finish(&self, token: impl Fn(u32) -> String) -> Classes {
        let mut present: Vec<usize> = (0..self.support.len()).filter(|id| self.support[*id] > 0).collect();
        let total = present.len() as u64;
        present.sort_by_key(|id| std::cmp::Reverse(self.support[*id]));
        present.truncate(MOST_CLASSES);
        let row = |id: usize| {
            let support = self.support[id];
            let (student, teacher) = (self.student.score(id, support), self.teacher.score(id, support));
            Class { id: id as u32, token: token(id as u32), support, student, teacher }
        };
        Classes { total, listed: present.len() as u64, rows: present.into_iter().map(row).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_scores() {
        let mut tally = ClassTally::new(100);
        for (gold, student, teacher) in [(3, 3, 3), (3, 1, 3), (1, 1, 3), (3, 3, 2)] {
            tally.add(gold, student, teacher);
        }
        let found = tally.finish(|id| format!("t{id}"));
        assert_eq!((found.total, found.listed, found.rows[0].token.as_str(), found.rows[0].support), (2, 2, "t3", 3));
        assert_eq!(found.rows[0].student, ClassScore { precision: Some(1.0), recall: 2.0 / 3.0, f1: 0.8 });
        assert_eq!(found.rows[1].student, ClassScore { precision: Some(0.5), recall: 1.0, f1: 2.0 / 3.0 });
        assert_eq!(found.rows[1].teacher, ClassScore { precision: None, recall: 0.0, f1: 0.0 });
    }

    #[test]
    fn of_many_classes_the_most_frequent_are_listed() {
        let mut tally = ClassTally::new(100);
        (0..80).for_each(|id| (0..=id).for_each(|_| tally.add(id, id, id)));
        let found = tally.finish(|id| id.to_string());
        assert_eq!((found.total, found.listed, found.rows[0].id, found.rows[49].id), (80, 50, 79, 30));
    }
}
