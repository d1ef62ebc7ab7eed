//! What the flags mean for the task at hand, once the teacher has said which it is: defaults, refusals, the promise of the cache.

use super::Config;
use crate::task::TeacherTask;
use logitcache::error::{Error, Result};
use logitcache::target::{PositionRule, Problem, TargetSpec, Task, UncheckedTargetSpec};
use std::path::PathBuf;

/// Ids stored per position of a language model, unless --top-k says otherwise.
pub const DEFAULT_TOP_K: u32 = 64;

/// What only the opened teacher and tokenizer can tell.
#[derive(Clone, Debug)]
pub struct TeacherFacts {
    /// What it answers.
    pub task: TeacherTask,
    /// What input ids are below.
    pub vocabulary_size: usize,
    /// Length of a row of logits, or of the vector of a sentence.
    pub width: usize,
    /// Positions the model can take, where its config.json says so.
    pub maximum_length: Option<usize>,
    /// Whether the graph takes segment ids.
    pub token_type_ids: bool,
    /// Exposed layers, ascending.
    pub hidden_layers: Vec<u32>,
    /// Width of a hidden state; 0 where none is exposed.
    pub hidden_size: usize,
    /// Ids the tokenizer can give: its largest id + 1.
    pub tokenizer_size: usize,
    /// `tokenizer.json`, for the message.
    pub tokenizer: PathBuf,
}

impl Config {
    /// Refuses the flags that were typed and mean nothing for the task.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the first of them.
    pub fn check_task(&self, task: &TeacherTask) -> Result<()> {
        let refuse = |flag: &str, expected: &str| {
            let found = format!("a teacher of {}", task.task);
            Err(Error::usage(flag, expected, found, "leave the flag out, or use a teacher of another task"))
        };
        if let Some(flag) = self.masking_flags.first().filter(|_| task.task != Task::MaskedLm) {
            return refuse(flag, "a teacher of masked-lm, since no other task has masks");
        }
        if self.top_k.is_some() && !task.task.is_language_model() {
            return refuse("--top-k", "a language model: the classes of the others are all stored");
        }
        if self.temperatures.is_some() && (task.task == Task::SentenceEmbedding || task.problem == Some(Problem::Regression)) {
            return refuse("--temperature", "a teacher whose answers are logits");
        }
        self.position_rule(task).map(|_| ())
    }

    /// The temperatures in stored order: as typed, else by the task.
    pub fn temperatures_for(&self, task: &TeacherTask) -> Vec<f32> {
        let has_logits = task.task != Task::SentenceEmbedding && task.problem != Some(Problem::Regression);
        let default = if has_logits { &[2.0, 1.0][..] } else { &[1.0] };
        self.temperatures.clone().unwrap_or_else(|| default.to_vec())
    }

    /// Which positions are asked: as typed, else by the task.
    ///
    /// # Errors
    /// [`Error::Usage`] for a rule that the task does not have.
    pub fn position_rule(&self, task: &TeacherTask) -> Result<PositionRule> {
        let (default, rules) = match task.task {
            Task::MaskedLm => (PositionRule::Tokens, "`tokens`, `masked`, `all`, or a share above 0 and at most 1"),
            Task::TokenClassification => (PositionRule::Tokens, "`tokens`, `all`, or a share above 0 and at most 1"),
            Task::CausalLm => (PositionRule::Next, "`next`, `all`, or a share above 0 and at most 1"),
            Task::SequenceClassification | Task::SentenceEmbedding => {
                (PositionRule::Sequence, "no rule, since the answer is for the whole")
            }
        };
        let Some(typed) = self.positions else { return Ok(default) };
        let has = match typed {
            PositionRule::All | PositionRule::Share(_) => !task.task.is_of_sequences(),
            PositionRule::Tokens => default == PositionRule::Tokens,
            PositionRule::Masked => task.task == Task::MaskedLm,
            PositionRule::Next | PositionRule::Sequence => typed == default,
        };
        if !has {
            let found = format!("`{}` for {}", format!("{typed:?}").to_lowercase(), task.task);
            return Err(Error::usage("--positions", rules, found, "type one of them, or leave the flag out"));
        }
        match typed {
            PositionRule::Share(share) if task.task == Task::MaskedLm && f64::from(share) < f64::from(self.mask_probability as f32) => {
                let probability = self.mask_probability;
                let expected =
                    format!("a share of at least {probability}, the --mask-probability, since masked positions are always asked");
                Err(Error::usage("--positions", expected, share.to_string(), "type --positions masked, or a larger share"))
            }
            rule => Ok(rule),
        }
    }

    /// The promise of the cache, once the teacher is known. `top_k` is cut to the vocabulary.
    ///
    /// # Errors
    /// [`Error::Usage`] where `--max-length` is more than the teacher takes, and those of [`Config::check_task`]; [`Error::Data`] where the
    /// tokenizer gives ids that the teacher does not know (the other way round is padding of the vocabulary, and fine).
    pub fn target_spec(&self, facts: &TeacherFacts) -> Result<TargetSpec> {
        let task = &facts.task;
        self.check_task(task)?;
        if facts.tokenizer_size > facts.vocabulary_size {
            let remedy = "give the tokenizer that belongs to this teacher with --tokenizer";
            let of_what = if task.task.is_language_model() { "the teacher's logits" } else { "the teacher's vocabulary" };
            let expected = format!("at most {} ids, {of_what}", facts.vocabulary_size);
            return Err(Error::data(&facts.tokenizer, "vocabulary", expected, format!("{} ids", facts.tokenizer_size), remedy));
        }
        if let Some(maximum) = facts.maximum_length.filter(|maximum| self.windows.max_length > *maximum) {
            let expected = format!("at most {maximum}, the positions of the teacher's config.json");
            return Err(Error::usage(
                "--max-length",
                expected,
                self.windows.max_length.to_string(),
                format!("type --max-length {maximum}"),
            ));
        }
        let (vocabulary_size, width) = (facts.vocabulary_size as u32, facts.width as u32);
        let classifies = matches!(task.task, Task::SequenceClassification | Task::TokenClassification);
        let top_k = match task.task {
            Task::MaskedLm | Task::CausalLm => self.top_k.unwrap_or(DEFAULT_TOP_K).min(vocabulary_size),
            Task::SequenceClassification | Task::TokenClassification => width,
            Task::SentenceEmbedding => 0,
        };
        TargetSpec::try_from(UncheckedTargetSpec {
            classes: classifies.then_some(width),
            problem: task.problem,
            embedding_size: (task.task == Task::SentenceEmbedding).then_some(width),
            top_k,
            temperatures: self.temperatures_for(task),
            positions: self.position_rule(task)?,
            hidden_layers: facts.hidden_layers.clone(),
            hidden_size: facts.hidden_size as u32,
            token_type_ids: facts.token_type_ids,
            precision: self.precision,
            ..UncheckedTargetSpec::new(task.task, vocabulary_size)
        })
    }
}
