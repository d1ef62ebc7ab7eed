//! `data/golden/measures.json`: what scikit-learn, scipy and seqeval give, for the tests of the measures.

use super::classes::Classes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The cases of one kind.
pub(super) fn golden<T: DeserializeOwned>(kind: &str) -> Vec<T> {
    let mut all: serde_json::Value = serde_json::from_str(include_str!("../../../data/golden/measures.json")).unwrap();
    serde_json::from_value(all[kind].take()).unwrap()
}

/// `[classes]` each; a precision of nothing is 0.
#[derive(Deserialize)]
pub(super) struct Scores {
    precision: Vec<f64>,
    recall: Vec<f64>,
    f1: Vec<f64>,
    support: Vec<u64>,
}

impl Scores {
    /// Compares the student's, of the classes that are the gold answer somewhere.
    pub(super) fn expect(&self, found: &Classes) {
        assert_eq!(found.total as usize, self.support.iter().filter(|support| **support > 0).count());
        for class in &found.rows {
            let (id, score) = (class.id as usize, class.student);
            assert_eq!(class.support, self.support[id]);
            for (found, expected) in
                [(score.precision.unwrap_or(0.0), self.precision[id]), (score.recall, self.recall[id]), (score.f1, self.f1[id])]
            {
                assert!((found - expected).abs() < 1e-11, "class {id}: {found} against {expected}");
            }
        }
    }
}
