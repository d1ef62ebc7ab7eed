//! What a cache promises about its targets: the part of a run that a student must know.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

use std::fmt;
use std::str::FromStr;

/// The kind of answer the teacher gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Logits over the vocabulary for every position; the input is masked.
    MaskedLm,
    /// Logits over the classes for the sequence as a whole.
    SequenceClassification,
    /// Logits over the classes for every position.
    TokenClassification,
    /// One vector for the sequence as a whole.
    SentenceEmbedding,
    /// Logits over the vocabulary for every position: of the token that comes next.
    CausalLm,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 5] =
        [Self::MaskedLm, Self::SequenceClassification, Self::TokenClassification, Self::SentenceEmbedding, Self::CausalLm];

    /// The name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaskedLm => "masked-lm",
            Self::SequenceClassification => "sequence-classification",
            Self::TokenClassification => "token-classification",
            Self::SentenceEmbedding => "sentence-embedding",
            Self::CausalLm => "causal-lm",
        }
    }

    /// Whether a row of logits is as long as the vocabulary.
    pub fn is_language_model(self) -> bool {
        matches!(self, Self::MaskedLm | Self::CausalLm)
    }

    /// Whether there is one answer for a sequence, not one for each position.
    pub fn is_of_sequences(self) -> bool {
        matches!(self, Self::SequenceClassification | Self::SentenceEmbedding)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|task| task.name() == text);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// What the logits of a sequence classifier mean, as the `problem_type` of `transformers` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// One class of several: a softmax over the logits.
    SingleLabel,
    /// Each class for itself, present or not: a sigmoid of each logit.
    MultiLabel,
    /// Real numbers: the logits themselves.
    Regression,
}

/// How the states of a sequence's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one, which is `[CLS]`'s.
    Cls,
    /// The largest value of each dimension.
    Max,
}

/// Which positions of a sequence carry targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionRule {
    /// Every position that holds no special token.
    Tokens,
    /// The masked positions alone.
    Masked,
    /// Every position, special tokens included.
    All,
    /// The masked positions and, by a seeded draw, as many others as make up this share of the non-special ones; in (0, 1].
    Share(f32),
    /// Every position whose next token is there to be foretold.
    Next,
    /// The sequence as a whole, written as position 0.
    Sequence,
}

/// How logits, embeddings and hidden states are rounded before they are stored (always in FLOAT columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Rounded to the nearest float16 value.
    Float16,
    /// As the teacher gave them.
    Float32,
}

/// The promise. Fields are private so that only a checked value exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedTargetSpec")]
pub struct TargetSpec {
    task: Task,
    vocabulary_size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    classes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_size: Option<u32>,
    top_k: u32,
    temperatures: Vec<f32>,
    positions: PositionRule,
    hidden_layers: Vec<u32>,
    hidden_size: u32,
    token_type_ids: bool,
    precision: Precision,
}

/// The same fields, before [`TargetSpec::try_from`] has looked at them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedTargetSpec {
    /// The kind of answer.
    pub task: Task,
    /// The teacher's vocabulary: what input ids are below, and the length of a language model's logits row.
    pub vocabulary_size: u32,
    /// Length of a classifier's logits row; none for the other tasks.
    #[serde(default)]
    pub classes: Option<u32>,
    /// What a sequence classifier's logits mean; none for the other tasks.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Width of a sentence embedding; none for the other tasks.
    #[serde(default)]
    pub embedding_size: Option<u32>,
    /// Ids stored per position: 1 to `vocabulary_size` for a language model, `classes` for a classifier, 0 for sentence embeddings.
    pub top_k: u32,
    /// Temperatures of `log_z`, in stored order; the first one scales `top_logits`; 1 is among them.
    pub temperatures: Vec<f32>,
    /// Which positions carry targets.
    pub positions: PositionRule,
    /// Stored hidden states, strictly ascending; 0 is the embedding output.
    pub hidden_layers: Vec<u32>,
    /// Width of a hidden state; 0 where `hidden_layers` is empty.
    pub hidden_size: u32,
    /// Whether records carry segment ids.
    pub token_type_ids: bool,
    /// The rounding of logits and hidden states.
    pub precision: Precision,
}

impl UncheckedTargetSpec {
    /// A task's targets with nothing but what they need: for a language model 64 ids (or all) at temperature 1, no hidden states, in float16.
    /// A classifier's `classes` and `problem` and an encoder's `embedding_size` are still to be set, with `top_k`.
    pub fn new(task: Task, vocabulary_size: u32) -> Self {
        Self {
            task,
            vocabulary_size,
            classes: None,
            problem: None,
            embedding_size: None,
            top_k: if task.is_language_model() { vocabulary_size.min(64) } else { 0 },
            temperatures: vec![1.0],
            positions: match task {
                Task::MaskedLm | Task::TokenClassification => PositionRule::Tokens,
                Task::CausalLm => PositionRule::Next,
                Task::SequenceClassification | Task::SentenceEmbedding => PositionRule::Sequence,
            },
            hidden_layers: Vec::new(),
            hidden_size: 0,
            token_type_ids: false,
            precision: Precision::Float16,
        }
    }

