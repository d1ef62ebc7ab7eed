//! Entities in rows of tags, and their precision, recall and F1, by the rule of conlleval that seqeval has for its default. Pure.
//!
//! A tag is `O` or a letter of `B`, `I`, `E`, `S` with a type behind a dash. The rule is lenient: an entity begins at a `B` or `S`, but also at any
//! tag after `O`, `E`, `S` or another type, and it ends before the next beginning, before `O`, or with an `E` or `S`. It counts as found where type,
//! beginning and end are the same.

use super::classes::{Class, ClassScore, Classes};
use std::collections::BTreeMap;

/// What a class's name says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tag {
    Outside,
    /// The letter and the number of the type.
    Of(char, usize),
}

/// The tags behind the classes of a tagger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    tags: Vec<Tag>,
    types: Vec<String>,
}

impl Tags {
    /// Of the classes' names, by id; none where they are no such tags, as with parts of speech.
    pub fn new(class_names: &[String]) -> Option<Self> {
        let mut types: Vec<String> = Vec::new();
        let mut tag = |name: &String| {
            if name == "O" {
                return Some(Tag::Outside);
            }
            let (letter, of) = name.split_once('-').unwrap_or((name, "_"));
            let letter = letter.chars().next().filter(|_| letter.len() == 1).filter(|letter| "BIES".contains(*letter))?;
            let number = types.iter().position(|known| known == of).unwrap_or_else(|| {
                types.push(of.to_owned());
                types.len() - 1
            });
            Some(Tag::Of(letter, number))
        };
        let tags: Vec<Tag> = class_names.iter().map(&mut tag).collect::<Option<_>>()?;
        (!types.is_empty()).then_some(Self { tags, types })
    }

    /// The entities of a sequence of classes: type, first and last place.
    ///
    /// # Panics
    /// For a class that has no name.
    pub fn entities(&self, classes: &[usize]) -> Vec<(usize, usize, usize)> {
        let mut found = Vec::new();
        let mut open: Option<(usize, usize)> = None;
        let mut before = &Tag::Outside;
        for (place, class) in classes.iter().enumerate() {
            let tag = &self.tags[*class];
            if begins(before, tag)
                && let Some((kind, first)) = open.take()
            {
                found.push((kind, first, place - 1));
            }
            match tag {
                Tag::Outside => {
                    if let Some((kind, first)) = open.take() {
                        found.push((kind, first, place - 1));
                    }
                }
                Tag::Of(_, kind) => {
                    open.get_or_insert((*kind, place));
                }
            }
            before = tag;
        }
        if let Some((kind, first)) = open {
            found.push((kind, first, classes.len() - 1));
        }
        found
    }
}

/// Whether an entity begins at `tag`.
fn begins(before: &Tag, tag: &Tag) -> bool {
    match (before, tag) {
        (_, Tag::Outside) => false,
        (Tag::Outside, _) => true,
        (Tag::Of(letter, kind), Tag::Of(next, next_kind)) => "BS".contains(*next) || "ES".contains(*letter) || kind != next_kind,
    }
}

/// One model's precision, recall and F1 over entities; 0 where there is nothing to divide by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EntityScore {
    /// The share of its entities that are right.
    pub precision: f64,
    /// The share of the gold entities that it found.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    made: u64,
    hits: u64,
}

impl Counts {
    fn score(self, support: u64) -> EntityScore {
        let ratio = |part: u64, whole: u64| if whole > 0 { part as f64 / whole as f64 } else { 0.0 };
        let Self { made, hits } = self;
        EntityScore { precision: ratio(hits, made), recall: ratio(hits, support), f1: ratio(2 * hits, made + support) }
    }

    fn of_type(self, support: u64) -> ClassScore {
        let EntityScore { precision, recall, f1 } = self.score(support);
        ClassScore { precision: (self.made > 0).then_some(precision), recall, f1 }
    }
}

/// Counts per type.
#[derive(Clone, Debug)]
pub struct EntityTally {
    tags: Tags,
    /// `[type]`: gold entities, the student's, the teacher's.
    counts: Vec<(u64, Counts, Counts)>,
}

impl EntityTally {
    /// No counts yet.
    pub fn new(tags: Tags) -> Self {
        Self { counts: vec![Default::default(); tags.types.len()], tags }
    }

