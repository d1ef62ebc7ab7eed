//! The student's shape, under BERT's own names for the settings (Devlin et al. 2019), whatever family the student is of.
//!
//! Read from a teacher's or a student's `config.json` (either DistilBERT's key names or BERT's), with overrides; written as the
//! `config.json` that `transformers` builds the family's masked language model from.

use super::family::Family;
use crate::kernels::Activation;
use logitcache::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Added to a variance before its root is taken where nothing is said; DistilBERT has no setting for it.
pub const LAYER_NORM_EPSILON: f64 = 1e-12;

/// The width of an ALBERT's embeddings where neither the teacher nor a flag says it (Lan et al. 2020).
pub const ALBERT_EMBEDDING_SIZE: usize = 128;

/// The settings of a masked language model.
#[derive(Clone, Debug, PartialEq)]
pub struct StudentConfig {
    /// Whose names and wiring it has.
    pub family: Family,
    /// Rows of the word embeddings, and the length of a logits row.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Transformer blocks; those of an ALBERT share one set of parameters.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Width of the embedding tables and of what the decoder reads: `hidden_size` but for an ALBERT.
    pub embedding_size: usize,
    /// Rows of the position embeddings; [`longest_sequence`](Self::longest_sequence) tokens fit.
    pub max_position_embeddings: usize,
    /// Rows of the token-type embeddings: 0 for a DistilBERT, which has none, and at least 1 for the others.
    pub type_vocab_size: usize,
    /// What the feed-forward parts and the head apply (a RoBERTa's head always GELU).
    pub activation: Activation,
    /// Added to a variance before its root is taken; 1e-12 for a DistilBERT.
    pub layer_norm_eps: f64,
    /// Share of activations dropped in training, in [0, 1).
    pub dropout: f64,
    /// Share of attention probabilities dropped in training, in [0, 1).
    pub attention_dropout: f64,
    /// Standard deviation of a random initial weight.
    pub initializer_range: f64,
    /// The padding token, whose word embedding starts as zero; no row of a packed batch holds it. A RoBERTa's positions count from it.
    pub pad_token_id: Option<u32>,
}

impl Default for StudentConfig {
    /// The published DistilBERT (base, uncased).
    fn default() -> Self {
        Self {
            family: Family::DistilBert,
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 6,
            num_attention_heads: 12,
            intermediate_size: 3072,
            embedding_size: 768,
            max_position_embeddings: 512,
            type_vocab_size: 0,
            activation: Activation::Gelu,
            layer_norm_eps: LAYER_NORM_EPSILON,
            dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            pad_token_id: Some(0),
        }
    }
}

/// What a user changes of the teacher's shape; `None` keeps the teacher's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The student's family; DistilBERT where nothing is said, whatever the teacher's.
    pub family: Family,
    /// Transformer blocks. `None`: half of the teacher's, rounded up.
    pub num_hidden_layers: Option<usize>,
    /// Width of a hidden state.
    pub hidden_size: Option<usize>,
    /// Attention heads.
    pub num_attention_heads: Option<usize>,
    /// Width inside the feed-forward part.
    pub intermediate_size: Option<usize>,
    /// Width of an ALBERT's embeddings. `None`: an ALBERT teacher's, else 128 or the hidden size, whichever is less.
    pub embedding_size: Option<usize>,
    /// The activation.
    pub activation: Option<Activation>,
    /// Share of activations dropped.
    pub dropout: Option<f64>,
    /// Share of attention probabilities dropped.
    pub attention_dropout: Option<f64>,
}

impl StudentConfig {
    /// The student of the teacher whose `config.json` this is, with half of its layers, then the overrides. It takes sequences as long as
    /// the teacher's.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or malformed key, an activation that is not among [`Activation::ALL`] and not overridden, or a
    /// shape that [`check`](Self::check) refuses.
    pub fn from_teacher(path: &Path, overrides: &Overrides) -> Result<Self> {
        let keys = Keys::open(path)?;
        let teacher = keys.config(Family::of_model_type(&keys.model_type()?).unwrap_or(Family::Bert), overrides.activation)?;
        let family = overrides.family;
        let hidden_size = overrides.hidden_size.unwrap_or(teacher.hidden_size);
        let teachers_embedding = (teacher.family == Family::Albert).then_some(teacher.embedding_size);
        let default_embedding = match family {
            Family::Albert => teachers_embedding.unwrap_or(ALBERT_EMBEDDING_SIZE.min(hidden_size)),
            _ => hidden_size,
        };
        let config = Self {
            family,
            num_hidden_layers: overrides.num_hidden_layers.unwrap_or(teacher.num_hidden_layers.div_ceil(2)),
            hidden_size,
            num_attention_heads: overrides.num_attention_heads.unwrap_or(teacher.num_attention_heads),
            intermediate_size: overrides.intermediate_size.unwrap_or(teacher.intermediate_size),
            embedding_size: overrides.embedding_size.unwrap_or(default_embedding),
            max_position_embeddings: teacher.longest_sequence() + family.first_position(teacher.pad_token_id),
            type_vocab_size: if family.has_token_types() { teacher.type_vocab_size.max(1) } else { 0 },
            layer_norm_eps: if family == Family::DistilBert { LAYER_NORM_EPSILON } else { teacher.layer_norm_eps },
            dropout: overrides.dropout.unwrap_or(teacher.dropout),
            attention_dropout: overrides.attention_dropout.unwrap_or(teacher.attention_dropout),
            ..teacher
        };
        config.check()?;
        Ok(config)
    }

