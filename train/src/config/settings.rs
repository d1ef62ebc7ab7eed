//! What determines the student, by flag name: two runs with the same settings are the same run.

use super::task::pooling_name;
use super::{Config, EvaluationSource, Initialisation};
use crate::batcher::Duration;
use crate::kernels::Precision;
use crate::loss::hidden_map::HiddenMap;
use crate::output::content;
use crate::student::FirstValues;
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use std::collections::BTreeMap;

impl Config {
    /// A refusal of other settings, with the path of what has another content now.
    pub(crate) fn name_files(&self, error: Error) -> Error {
        let Error::Usage { flag, expected, mut found, remedy } = error else { return error };
        let evaluation = if let EvaluationSource::Cache(cache) = &self.evaluation { Some(cache.directory()) } else { None };
        let first = if let Initialisation::Teacher { path, .. } = &self.initialisation { Some(path.as_path()) } else { None };
        let files = [("cache", Some(self.cache.directory())), ("eval-cache", evaluation), ("init-from", first)];
        for (name, path) in files {
            if let (Some(path), Some(fingerprint)) = (path, self.settings.get(name)) {
                let content = content(fingerprint);
                found = found.replace(&format!("now {content}"), &format!("now {} with {content}", path.display()));
            }
        }
        Error::Usage { flag, expected, found, remedy }
    }

    /// Threads do not belong to the settings: they change rounding at most. Nor does what only says where to stop and what to keep.
    pub(super) fn resolve_settings(&self) -> Result<BTreeMap<String, String>> {
        let (mut settings, student) = (BTreeMap::new(), &self.student);
        let mut set = |name: &str, value: &dyn ToString| settings.insert(name.to_owned(), value.to_string());
        set("cache", &self.cache.manifest().fingerprints.run);
        set("teacher", &self.cache.manifest().fingerprints.teacher);
        match &self.evaluation {
            EvaluationSource::Nothing => set("eval-fraction", &0.0),
            EvaluationSource::HeldOut(share) => {
                set("held-out-by", &"document");
                set("eval-fraction", &share)
            }
            EvaluationSource::Cache(cache) => set("eval-cache", &cache.manifest().fingerprints.run),
        };
        if student.task != Task::MaskedLm {
            set("task", &student.task);
        }
        if student.task == Task::SentenceEmbedding {
            set("pooling", &pooling_name(student.pooling));
        }
        set("family", &student.family);
        set("activation", &student.activation);
        set("embedding-size", &student.embedding_size);
        set("layers", &student.num_hidden_layers);
        set("hidden-size", &student.hidden_size);
        set("heads", &student.num_attention_heads);
        set("feed-forward", &student.intermediate_size);
        if let Some(decoder) = &student.decoder {
            set("key-value-heads", &decoder.key_value_heads);
        }
        // A Llama has no other than its attention's, and everyone else one for both.
        set("dropout", &student.attention_dropout);
        match &self.initialisation {
            Initialisation::Random => set("init-from", &"random"),
            Initialisation::Teacher { path, first } => {
                set("init-widths", &first.widths);
                set("init-layers", &first.layers.iter().flatten().map(usize::to_string).collect::<Vec<_>>().join(","));
                set("init-from", &FirstValues::open(path, student, first)?.digest(student)?)
            }
        };
        set("temperature", &self.temperature);
        set("top-k", &self.targets.k());
        set("loss", &self.objective);
        if !self.hidden_pairs.is_empty() {
            set("hidden-map", &HiddenMap::Pairs(self.hidden_pairs.clone()));
        }
        if self.full_vocabulary_every > 1 {
            set("full-vocabulary-every", &self.full_vocabulary_every);
        }
        match self.duration {
            Duration::Epochs(epochs) => set("epochs", &epochs),
            Duration::Steps(steps) => set("steps", &steps),
        };
        set("batch-tokens", &self.batch_tokens);
        set("accumulate", &self.accumulate);
        // Runs from before there was a choice have no such setting, and are of single precision.
        if self.precision != Precision::Single {
            set("dtype", &self.precision);
        }
        set("learning-rate", &self.learning_rate);
        set("warmup", &self.warmup);
        set("weight-decay", &self.weight_decay);
        set("clip", &self.clip);
        set("seed", &self.seed);
        set("log-every", &self.log_every);
        set("eval-every", &self.eval_every.map_or("epoch".to_owned(), |steps| steps.to_string()));
        Ok(settings)
    }
}
