//! What an export is for: from its outputs, its config.json and its sentence-transformers files to a task and the output that is read.
//!
//! The graph has the last word, since config.json names the checkpoint, which may have been exported without its head. Where the graph leaves a
//! choice (logits over a vocabulary look like those over classes), the architecture in config.json decides, then what little else there is.

use super::model_config::{ModelConfig, default_class_names};
use super::sentence_files::{SentenceFiles, Unknown};
use crate::task::TeacherTask;
use logitcache::error::{Error, Result};
use logitcache::onnx::Model;
use logitcache::target::{Pooling, Problem, Task};
use std::path::Path;

/// The output that is read as logits, as every exporter names it.
pub(super) const LOGITS_OUTPUT: &str = "logits";
/// The outputs that a sentence encoder is read from, the first that is there: its vectors, or the states of its tokens.
const SENTENCE_OUTPUTS: [&str; 3] = [SENTENCE_VECTOR, "last_hidden_state", "token_embeddings"];
/// The output that is a sentence encoder's vector as it is.
pub(super) const SENTENCE_VECTOR: &str = "sentence_embedding";
/// Families whose models foretell the next token.
const DECODERS: [&str; 12] = ["bloom", "falcon", "gemma", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "opt", "phi", "qwen2"];

/// What a model's class in `transformers` is for.
enum Architecture {
    /// A head whose answers can be cached.
    Head(Task),
    /// No head.
    Bare,
    /// Another head.
    Other,
    /// Nothing is said.
    Unknown,
}

impl Architecture {
    fn of(name: Option<&str>) -> Self {
        let Some(name) = name else { return Self::Unknown };
        let heads = [
            ("ForMaskedLM", Task::MaskedLm),
            ("WithLMHeadModel", Task::MaskedLm),
            ("ForSequenceClassification", Task::SequenceClassification),
            ("ForTokenClassification", Task::TokenClassification),
            ("ForCausalLM", Task::CausalLm),
            ("LMHeadModel", Task::CausalLm),
        ];
        match heads.into_iter().find(|(ending, _)| name.ends_with(ending)) {
            Some((_, task)) => Self::Head(task),
            None if name.contains("For") => Self::Other,
            None => Self::Bare,
        }
    }
}

/// Everything there is to recognise an export by.
pub(super) struct Export<'a> {
    pub model: &'a Model,
    pub config: &'a ModelConfig,
    pub sentence: Option<&'a SentenceFiles>,
    /// `--task`.
    pub task: Option<Task>,
    /// `--pooling`.
    pub pooling: Option<Pooling>,
}