    /// A student's own `config.json`, of the family that its `model_type` names.
    ///
    /// # Errors
    /// As [`from_teacher`](Self::from_teacher); a `model_type` that is no family's.
    pub fn read(path: &Path) -> Result<Self> {
        let keys = Keys::open(path)?;
        let refuse =
            |field: &str, expected: &str, found: &str| Error::data(path, field, expected, found, "give a directory written by train");
        let model_type = keys.model_type()?;
        let family = model_type.parse().map_err(|expected: String| refuse("model_type", &expected, &model_type))?;
        let config = keys.config(family, None)?;
        config.check().map_err(|error| match error {
            Error::Invalid { field, expected, found } => refuse(&field, &expected, &found),
            other => other,
        })?;
        Ok(config)
    }

    /// Whether a student can be built in this shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that cannot be: a count of 0, heads that do not divide the width, a dropout outside [0, 1), an
    /// initializer range that is not positive, a padding token outside the vocabulary.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("embedding_size", self.embedding_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, count) in counts {
            // Token ids and row numbers are 32 bits wide, and so must every product of two counts fit into 64.
            if count == 0 || count > u32::MAX as usize {
                return Err(Error::invalid(field, "1 to 4294967295", count.to_string()));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", self.hidden_size);
            return Err(Error::invalid("num_attention_heads", expected, self.num_attention_heads.to_string()));
        }
        self.check_family()?;
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

    /// What one family asks and another does not.
    fn check_family(&self) -> Result<()> {
        let family = self.family;
        if family != Family::Albert && self.embedding_size != self.hidden_size {
            let expected = format!("hidden_size = {} for the family {family}", self.hidden_size);
            return Err(Error::invalid("embedding_size", expected, self.embedding_size.to_string()));
        }
        if family.has_token_types() != (self.type_vocab_size > 0) || self.type_vocab_size > u32::MAX as usize {
            let expected = if family.has_token_types() { "1 to 4294967295" } else { "0 for a DistilBERT" };
            return Err(Error::invalid("type_vocab_size", expected, self.type_vocab_size.to_string()));
        }
        let epsilon = self.layer_norm_eps;
        if !(epsilon.is_finite() && epsilon > 0.0) || (family == Family::DistilBert && epsilon != LAYER_NORM_EPSILON) {
            let expected = if family == Family::DistilBert { "1e-12 for a DistilBERT" } else { "a finite value above 0" };
            return Err(Error::invalid("layer_norm_eps", expected, epsilon.to_string()));
        }
        if family == Family::Roberta && self.pad_token_id.is_none() {
            return Err(Error::invalid("pad_token_id", "an id, from which a RoBERTa's positions count", "null"));
        }
        if self.max_position_embeddings <= family.first_position(self.pad_token_id) {
            let expected = format!("more than the {} rows that no token takes", family.first_position(self.pad_token_id));
            return Err(Error::invalid("max_position_embeddings", expected, self.max_position_embeddings.to_string()));
        }
        Ok(())
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Layers that have parameters of their own: one for an ALBERT, all for the others.
    pub fn layers_with_parameters(&self) -> usize {
        if self.family == Family::Albert { 1 } else { self.num_hidden_layers }
    }

    /// The longest sequence that has a position for each token.
    pub fn longest_sequence(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.family.first_position(self.pad_token_id))
    }

    /// What the head applies: a RoBERTa's GELU is not a setting.
    pub fn head_activation(&self) -> Activation {
        if self.family == Family::Roberta { Activation::Gelu } else { self.activation }
    }

    /// The text of a `config.json` that `transformers` reads as the family's masked language model. Keys in alphabetical order.
    pub fn to_json(&self) -> String {
        let mut value = json!({
            "architectures": [self.family.architecture()],
            "dtype": "float32",
            "initializer_range": self.initializer_range,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family.name(),
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": true,
            "vocab_size": self.vocab_size,
        });
        let own = match self.family {
            Family::DistilBert => json!({
                "activation": self.activation.name(),
                "attention_dropout": self.attention_dropout,
                "dim": self.hidden_size,
                "dropout": self.dropout,
                "hidden_dim": self.intermediate_size,
                "n_heads": self.num_attention_heads,
                "n_layers": self.num_hidden_layers,
                "sinusoidal_pos_embds": false,
                "tie_weights_": true,
            }),
            _ => json!({
                "attention_probs_dropout_prob": self.attention_dropout,
                "hidden_act": self.activation.name(),
                "hidden_dropout_prob": self.dropout,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "layer_norm_eps": self.layer_norm_eps,
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": self.num_hidden_layers,
                "type_vocab_size": self.type_vocab_size,
            }),
        };
        let alberts = json!({"embedding_size": self.embedding_size, "inner_group_num": 1, "num_hidden_groups": 1});
        let more = [Some(own), (self.family == Family::Albert).then_some(alberts)];
        if let Value::Object(keys) = &mut value {
            keys.extend(more.into_iter().flatten().filter_map(|more| more.as_object().cloned()).flatten());
        }
        format!("{value:#}\n")
    }
}