    /// Adds a sequence: the classes of its words, by gold answer, student and teacher.
    pub fn add(&mut self, gold: &[usize], student: &[usize], teacher: &[usize]) {
        let [gold, student, teacher] = [gold, student, teacher].map(|classes| self.tags.entities(classes));
        for (kind, ..) in &gold {
            self.counts[*kind].0 += 1;
        }
        for (entity, hit) in student.iter().map(|entity| (entity, gold.contains(entity))) {
            let counts = &mut self.counts[entity.0].1;
            (counts.made, counts.hits) = (counts.made + 1, counts.hits + u64::from(hit));
        }
        for (entity, hit) in teacher.iter().map(|entity| (entity, gold.contains(entity))) {
            let counts = &mut self.counts[entity.0].2;
            (counts.made, counts.hits) = (counts.made + 1, counts.hits + u64::from(hit));
        }
    }

    /// Gold entities, and the scores of student and teacher over them.
    pub fn overall(&self) -> (u64, EntityScore, EntityScore) {
        let support = self.counts.iter().map(|counts| counts.0).sum();
        let sum = |of: fn(&(u64, Counts, Counts)) -> Counts| {
            let add = |sum: Counts, next: Counts| Counts { made: sum.made + next.made, hits: sum.hits + next.hits };
            self.counts.iter().map(of).fold(Counts::default(), add).score(support)
        };
        (support, sum(|counts| counts.1), sum(|counts| counts.2))
    }

    /// The scores by type, in the order of their names; of each type that is there or is predicted.
    pub fn by_type(&self) -> Classes {
        let named: BTreeMap<&str, usize> = self.tags.types.iter().enumerate().map(|(id, name)| (name.as_str(), id)).collect();
        let mut rows = Vec::new();
        for (name, id) in named {
            let (support, student, teacher) = self.counts[id];
            if support + student.made + teacher.made > 0 {
                let (student, teacher) = (student.of_type(support), teacher.of_type(support));
                rows.push(Class { id: id as u32, token: name.to_owned(), support, student, teacher });
            }
        }
        Classes { total: rows.len() as u64, listed: rows.len() as u64, rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::golden::golden;

    #[derive(serde::Deserialize)]
    struct Tagged {
        tags: Vec<String>,
        gold: Vec<Vec<usize>>,
        predicted: Vec<Vec<usize>>,
        gold_entities: Vec<Vec<(String, usize, usize)>>,
        overall: BTreeMap<String, f64>,
        by_type: BTreeMap<String, BTreeMap<String, f64>>,
    }

    #[test]
    fn entities_and_scores_are_those_of_seqeval() {
        for case in golden::<Tagged>("entities") {
            let tags = Tags::new(&case.tags).unwrap();
            let mut tally = EntityTally::new(tags.clone());
            for ((gold, predicted), expected) in case.gold.iter().zip(&case.predicted).zip(&case.gold_entities) {
                let found: Vec<_> =
                    tags.entities(gold).into_iter().map(|(kind, first, last)| (tags.types[kind].clone(), first, last)).collect();
                assert_eq!(&found, expected, "{gold:?}");
                tally.add(gold, predicted, gold);
            }
            let (support, student, teacher) = tally.overall();
            assert_eq!(support as f64, case.overall["support"]);
            assert_eq!((teacher.f1, case.by_type.len()), (1.0, tally.by_type().rows.len()));
            let of_type = |class: &Class| (case.by_type[&class.token].clone(), class.support, class.student);
            let whole = ClassScore { precision: Some(student.precision), recall: student.recall, f1: student.f1 };
            for (expected, support, found) in tally.by_type().rows.iter().map(of_type).chain([(case.overall.clone(), support, whole)]) {
                assert_eq!(support as f64, expected["support"]);
                for (found, key) in [(found.precision.unwrap_or(0.0), "precision"), (found.recall, "recall"), (found.f1, "f1-score")] {
                    assert!((found - expected[key]).abs() < 1e-11, "{key}: {found} against {}", expected[key]);
                }
            }
        }
    }

    #[test]
    fn names_that_are_no_tags_have_no_entities() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for other in [&["NOUN", "VERB"][..], &["O"], &["O", "LABEL_1"], &["O", "X-PER"], &[]] {
            assert_eq!(Tags::new(&names(other)), None, "{other:?}");
        }
        let tags = Tags::new(&names(&["O", "B-PER", "I-PER"])).unwrap();
        assert_eq!((tags.entities(&[0, 2, 2, 1]), tags.entities(&[])), (vec![(0, 1, 2), (0, 3, 3)], vec![]));
    }
}
