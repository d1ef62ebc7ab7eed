//! What is measured of each task: the one list of them.

use super::classes::ClassTally;
use super::entities::EntityTally;
use super::figures::Figure;
use super::masked_lm::{MaskedLm, MaskedLmTally};
use super::multi_label::{MultiLabel, MultiLabelTally};
use super::next_tokens::{NextTokens, NextTokensTally};
use super::regression::{Regression, RegressionTally};
use super::sentence_vectors::{SentenceVectors, SentenceVectorsTally};
use super::sequence_classes::{SequenceClasses, SequenceClassesTally};
use super::token_classes::{TokenClasses, TokenClassesTally};
use crate::batcher::Batch;
use logitcache::error::Result;
use logitcache::target::{Problem, TargetSpec, Task};
use serde::{Deserialize, Serialize};

/// What a student answers, as far as a measure depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The kind of answer.
    pub task: Task,
    /// What a sequence classifier's logits mean.
    pub problem: Option<Problem>,
    /// Length of a row of logits; 0 for sentence embeddings.
    pub classes: usize,
    /// A classifier's classes by id; those beyond have none.
    pub class_names: Vec<String>,
}

impl Subject {
    /// Of a cache whose classes have these names.
    pub fn new(spec: &TargetSpec, class_names: &[String]) -> Self {
        Self { task: spec.task(), problem: spec.problem(), classes: spec.classes(), class_names: class_names.to_vec() }
    }

    /// Whether an answer is one of several ids, tokens or classes.
    pub(super) fn is_one_of_several(&self) -> bool {
        match self.task {
            Task::MaskedLm | Task::CausalLm | Task::TokenClassification => true,
            Task::SequenceClassification => matches!(self.problem, None | Some(Problem::SingleLabel)),
            Task::SentenceEmbedding => false,
        }
    }

    /// A classifier's class for a person.
    pub(super) fn class_name(&self, id: u32) -> String {
        self.class_names.get(id as usize).cloned().unwrap_or_else(|| format!("class {id}"))
    }

    /// Nothing measured yet.
    pub(super) fn tally(&self) -> Box<dyn TaskTally> {
        match (self.task, self.problem) {
            (Task::MaskedLm, _) => Box::new(MaskedLmTally::default()),
            (Task::CausalLm, _) => Box::new(NextTokensTally::default()),
            (Task::TokenClassification, _) => Box::new(TokenClassesTally::new(&self.class_names)),
            (Task::SentenceEmbedding, _) => Box::new(SentenceVectorsTally::default()),
            (Task::SequenceClassification, Some(Problem::MultiLabel)) => Box::new(MultiLabelTally::new(self.classes)),
            (Task::SequenceClassification, Some(Problem::Regression)) => Box::new(RegressionTally::new(self.classes)),
            (Task::SequenceClassification, _) => Box::new(SequenceClassesTally::new(self.classes)),
        }
    }
}

/// Sums of a task's measures.
pub(super) trait TaskTally: Send {
    /// Adds a batch whose targets are at temperature 1. `answers` are the student's in row order: logits `[asked, classes]`, or the vectors
    /// `[sequence, width]` of a sentence encoder.
    ///
    /// # Errors
    /// `Error::Invalid` for answers of another size, or one that holds a NaN or an infinity.
    fn add(&mut self, batch: &Batch, answers: &[f32]) -> Result<()>;

    /// Counts by class, where the task's answers are sets of classes with gold ones.
    fn by_class(&self) -> Option<&ClassTally> {
        None
    }

    /// Counts by type of entity, where the task has gold entities.
    fn entities(&self) -> Option<&EntityTally> {
        None
    }

    /// The measures, once everything is added; `None` where nothing was scored.
    fn finish(self: Box<Self>) -> Option<Measures>;
}

/// A task's measures. In files they stand beside the fields of the evaluation; each task has a count that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measures {
    /// Of a masked language model.
    MaskedLm(MaskedLm),
    /// Of a causal language model.
    NextTokens(NextTokens),
    /// Of a classifier of sequences.
    SequenceClasses(SequenceClasses),
    /// Of one whose classes are each for themselves.
    MultiLabel(MultiLabel),
    /// Of a regression.
    Regression(Regression),
    /// Of a classifier of tokens.
    TokenClasses(TokenClasses),
    /// Of a sentence encoder.
    SentenceVectors(SentenceVectors),
}

impl Default for Measures {
    fn default() -> Self {
        Self::MaskedLm(MaskedLm::default())
    }
}

/// What every task's measures say.
pub(super) trait Measured {
    /// What was scored: how many and of what.
    fn count(&self) -> (u64, &'static str);

    /// How far the student is from its teacher: 0 where it is the same, whatever the gold answers are. The best checkpoint has the smallest.
    fn divergence(&self) -> f64;

    /// What a person is shown, the most telling first.
    fn figures(&self) -> Vec<Figure>;
}

impl Measures {
    pub(super) fn of_task(&self) -> &dyn Measured {
        match self {
            Self::MaskedLm(found) => found,
            Self::NextTokens(found) => found,
            Self::SequenceClasses(found) => found,
            Self::MultiLabel(found) => found,
            Self::Regression(found) => found,
            Self::TokenClasses(found) => found,
            Self::SentenceVectors(found) => found,
        }
    }

    /// What a class of the answers is: of a language model the gold token.
    pub(super) fn what_classes_are(&self) -> &'static str {
        match self {
            Self::MaskedLm(_) => "original token",
            Self::NextTokens(_) => "next token",
            _ => "class",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Evaluation;
    use super::super::gold_nats::GoldNats;
    use super::super::sequence_classes::GoldClasses;
    use super::super::token_classes::{GoldEntities, GoldTokens};
    use super::*;

    #[test]
    fn every_task_reads_back_as_itself() {
        let classes = SequenceClasses { gold: Some(GoldClasses::default()), ..SequenceClasses::default() };
        let tokens = TokenClasses { gold: Some(GoldTokens::default()), entities: Some(GoldEntities::default()), ..TokenClasses::default() };
        let known = NextTokens { gold: GoldNats { teacher_perplexity: Some(2.0), ..GoldNats::default() }, ..NextTokens::default() };
        for measures in [
            Measures::default(),
            Measures::NextTokens(NextTokens::default()),
            Measures::NextTokens(known),
            Measures::SequenceClasses(SequenceClasses::default()),
            Measures::SequenceClasses(classes),
            Measures::MultiLabel(MultiLabel::default()),
            Measures::Regression(Regression::default()),
            Measures::Regression(Regression { gold: Some(Default::default()), ..Regression::default() }),
            Measures::TokenClasses(TokenClasses::default()),
            Measures::TokenClasses(tokens),
            Measures::SentenceVectors(SentenceVectors { recall_at_10: Some(0.5), ..SentenceVectors::default() }),
        ] {
            let evaluation = Evaluation { sequences: 7, measures };
            let text = serde_json::to_string(&evaluation).unwrap();
            assert_eq!(serde_json::from_str::<Evaluation>(&text).unwrap(), evaluation, "{text}");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            for figure in evaluation.figures() {
                assert!(json[figure.key].is_number(), "no number {} in {text}", figure.key);
                assert!(figure.title.len() < 33, "{} is too long for a table", figure.title);
                assert!(figure.teacher_key.is_none_or(|key| json.get(key).is_some()), "no {:?} in {text}", figure.teacher_key);
            }
            assert!(text.starts_with("{\"sequences\":7,"), "{text}");
        }
    }
}
