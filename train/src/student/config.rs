//! The student's shape: DistilBERT's own settings (Sanh et al. 2019), under DistilBERT's own names.
//!
//! Read from a teacher's `config.json` (BERT's key names) or from a student's (DistilBERT's), with overrides; written as the `config.json`
//! that `transformers` builds a `DistilBertForMaskedLM` from.

use logitcache::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Added to a variance before its root is taken: DistilBERT has no setting for it.
pub const LAYER_NORM_EPSILON: f64 = 1e-12;

/// The one activation the feed-forward part and the head are built with: GELU by the error function, not its tanh approximation.
pub const ACTIVATION: &str = "gelu";

/// The settings of a DistilBERT masked language model.
#[derive(Clone, Debug, PartialEq)]
pub struct StudentConfig {
    /// Rows of the word embeddings, and the length of a logits row.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Attention heads; divides `dim`.
    pub n_heads: usize,
    /// Width inside the feed-forward part.
    pub hidden_dim: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Share of activations dropped in training, in [0, 1).
    pub dropout: f64,
    /// Share of attention probabilities dropped in training, in [0, 1).
    pub attention_dropout: f64,
    /// Standard deviation of a random initial weight.
    pub initializer_range: f64,
    /// The padding token, whose word embedding starts as zero; no row of a packed batch holds it.
    pub pad_token_id: Option<u32>,
}

/// What a user changes of the teacher's shape; `None` keeps the teacher's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Transformer blocks. `None`: half of the teacher's, rounded up.
    pub n_layers: Option<usize>,
    /// Width of a hidden state.
    pub dim: Option<usize>,
    /// Attention heads.
    pub n_heads: Option<usize>,
    /// Width inside the feed-forward part.
    pub hidden_dim: Option<usize>,
    /// Share of activations dropped.
    pub dropout: Option<f64>,
    /// Share of attention probabilities dropped.
    pub attention_dropout: Option<f64>,
}

impl StudentConfig {
    /// The student of the teacher whose `config.json` this is, with half of its layers, then the overrides.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or malformed key, an activation other than GELU, or a shape that [`check`](Self::check) refuses.
    pub fn from_teacher(path: &Path, overrides: &Overrides) -> Result<Self> {
        let mut config = Self::read_keys(path)?;
        config.n_layers = overrides.n_layers.unwrap_or(config.n_layers.div_ceil(2));
        config.dim = overrides.dim.unwrap_or(config.dim);
        config.n_heads = overrides.n_heads.unwrap_or(config.n_heads);
        config.hidden_dim = overrides.hidden_dim.unwrap_or(config.hidden_dim);
        config.dropout = overrides.dropout.unwrap_or(config.dropout);
        config.attention_dropout = overrides.attention_dropout.unwrap_or(config.attention_dropout);
        config.check()?;
        Ok(config)
    }

    /// A student's own `config.json`.
    ///
    /// # Errors
    /// As [`from_teacher`](Self::from_teacher).
    pub fn read(path: &Path) -> Result<Self> {
        let config = Self::read_keys(path)?;
        config.check().map_err(|error| match error {
            Error::Invalid { field, expected, found } => Error::data(path, field, expected, found, "give a directory written by train"),
            other => other,
        })?;
        Ok(config)
    }