    /// What the task asks of the fields that not every task has.
    fn check_task(&self) -> Result<()> {
        let task = self.task;
        let expect = |field: &str, fits: bool, expected: String, found: String| {
            if fits { Ok(()) } else { Err(Error::invalid(field, format!("{expected} for {task}"), found)) }
        };
        let classifies = matches!(task, Task::SequenceClassification | Task::TokenClassification);
        let count = |some: Option<u32>| some.map_or("none".to_owned(), |count| count.to_string());
        let present = |wanted: bool| if wanted { "1 or more" } else { "none" }.to_owned();
        let fits = |wanted: bool, found: Option<u32>| found.map_or(!wanted, |found| wanted && found > 0);
        expect("classes", fits(classifies, self.classes), present(classifies), count(self.classes))?;
        let embeds = task == Task::SentenceEmbedding;
        expect("embedding_size", fits(embeds, self.embedding_size), present(embeds), count(self.embedding_size))?;
        let problem = task == Task::SequenceClassification;
        expect("problem", self.problem.is_some() == problem, present(problem), format!("{:?}", self.problem))?;
        let (least, most) = match (self.classes, task) {
            (Some(classes), _) => (classes, classes),
            (None, Task::SentenceEmbedding) => (0, 0),
            (None, _) => (1, self.vocabulary_size),
        };
        let range = if least == most { format!("{least}") } else { format!("{least} to the vocabulary's {most}") };
        expect("top_k", (least..=most).contains(&self.top_k), range, self.top_k.to_string())?;
        let position = match self.positions {
            PositionRule::Masked => task == Task::MaskedLm,
            PositionRule::Tokens => matches!(task, Task::MaskedLm | Task::TokenClassification),
            PositionRule::Next => task == Task::CausalLm,
            PositionRule::Sequence => task.is_of_sequences(),
            PositionRule::All | PositionRule::Share(_) => !task.is_of_sequences(),
        };
        expect("positions", position, "a rule that there is".to_owned(), format!("{:?}", self.positions))
    }
}

impl TryFrom<UncheckedTargetSpec> for TargetSpec {
    type Error = Error;

    fn try_from(spec: UncheckedTargetSpec) -> Result<Self> {
        if spec.vocabulary_size == 0 {
            return Err(Error::invalid("vocabulary_size", "at least 1", "0"));
        }
        spec.check_task()?;
        check_temperatures(&spec.temperatures)?;
        if let PositionRule::Share(share) = spec.positions
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::invalid("positions", "a share above 0 and at most 1", share.to_string()));
        }
        if !spec.hidden_layers.is_sorted_by(|a, b| a < b) {
            return Err(Error::invalid("hidden_layers", "strictly ascending layers", format!("{:?}", spec.hidden_layers)));
        }
        if spec.hidden_layers.is_empty() != (spec.hidden_size == 0) {
            let found = format!("{} with hidden_layers {:?}", spec.hidden_size, spec.hidden_layers);
            return Err(Error::invalid("hidden_size", "a width exactly where hidden layers are stored", found));
        }
        Ok(Self {
            task: spec.task,
            vocabulary_size: spec.vocabulary_size,
            classes: spec.classes,
            problem: spec.problem,
            embedding_size: spec.embedding_size,
            top_k: spec.top_k,
            temperatures: spec.temperatures,
            positions: spec.positions,
            hidden_layers: spec.hidden_layers,
            hidden_size: spec.hidden_size,
            token_type_ids: spec.token_type_ids,
            precision: spec.precision,
        })
    }
}

fn check_temperatures(temperatures: &[f32]) -> Result<()> {
    let found = || format!("{temperatures:?}");
    if temperatures.iter().any(|t| !t.is_finite() || *t <= 0.0) {
        return Err(Error::invalid("temperatures", "finite values above 0", found()));
    }
    let repeated = temperatures.iter().enumerate().any(|(i, t)| temperatures[..i].contains(t));
    if repeated || !temperatures.contains(&1.0) {
        return Err(Error::invalid("temperatures", "distinct values with 1 among them", found()));
    }
    Ok(())
}

