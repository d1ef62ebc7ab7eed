//! The keys of a `config.json` that say what a model answers: its class in `transformers`, its classes and what their logits mean.

use super::Keys;
use crate::student::config::StudentConfig;
use crate::student::family::{Family, class_suffix};
use crate::student::sentence_files;
use logitcache::error::{Error, Result};
use logitcache::target::{Problem, Task};
use serde_json::{Map, Value, json};
use std::path::Path;

const REMEDY: &str = "give a directory written by train";

fn problem_type(problem: Problem) -> &'static str {
    match problem {
        Problem::SingleLabel => "single_label_classification",
        Problem::MultiLabel => "multi_label_classification",
        Problem::Regression => "regression",
    }
}

impl StudentConfig {
    /// The keys of a classifier; none for the other tasks. The dropout before its last map is the student's own everywhere.
    pub(super) fn task_keys(&self) -> Option<Value> {
        if self.classes == 0 {
            return None;
        }
        let names = || self.class_names.iter().enumerate();
        let mut keys = Map::new();
        keys.insert("id2label".to_owned(), names().map(|(id, name)| (id.to_string(), json!(name))).collect::<Map<_, _>>().into());
        keys.insert("label2id".to_owned(), names().map(|(id, name)| (name.clone(), json!(id))).collect::<Map<_, _>>().into());
        if let Some(problem) = self.problem {
            keys.insert("problem_type".to_owned(), json!(problem_type(problem)));
        }
        match self.family {
            Family::DistilBert => keys.insert("seq_classif_dropout".to_owned(), json!(self.dropout)),
            Family::Bert | Family::Roberta => keys.insert("classifier_dropout".to_owned(), json!(self.dropout)),
            Family::Albert => keys.insert("classifier_dropout_prob".to_owned(), json!(self.dropout)),
            Family::Llama | Family::Gpt2 => None,
        };
        Some(keys.into())
    }
}

impl Keys<'_> {
    /// Reads what a student answers into `config`.
    pub(in crate::student) fn read_task(&self, config: &mut StudentConfig) -> Result<()> {
        // A decoder is a causal language model, whatever its class is called.
        if config.decoder.is_some() {
            return Ok(());
        }
        config.task = self.task()?;
        match config.task {
            Task::SequenceClassification | Task::TokenClassification => {
                config.class_names = self.class_names(None)?;
                config.classes = config.class_names.len();
            }
            Task::SentenceEmbedding => sentence_files::read(self.path.parent().unwrap_or(Path::new(".")), config)?,
            Task::MaskedLm | Task::CausalLm => {}
        }
        if config.task == Task::SequenceClassification {
            config.problem = Some(self.problem()?);
        }
        Ok(())
    }

    /// The task of the class in `transformers`; without the key, that of a masked language model.
    fn task(&self) -> Result<Task> {
        let Some(value) = self.map.get("architectures") else { return Ok(Task::MaskedLm) };
        let class = value.get(0).and_then(Value::as_str).unwrap_or_default();
        let task = Task::ALL.into_iter().find(|task| class.ends_with(class_suffix(*task)));
        task.ok_or_else(|| {
            let expected = format!("a class that ends with one of {}", Task::ALL.map(class_suffix).join(", "));
            Error::data(self.path, "architectures", expected, value.to_string(), REMEDY)
        })
    }

    fn problem(&self) -> Result<Problem> {
        let (_, name) = self.text(&["problem_type"], problem_type(Problem::SingleLabel))?;
        let all = [Problem::SingleLabel, Problem::MultiLabel, Problem::Regression];
        all.into_iter().find(|problem| problem_type(*problem) == name).ok_or_else(|| {
            let expected = format!("one of {}", all.map(problem_type).join(", "));
            Error::data(self.path, "problem_type", expected, name, REMEDY)
        })
    }

    /// By id, the names of the classes: so many where `classes` says it, else all there are, which without a list are two.
    pub(in crate::student) fn class_names(&self, classes: Option<usize>) -> Result<Vec<String>> {
        let refuse = |found: String| {
            let expected = match classes {
                Some(classes) => format!("a name for each of the {classes} classes, by its id"),
                None => "a name for each class, by its id".to_owned(),
            };
            Error::data(self.path, "id2label", expected, found, "give the config.json that belongs to the model")
        };
        let names = match (self.map.get("id2label"), classes) {
            (None | Some(Value::Null), classes) => return Ok((0..classes.unwrap_or(2)).map(|id| format!("LABEL_{id}")).collect()),
            (Some(Value::Object(names)), _) if !names.is_empty() && classes.is_none_or(|classes| names.len() == classes) => names,
            (found, _) => return Err(refuse(found.map_or("no such key".to_owned(), Value::to_string))),
        };
        let name = |id: usize| names.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
        (0..names.len()).map(|id| name(id).ok_or_else(|| refuse(format!("none for id {id}")))).collect()
    }
}