    fn read_keys(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let keys = Keys { path, map: serde_json::from_str(&text).map_err(Error::library("parse", path))? };
        let (activation_key, activation) = keys.text(&["activation", "hidden_act"], ACTIVATION)?;
        if activation != ACTIVATION {
            let remedy = "choose a teacher that uses it: another activation would change what the copied layers compute";
            return Err(Error::data(path, activation_key, format!("\"{ACTIVATION}\""), format!("\"{activation}\""), remedy));
        }
        Ok(Self {
            vocab_size: keys.count(&["vocab_size"])?,
            dim: keys.count(&["dim", "hidden_size"])?,
            n_layers: keys.count(&["n_layers", "num_hidden_layers"])?,
            n_heads: keys.count(&["n_heads", "num_attention_heads"])?,
            hidden_dim: keys.count(&["hidden_dim", "intermediate_size"])?,
            max_position_embeddings: keys.count(&["max_position_embeddings"])?,
            dropout: keys.real(&["dropout", "hidden_dropout_prob"], 0.1)?,
            attention_dropout: keys.real(&["attention_dropout", "attention_probs_dropout_prob"], 0.1)?,
            initializer_range: keys.real(&["initializer_range"], 0.02)?,
            pad_token_id: keys.token("pad_token_id")?,
        })
    }