impl Export<'_> {
    /// The task, and the name of the output that is read.
    ///
    /// # Errors
    /// [`Error::Usage`] for a `--task` that the outputs cannot serve or config.json contradicts, and a `--pooling` without use; [`Error::Data`] for
    /// an export of no task, and for files that contradict each other.
    pub(super) fn recognise(&self) -> Result<(TeacherTask, String)> {
        let task = match self.task {
            Some(task) => self.check_typed(task)?,
            None => self.task()?,
        };
        if task != Task::SentenceEmbedding {
            if let Some(pooling) = self.pooling {
                let found = format!("{pooling:?} for {task}").to_lowercase();
                return Err(Error::usage("--pooling", "a sentence encoder", found, "leave it out"));
            }
            let class_names = self.class_names(task)?;
            let problem = if task == Task::SequenceClassification { Some(self.problem(class_names.len())?) } else { None };
            return Ok((TeacherTask { problem, class_names, ..TeacherTask::of(task) }, LOGITS_OUTPUT.to_owned()));
        }
        let output = self.sentence_output().unwrap_or(SENTENCE_OUTPUTS[0]);
        let (pooling, normalized) = self.pooling(output)?;
        Ok((TeacherTask { pooling, normalized, ..TeacherTask::of(task) }, output.to_owned()))
    }

    fn task(&self) -> Result<Task> {
        let architecture = Architecture::of(self.config.architecture.as_deref());
        if !self.has(LOGITS_OUTPUT) {
            let known = self.sentence.is_some() || self.has(SENTENCE_VECTOR);
            let headless = known || !matches!(architecture, Architecture::Head(_) | Architecture::Other);
            return match self.sentence_output() {
                Some(_) if headless => Ok(Task::SentenceEmbedding),
                _ => Err(self.without_logits()),
            };
        }
        match architecture {
            Architecture::Head(task) if self.serves(task) => Ok(task),
            Architecture::Head(task) => {
                let found = format!("{}, whose task is {task}", self.architecture());
                let expected = format!("a model whose outputs are {}", self.outputs());
                Err(self.of_config("architectures", expected, found, "use the config.json of this export, or say with --task what it is"))
            }
            Architecture::Other => {
                let expected = format!("a model for one of {}", Task::ALL.map(Task::name).join(", "));
                Err(self.of_config("architectures", expected, self.architecture(), "use a teacher of one of these tasks"))
            }
            Architecture::Bare | Architecture::Unknown => Ok(self.guess()),
        }
    }

    /// The task of logits about which nothing is said.
    fn guess(&self) -> Task {
        let (rank, width) = (self.rank(LOGITS_OUTPUT), self.width());
        let vocabulary = self.config.vocabulary_size.map(u64::from);
        let classes = self.config.class_names.as_ref().map(|names| names.len() as u64);
        let family = self.config.model_type.as_deref().unwrap_or_default();
        let cached = self.model.graph().inputs.iter().any(|input| input.name.starts_with("past_key_values"));
        match rank {
            Some(2) => Task::SequenceClassification,
            _ if width.is_some() && width == classes && width != vocabulary => Task::TokenClassification,
            _ if cached || DECODERS.contains(&family) => Task::CausalLm,
            _ => Task::MaskedLm,
        }
    }

    fn check_typed(&self, typed: Task) -> Result<Task> {
        if !self.serves(typed) {
            let wanted = match typed {
                Task::SentenceEmbedding => format!("an output {}, which {typed} is read from", SENTENCE_OUTPUTS.join(" or ")),
                Task::SequenceClassification => format!("{LOGITS_OUTPUT} [batch, classes], which {typed} is read from"),
                _ => format!("{LOGITS_OUTPUT} [batch, sequence, width], which {typed} is read from"),
            };
            let found = format!("{} with the outputs {}", self.model.path().display(), self.outputs());
            return Err(Error::usage("--task", wanted, found, "leave --task out, or export the model with the head of that task"));
        }
        match Architecture::of(self.config.architecture.as_deref()) {
            Architecture::Head(task) if task != typed && typed != Task::SentenceEmbedding && self.serves(task) => {
                let expected = format!("{task}, the task of {} in config.json", self.architecture());
                Err(Error::usage("--task", expected, typed.name(), "leave --task out, or use the config.json of this export"))
            }
            _ => Ok(typed),
        }
    }

    /// Whether the outputs could be those of `task`, as far as their shapes are declared.
    fn serves(&self, task: Task) -> bool {
        let rank = self.rank(LOGITS_OUTPUT);
        match task {
            Task::SentenceEmbedding => self.sentence_output().is_some(),
            Task::SequenceClassification => self.has(LOGITS_OUTPUT) && rank.is_none_or(|rank| rank == 2),
            _ => self.has(LOGITS_OUTPUT) && rank.is_none_or(|rank| rank == 3),
        }
    }

    fn class_names(&self, task: Task) -> Result<Vec<String>> {
        if task.is_language_model() {
            return Ok(Vec::new());
        }
        match (&self.config.class_names, self.width()) {
            (Some(names), Some(width)) if names.len() as u64 != width => {
                let expected = format!("{width} classes, the width of the output {LOGITS_OUTPUT}");
                Err(self.of_config("id2label", expected, format!("{} names", names.len()), "use the config.json of this export"))
            }
            (Some(names), _) => Ok(names.clone()),
            (None, Some(width)) => Ok(default_class_names(width as usize)),
            // Two classes without names are what transformers leaves out of the file.
            (None, None) if self.config.path.is_some() => Ok(default_class_names(2)),
            (None, None) => {
                let remedy = "put the teacher's config.json with id2label beside the model";
                Err(Error::data(self.model.path(), "output logits", "a known number of classes", "a width that is open", remedy))
            }
        }
    }

    /// As config.json has it, else as `transformers` takes it: one class is a number, several are one label.
    fn problem(&self, classes: usize) -> Result<Problem> {
        match self.config.problem {
            Some(Problem::SingleLabel) if classes == 1 => {
                let remedy = "write regression or multi_label_classification there, as the teacher was trained";
                Err(self.of_config(
                    "problem_type",
                    "a problem that one logit can express".to_owned(),
                    "single_label_classification".to_owned(),
                    remedy,
                ))
            }
            Some(problem) => Ok(problem),
            None if classes == 1 => Ok(Problem::Regression),
            None => Ok(Problem::SingleLabel),
        }
    }

    fn pooling(&self, output: &str) -> Result<(Option<Pooling>, bool)> {
        let files = self.sentence;
        let stored = files.and_then(|files| files.pooling);
        let normalized = files.is_some_and(|files| files.normalized);
        if output == SENTENCE_VECTOR {
            return match self.pooling {
                Some(_) => {
                    Err(Error::usage("--pooling", format!("a graph without the output {output}"), "one that pools itself", "leave it out"))
                }
                None => Ok((stored, normalized)),
            };
        }
        if let Some(Unknown { path, field, expected, found }) = files.and_then(|files| files.unknown.as_ref()) {
            let remedy = format!("export the whole sentence encoder, with the output {SENTENCE_VECTOR}");
            return Err(Error::data(path, *field, *expected, found, remedy));
        }
        if let (Some(typed), Some(stored)) = (self.pooling, stored)
            && typed != stored
        {
            let [typed, stored] = [typed, stored].map(|pooling| format!("{pooling:?}").to_lowercase());
            return Err(Error::usage("--pooling", format!("{stored}, as the teacher's modules.json has it"), typed, "leave it out"));
        }
        Ok((stored.or(self.pooling), normalized))
    }

    fn without_logits(&self) -> Error {
        if self.has("start_logits") {
            let expected = format!("those of one of {}", Task::ALL.map(Task::name).join(", "));
            return Error::data(
                self.model.path(),
                "outputs",
                expected,
                "those of question answering",
                "use a teacher of one of these tasks",
            );
        }
        let (expected, remedy) = match self.sentence_output() {
            Some(output) => (
                format!("one named {LOGITS_OUTPUT}, as {} has", self.architecture()),
                format!(
                    "export the model with its head, for example `optimum-cli export onnx --task fill-mask`, or say --task {} to read sentences from {output}",
                    Task::SentenceEmbedding
                ),
            ),
            None => (
                format!("one named {LOGITS_OUTPUT}, or for sentence encoders {}", SENTENCE_OUTPUTS.join(" or ")),
                "export the model with `optimum-cli export onnx`, which names outputs so".to_owned(),
            ),
        };
        Error::data(self.model.path(), "outputs", expected, self.outputs(), remedy)
    }

    fn of_config(&self, field: &str, expected: String, found: String, remedy: &str) -> Error {
        let path = self.config.path.as_deref().unwrap_or(Path::new("config.json"));
        Error::data(path, field, expected, found, remedy)
    }

    fn architecture(&self) -> String {
        self.config.architecture.clone().unwrap_or_else(|| "a model of no named architecture".to_owned())
    }

    fn has(&self, output: &str) -> bool {
        self.model.graph().outputs.iter().any(|found| found.name == output)
    }

    fn shape(&self, output: &str) -> Option<Vec<Option<u64>>> {
        self.model.graph().outputs.iter().find(|found| found.name == output)?.shape()
    }

    fn rank(&self, output: &str) -> Option<usize> {
        self.shape(output).map(|shape| shape.len())
    }

    /// Length of a row of logits, where the graph says.
    fn width(&self) -> Option<u64> {
        self.shape(LOGITS_OUTPUT)?.last().copied().flatten()
    }

    fn sentence_output(&self) -> Option<&'static str> {
        SENTENCE_OUTPUTS.into_iter().find(|name| self.has(name))
    }

    /// The outputs with their shapes, for messages.
    fn outputs(&self) -> String {
        let describe = |name: &str| match self.shape(name) {
            None => name.to_owned(),
            Some(shape) => {
                let sizes: Vec<String> = shape.iter().map(|size| size.map_or("?".to_owned(), |size| size.to_string())).collect();
                format!("{name} [{}]", sizes.join(", "))
            }
        };
        let outputs = self.model.graph().outputs.iter();
        outputs.filter(|output| !output.name.starts_with("present")).map(|output| describe(&output.name)).collect::<Vec<_>>().join(", ")
    }
}
