//! The configuration of a run with every default resolved, as TOML that `--config` reads.

use super::task::pooling_name;
use super::{Config, EvaluationSource, Initialisation};
use crate::batcher::Duration;
use crate::cli::Arguments;
use crate::student::family::Family;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use serde_json::{Map, Value};

/// Its name in the student's directory.
pub const RESOLVED_FILE: &str = "run.toml";

/// What is asked of one start of the program, not of the run.
const NO_SETTINGS: [&str; 2] = ["config", "resume"];

const HEADING: &str = "# The configuration of this run, every default resolved. `train --config run.toml` trains it again;\n\
    # flags that are typed beside it win. Paths are relative to the folder that the program was started in.\n";

impl Config {
    /// The resolved configuration as TOML: one line for each flag that has a value.
    pub fn resolved(&self) -> &str {
        &self.resolved
    }

    /// Publishes [`resolved`](Self::resolved) as [`RESOLVED_FILE`] in the student's directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_resolved(&self) -> Result<()> {
        write_bytes_atomically(&self.out.join(RESOLVED_FILE), self.resolved.as_bytes())
    }

    /// `arguments` with what this configuration made of them.
    pub(super) fn resolve(&self, arguments: &Arguments) -> Result<String> {
        let mut arguments = arguments.clone();
        let Arguments { data, student: shape, objective, optimisation, machine, .. } = &mut arguments;
        data.eval_fraction = match &self.evaluation {
            EvaluationSource::Nothing => Some(0.0),
            EvaluationSource::HeldOut(share) => Some(*share),
            EvaluationSource::Cache(_) => None,
        };
        shape.family = Some(self.student.family.to_string());
        shape.pooling = (self.student.task == Task::SentenceEmbedding).then(|| pooling_name(self.student.pooling).to_owned());
        shape.hidden_size = Some(self.student.hidden_size);
        shape.heads = Some(self.student.num_attention_heads);
        shape.key_value_heads = self.student.decoder.as_ref().map(|decoder| decoder.key_value_heads);
        // A Llama has no other dropout than its attention's, and everyone else one for both.
        shape.dropout = Some(self.student.attention_dropout);
        shape.feed_forward = Some(self.student.intermediate_size);
        shape.embedding_size = (self.student.family == Family::Albert).then_some(self.student.embedding_size);
        shape.activation = Some(self.student.activation.to_string());
        if let Initialisation::Teacher { first, .. } = &self.initialisation {
            shape.init_layers = first.layers.clone();
            shape.init_widths = Some(first.widths.to_string());
        }
        objective.temperature = Some(self.temperature);
        objective.loss = Some(self.objective.to_string());
        // --hidden-map stays as it was typed: a default written out would refuse a --loss beside the file that has no use for it.
        if let Duration::Epochs(epochs) = self.duration {
            optimisation.epochs = Some(epochs);
        }
        machine.threads = Some(self.threads);
        text(&arguments)
    }
}

/// A line for each flag that has a value. JSON's numbers, strings and lists are TOML's too, but for the one character escaped here.
fn text(arguments: &Arguments) -> Result<String> {
    let flags = serde_json::to_value(arguments).and_then(serde_json::from_value::<Map<String, Value>>);
    let flags = flags.map_err(|error| Error::usage("--out", "paths in UTF-8", error.to_string(), "rename what the flags name"))?;
    let given = flags.iter().filter(|(name, value)| !value.is_null() && !NO_SETTINGS.contains(&name.as_str()));
    let lines = given.map(|(name, value)| format!("{name} = {}\n", value.to_string().replace('\u{7f}', "\\u007F")));
    Ok(HEADING.to_owned() + &lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Request};
    use crate::small_cache::{SmallCache, arguments};

    /// What the resolved configuration means when it is read again, with `extra` typed.
    fn again(config: &Config, extra: &[&str]) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.resolved()).unwrap();
        let typed = ["train", "--config", file.path().to_str().unwrap()].into_iter().chain(extra.iter().copied()).map(Into::into);
        let Ok(Request::Train(arguments)) = cli::parse(typed) else { panic!("{}", config.resolved()) };
        Config::check(&arguments).unwrap()
    }

    #[test]
    fn the_resolved_configuration_says_everything_and_means_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache::default().write(directory.path(), "cache");
        let out = directory.path().join("a \"student\"\u{7f}");
        let extra: [&[&str]; 3] = [&[], &["--steps", "7", "--family", "albert"], &["--seed", "18446744073709551615"]];
        for extra in extra {
            let config = Config::check(&arguments(&cache, &out, extra)).unwrap();
            let second = again(&config, &[]);
            assert_eq!(second.settings, config.settings);
            assert_eq!((second.resolved(), &second.out, second.threads), (config.resolved(), &config.out, config.threads));
        }
        let config = Config::check(&arguments(&cache, &out, &[])).unwrap();
        for line in
            ["threads = 2\n", "hidden-size = 16\n", "epochs = 3\n", "temperature = 2.0\n", "eval-fraction = 0.02\n", "quiet = true\n"]
        {
            assert!(config.resolved().contains(line), "{line} is not in\n{}", config.resolved());
        }
        assert_eq!(again(&config, &["--steps", "4"]).settings.get("steps").map(String::as_str), Some("4"));
    }
}