    /// Whether a student can be built in this shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that cannot be: a count of 0, heads that do not divide the width, a dropout outside [0, 1), an
    /// initializer range that is not positive, a padding token outside the vocabulary.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("vocab_size", self.vocab_size),
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("hidden_dim", self.hidden_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, count) in counts {
            // Token ids and row numbers are 32 bits wide, and so must every product of two counts fit into 64.
            if count == 0 || count > u32::MAX as usize {
                return Err(Error::invalid(field, "1 to 4294967295", count.to_string()));
            }
        }
        if !self.dim.is_multiple_of(self.n_heads) {
            return Err(Error::invalid("n_heads", format!("a divisor of dim = {}", self.dim), self.n_heads.to_string()));
        }
        for (field, share) in [("dropout", self.dropout), ("attention_dropout", self.attention_dropout)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::invalid(field, "a share of at least 0 and below 1", share.to_string()));
            }
        }
        if !(self.initializer_range.is_finite() && self.initializer_range > 0.0) {
            return Err(Error::invalid("initializer_range", "a finite value above 0", self.initializer_range.to_string()));
        }
        match self.pad_token_id {
            Some(id) if id as usize >= self.vocab_size => {
                Err(Error::invalid("pad_token_id", format!("an id below vocab_size = {}", self.vocab_size), id.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.dim / self.n_heads
    }

    /// The text of a `config.json` that `transformers` reads as a `DistilBertForMaskedLM`. Keys in alphabetical order.
    pub fn to_json(&self) -> String {
        let value = json!({
            "activation": ACTIVATION,
            "architectures": ["DistilBertForMaskedLM"],
            "attention_dropout": self.attention_dropout,
            "dim": self.dim,
            "dropout": self.dropout,
            "dtype": "float32",
            "hidden_dim": self.hidden_dim,
            "initializer_range": self.initializer_range,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "distilbert",
            "n_heads": self.n_heads,
            "n_layers": self.n_layers,
            "pad_token_id": self.pad_token_id,
            "sinusoidal_pos_embds": false,
            "tie_weights_": true,
            "tie_word_embeddings": true,
            "vocab_size": self.vocab_size,
        });
        format!("{value:#}\n")
    }
}

/// A configuration file's keys, each looked up under DistilBERT's name, then BERT's.
struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

const REMEDY: &str = "give the config.json of a BERT or DistilBERT model";

impl Keys<'_> {
    fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &Value)> {
        names.iter().find_map(|name| self.map.get(*name).map(|value| (*name, value)))
    }

    fn refuse(&self, name: &str, expected: &str, value: &Value) -> Error {
        Error::data(self.path, name, expected, value.to_string(), REMEDY)
    }

    fn count(&self, names: &[&str]) -> Result<usize> {
        let expected = "a whole number above 0";
        let (name, value) = self.find(names).ok_or_else(|| Error::data(self.path, names.join(" or "), expected, "no such key", REMEDY))?;
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
        count.ok_or_else(|| self.refuse(name, expected, value))
    }

    fn real(&self, names: &[&str], default: f64) -> Result<f64> {
        let Some((name, value)) = self.find(names) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.refuse(name, "a number", value))
    }

    fn text<'n>(&self, names: &[&'n str], default: &str) -> Result<(&'n str, String)> {
        let Some((name, value)) = self.find(names) else { return Ok((names[0], default.to_owned())) };
        value.as_str().map(|text| (name, text.to_owned())).ok_or_else(|| self.refuse(name, "a text", value))
    }

    fn token(&self, name: &str) -> Result<Option<u32>> {
        let value = match self.map.get(name) {
            // Both families count from 0 where nothing is said; an explicit null means that there is none.
            None => return Ok(Some(0)),
            Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Some).ok_or_else(|| self.refuse(name, "a token id or null", value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEACHER: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "vocab_size": 591, "hidden_size": 256, "num_hidden_layers": 12,
        "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 512, "hidden_dropout_prob": 0.2, "pad_token_id": 3}"#;

    fn teacher(text: &str, overrides: &Overrides) -> Result<StudentConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        StudentConfig::from_teacher(&path, overrides)
    }

    #[test]
    fn a_teacher_gives_its_shape_and_half_its_layers() {
        let config = teacher(TEACHER, &Overrides::default()).unwrap();
        assert_eq!((config.vocab_size, config.dim, config.n_layers, config.n_heads, config.hidden_dim), (591, 256, 6, 4, 512));
        assert_eq!((config.dropout, config.attention_dropout, config.initializer_range, config.pad_token_id), (0.2, 0.1, 0.02, Some(3)));
        assert_eq!(config.head_size(), 64);
    }

    #[test]
    fn overrides_win() {
        let overrides = Overrides {
            n_layers: Some(3),
            dim: Some(96),
            n_heads: Some(6),
            hidden_dim: Some(100),
            dropout: Some(0.0),
            attention_dropout: Some(0.3),
        };
        let config = teacher(TEACHER, &overrides).unwrap();
        assert_eq!((config.n_layers, config.dim, config.n_heads, config.hidden_dim), (3, 96, 6, 100));
        assert_eq!((config.dropout, config.attention_dropout), (0.0, 0.3));
    }

    #[test]
    fn a_written_configuration_reads_back() {
        let config = teacher(TEACHER, &Overrides { dropout: Some(0.0), ..Default::default() }).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for config in [StudentConfig { pad_token_id: None, ..config.clone() }, config] {
            let path = directory.path().join("config.json");
            std::fs::write(&path, config.to_json()).unwrap();
            assert_eq!(StudentConfig::read(&path).unwrap(), config);
        }
    }

    #[test]
    fn another_activation_is_refused_by_name() {
        let message = teacher(&TEACHER.replace("\"gelu\"", "\"gelu_new\""), &Overrides::default()).unwrap_err().to_string();
        assert!(message.contains("hidden_act: expected \"gelu\", found \"gelu_new\""), "{message}");
    }

    #[test]
    fn keys_that_are_missing_or_of_another_kind_are_named() {
        let message = |from: &str, to: &str| teacher(&TEACHER.replace(from, to), &Overrides::default()).unwrap_err().to_string();
        assert!(message("\"vocab_size\": 591,", "").contains("vocab_size: expected a whole number above 0, found no such key"));
        assert!(message("\"hidden_size\": 256", "\"hidden_size\": \"wide\"").contains("hidden_size: expected a whole number above 0"));
        assert!(message("\"pad_token_id\": 3", "\"pad_token_id\": 591").contains("pad_token_id: expected an id below vocab_size = 591"));
        assert!(message("\"hidden_dropout_prob\": 0.2", "\"hidden_dropout_prob\": 1").contains("dropout: expected a share"));
    }

    #[test]
    fn heads_must_divide_the_width() {
        let message = teacher(TEACHER, &Overrides { n_heads: Some(5), ..Default::default() }).unwrap_err().to_string();
        assert!(message.contains("n_heads: expected a divisor of dim = 256, found 5"), "{message}");
    }
}
