//! Precision, recall and F1 of student and teacher for each class, which for a language model is the original token, and over all classes.

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
    /// The class, or the original token's id.
    pub id: u32,
    /// Its name, or the token's text.
    pub token: String,
    /// Gold answers of it.
    pub support: u64,
    /// The student's.
    pub student: ClassScore,
    /// The teacher's.
    pub teacher: ClassScore,
}

/// One model over all classes, as scikit-learn has it, a ratio of nothing counting as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overall {
    /// The share of the answers that are right. Of one class of several it is also the micro-averaged F1.
    pub accuracy: f64,
    /// F1 of all classes' counts together.
    pub micro_f1: f64,
    /// The mean F1 of the classes that occur or are predicted.
    pub macro_f1: f64,
    /// Matthews' correlation coefficient, for any number of classes (Gorodkin 2004); of no meaning for [`ClassTally::add_set`].
    pub matthews: f64,
}

/// The classes by support, descending, ties by the smaller id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// Classes that are the gold answer somewhere.
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
    sets: bool,
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

    fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    fn f1(&self, id: usize, support: u64) -> f64 {
        2.0 * self.hits[id] as f64 / (self.made[id] + support).max(1) as f64
    }

    fn overall(&self, support: &[u64], all_classes: bool) -> Overall {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let (hits, made, total) = (self.hits() as f64, self.made.iter().sum::<u64>() as f64, support.iter().sum::<u64>() as f64);
        let counted = |id: &usize| all_classes || self.made[*id] + support[*id] > 0;
        let f1s: Vec<f64> = (0..support.len()).filter(counted).map(|id| self.f1(id, support[id])).collect();
        // With c right of s answers, p(k) of class k predicted and t(k) there: (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)).
        let products = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
        let spread = |counts: &[u64]| total * total - products(counts, counts);
        let covariance = hits * total - products(&self.made, support);
        Overall {
            accuracy: ratio(hits, total),
            micro_f1: ratio(2.0 * hits, made + total),
            macro_f1: ratio(f1s.iter().sum(), f1s.len() as f64),
            matthews: ratio(covariance, (spread(&self.made) * spread(support)).sqrt()),
        }
    }

    fn score(&self, id: usize, support: u64) -> ClassScore {
        let (made, hits) = (self.made[id], self.hits[id] as f64);
        ClassScore { precision: (made > 0).then(|| hits / made as f64), recall: hits / support.max(1) as f64, f1: self.f1(id, support) }
    }
}

impl ClassTally {
    /// No counts yet, for ids below `classes`.
    pub fn new(classes: usize) -> Self {
        Self { support: vec![0; classes], sets: false, student: Predictions::new(classes), teacher: Predictions::new(classes) }
    }

    /// Adds an answer that is one class; the three ids are below the number of classes.
    pub fn add(&mut self, gold: usize, student: usize, teacher: usize) {
        self.support[gold] += 1;
        self.student.add(student, gold);
        self.teacher.add(teacher, gold);
    }

    /// Adds an answer that is a set of classes, `[classes]` each: whether it holds them.
    pub fn add_set(&mut self, gold: &[bool], student: &[bool], teacher: &[bool]) {
        self.sets = true;
        for (id, gold) in gold.iter().enumerate() {
            self.support[id] += u64::from(*gold);
            for (model, answer) in [(&mut self.student, student[id]), (&mut self.teacher, teacher[id])] {
                model.made[id] += u64::from(answer);
                model.hits[id] += u64::from(answer && *gold);
            }
        }
    }

    /// The student over all classes.
    pub fn student(&self) -> Overall {
        self.student.overall(&self.support, self.sets)
    }

    /// The teacher over all classes.
    pub fn teacher(&self) -> Overall {
        self.teacher.overall(&self.support, self.sets)
    }

    /// The scores; `token` gives the name of an id.
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
    use crate::evaluate::golden::{Scores, golden};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct OneOfSeveral {
        classes: usize,
        gold: Vec<usize>,
        predicted: Vec<usize>,
        accuracy: f64,
        micro_f1: f64,
        macro_f1: f64,
        matthews: f64,
        by_class: Scores,
    }

    #[test]
    fn scores_are_those_of_scikit_learn() {
        for case in golden::<OneOfSeveral>("single_label") {
            let mut tally = ClassTally::new(case.classes);
            case.gold.iter().zip(&case.predicted).for_each(|(gold, predicted)| tally.add(*gold, *predicted, *gold));
            let found = tally.student();
            for (found, expected) in [
                (found.accuracy, case.accuracy),
                (found.micro_f1, case.micro_f1),
                (found.macro_f1, case.macro_f1),
                (found.matthews, case.matthews),
            ] {
                assert!((found - expected).abs() < 1e-11, "{found} against {expected}");
            }
            case.by_class.expect(&tally.finish(|id| id.to_string()));
            assert_eq!(tally.teacher().accuracy, 1.0);
        }
    }

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