impl TargetSpec {
    /// The kind of answer.
    pub fn task(&self) -> Task {
        self.task
    }
    /// What input ids are below.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size as usize
    }
    /// The length of a teacher's logits row, which labels and stored ids are below: the vocabulary of a language model, the classes of a
    /// classifier; 0 for sentence embeddings.
    pub fn classes(&self) -> usize {
        match self.task {
            Task::MaskedLm | Task::CausalLm => self.vocabulary_size as usize,
            _ => self.classes.unwrap_or(0) as usize,
        }
    }
    /// What a sequence classifier's logits mean; none for the other tasks.
    pub fn problem(&self) -> Option<Problem> {
        self.problem
    }
    /// Width of a sentence embedding; 0 for the other tasks.
    pub fn embedding_size(&self) -> usize {
        self.embedding_size.unwrap_or(0) as usize
    }
    /// Labels of a record of `length` tokens: one per token, one for a sequence that is of one class of several, or none.
    pub fn labels_of(&self, length: usize) -> usize {
        match (self.task, self.problem) {
            (Task::MaskedLm | Task::CausalLm | Task::TokenClassification, _) => length,
            (_, Some(Problem::SingleLabel)) => 1,
            _ => 0,
        }
    }
    /// Whether a record may have gold values that are no class: of regressions, of each class for itself, the likeness of a pair of sentences.
    pub fn has_label_values(&self) -> bool {
        self.task == Task::SentenceEmbedding || matches!(self.problem, Some(Problem::MultiLabel | Problem::Regression))
    }
    /// Ids stored per position; 0 for sentence embeddings.
    pub fn top_k(&self) -> usize {
        self.top_k as usize
    }
    /// Temperatures of `log_z`, in stored order.
    pub fn temperatures(&self) -> &[f32] {
        &self.temperatures
    }
    /// The temperature that divides `top_logits`: the first one.
    pub fn logits_temperature(&self) -> f32 {
        self.temperatures[0]
    }
    /// The column of `log_z` for `temperature`, if the cache holds it.
    pub fn temperature_index(&self, temperature: f32) -> Option<usize> {
        self.temperatures.iter().position(|t| *t == temperature)
    }
    /// Which positions carry targets.
    pub fn positions(&self) -> PositionRule {
        self.positions
    }
    /// Stored hidden states, ascending; 0 is the embedding output.
    pub fn hidden_layers(&self) -> &[u32] {
        &self.hidden_layers
    }
    /// Width of a hidden state; 0 where none is stored.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size as usize
    }
    /// Whether records carry segment ids.
    pub fn token_type_ids(&self) -> bool {
        self.token_type_ids
    }
    /// The rounding of logits and hidden states.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same promise without hidden states.
    pub fn without_hidden(&self) -> Self {
        Self { hidden_layers: Vec::new(), hidden_size: 0, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_asks_for_its_own_fields_and_no_others() {
        let of = |task| UncheckedTargetSpec::new(task, 100);
        let classes = |task| UncheckedTargetSpec { classes: Some(3), top_k: 3, ..of(task) };
        let sequence = UncheckedTargetSpec { problem: Some(Problem::SingleLabel), ..classes(Task::SequenceClassification) };
        let embedding = UncheckedTargetSpec { embedding_size: Some(8), ..of(Task::SentenceEmbedding) };
        for good in [of(Task::MaskedLm), of(Task::CausalLm), classes(Task::TokenClassification), sequence.clone(), embedding.clone()] {
            let spec = TargetSpec::try_from(good.clone()).unwrap();
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TargetSpec>(&text).unwrap(), spec, "{text}");
        }
        let bad = [
            (of(Task::SequenceClassification), "classes: expected 1 or more for sequence-classification, found none"),
            (classes(Task::SequenceClassification), "problem"),
            (classes(Task::MaskedLm), "classes: expected none for masked-lm, found 3"),
            (UncheckedTargetSpec { top_k: 2, ..sequence.clone() }, "top_k: expected 3 for"),
            (UncheckedTargetSpec { top_k: 101, ..of(Task::CausalLm) }, "top_k: expected 1 to the vocabulary's 100"),
            (UncheckedTargetSpec { positions: PositionRule::Tokens, ..sequence }, "positions"),
            (UncheckedTargetSpec { positions: PositionRule::Masked, ..of(Task::CausalLm) }, "positions"),
            (UncheckedTargetSpec { top_k: 1, ..embedding }, "top_k: expected 0"),
            (of(Task::SentenceEmbedding), "embedding_size"),
        ];
        for (spec, part) in bad {
            let message = TargetSpec::try_from(spec).unwrap_err().to_string();
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn a_promise_from_before_there_were_tasks_reads_back() {
        let text = r#"{"task":"masked-lm","vocabulary_size":591,"top_k":64,"temperatures":[2.0,1.0],"positions":"tokens","hidden_layers":[12],
            "hidden_size":256,"token_type_ids":true,"precision":"float16"}"#;
        let spec: TargetSpec = serde_json::from_str(text).unwrap();
        assert_eq!((spec.classes(), spec.labels_of(7), spec.embedding_size()), (591, 7, 0));
        assert_eq!(serde_json::to_string(&spec).unwrap(), text.replace("\n            ", ""));
    }

    #[test]
    fn tasks_have_names() {
        for task in Task::ALL {
            assert_eq!(task.to_string().parse(), Ok(task));
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
        assert!("ner".parse::<Task>().unwrap_err().contains("masked-lm, sequence-classification"));
    }
}