/// A configuration file's keys, each looked up under DistilBERT's name, then BERT's.
struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

const REMEDY: &str = "give the config.json of a BERT, DistilBERT, RoBERTa or ALBERT model";

impl<'a> Keys<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(Self { path, map: serde_json::from_str(&text).map_err(Error::library("parse", path))? })
    }

    fn model_type(&self) -> Result<String> {
        // Without the key, DistilBERT's own names tell.
        let default = if self.map.contains_key("n_layers") { Family::DistilBert } else { Family::Bert };
        Ok(self.text(&["model_type"], default.name())?.1)
    }

    /// The model as a family's; `activation` replaces the file's.
    fn config(&self, family: Family, activation: Option<Activation>) -> Result<StudentConfig> {
        let default = if family == Family::Albert { Activation::GeluNew } else { Activation::Gelu };
        let activation = match activation {
            Some(activation) => activation,
            None => {
                let (key, name) = self.text(&["activation", "hidden_act"], default.name())?;
                let remedy = "choose the student's with --activation: copied layers then begin with another function than the teacher's";
                name.parse().map_err(|expected: String| Error::data(self.path, key, expected, format!("\"{name}\""), remedy))?
            }
        };
        let hidden_size = self.count(&["dim", "hidden_size"])?;
        let dropout = if family == Family::Albert { 0.0 } else { 0.1 };
        Ok(StudentConfig {
            family,
            vocab_size: self.count(&["vocab_size"])?,
            hidden_size,
            num_hidden_layers: self.count(&["n_layers", "num_hidden_layers"])?,
            num_attention_heads: self.count(&["n_heads", "num_attention_heads"])?,
            intermediate_size: self.count(&["hidden_dim", "intermediate_size"])?,
            embedding_size: if family == Family::Albert { self.count(&["embedding_size"])? } else { hidden_size },
            max_position_embeddings: self.count(&["max_position_embeddings"])?,
            type_vocab_size: match (family.has_token_types(), self.map.contains_key("type_vocab_size")) {
                (false, _) => 0,
                (true, false) => 2,
                (true, true) => self.count(&["type_vocab_size"])?,
            },
            activation,
            layer_norm_eps: if family == Family::DistilBert {
                LAYER_NORM_EPSILON
            } else {
                self.real(&["layer_norm_eps"], LAYER_NORM_EPSILON)?
            },
            dropout: self.real(&["dropout", "hidden_dropout_prob"], dropout)?,
            attention_dropout: self.real(&["attention_dropout", "attention_probs_dropout_prob"], dropout)?,
            initializer_range: self.real(&["initializer_range"], 0.02)?,
            pad_token_id: self.token("pad_token_id", if family == Family::Roberta { 1 } else { 0 })?,
        })
    }

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

    fn token(&self, name: &str, default: u32) -> Result<Option<u32>> {
        let value = match self.map.get(name) {
            // An explicit null means that there is none.
            None => return Ok(Some(default)),
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
        assert_eq!(
            (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size),
            (591, 256, 6, 4, 512)
        );
        assert_eq!((config.dropout, config.attention_dropout, config.initializer_range, config.pad_token_id), (0.2, 0.1, 0.02, Some(3)));
        assert_eq!(config.head_size(), 64);
    }

    #[test]
    fn overrides_win() {
        let overrides = Overrides {
            num_hidden_layers: Some(3),
            hidden_size: Some(96),
            num_attention_heads: Some(6),
            intermediate_size: Some(100),
            dropout: Some(0.0),
            attention_dropout: Some(0.3),
            ..Overrides::default()
        };
        let config = teacher(TEACHER, &overrides).unwrap();
        assert_eq!((config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size), (3, 96, 6, 100));
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
        let message = teacher(&TEACHER.replace("\"gelu\"", "\"gelu_10\""), &Overrides::default()).unwrap_err().to_string();
        assert!(message.contains("hidden_act: expected one of gelu, gelu_new, relu, silu, found \"gelu_10\""), "{message}");
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
        let message = teacher(TEACHER, &Overrides { num_attention_heads: Some(5), ..Default::default() }).unwrap_err().to_string();
        assert!(message.contains("num_attention_heads: expected a divisor of hidden_size = 256, found 5"), "{message}");
    }
}
