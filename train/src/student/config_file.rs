//! A model's `config.json`: read under either DistilBERT's key names or BERT's, and written for `transformers`.

mod task;

use super::config::{LAYER_NORM_EPSILON, StudentConfig};
use super::decoder::settings;
use super::family::Family;
use crate::kernels::Activation;
use logitcache::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

impl StudentConfig {
    /// The text of a `config.json` that `transformers` reads as the family's model for the task. Keys in alphabetical order.
    pub fn to_json(&self) -> String {
        let mut value = json!({
            "architectures": [self.family.architecture(self.task)],
            "dtype": "float32",
            "initializer_range": self.initializer_range,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family.name(),
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": true,
            "vocab_size": self.vocab_size,
        });
        let own = match self.family {
            _ if self.decoder.is_some() => self.decoder.as_ref().map_or(Value::Null, |decoder| self.decoder_json(decoder)),
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
        let more = [Some(own), (self.family == Family::Albert).then_some(alberts), self.task_keys()];
        if let Value::Object(keys) = &mut value {
            keys.extend(more.into_iter().flatten().filter_map(|more| more.as_object().cloned()).flatten());
        }
        format!("{value:#}\n")
    }
}

/// A configuration file's keys, each looked up under DistilBERT's name, then BERT's.
pub(super) struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

const REMEDY: &str = "give the config.json of a BERT, DistilBERT, RoBERTa, ALBERT, Llama or GPT-2 model";

impl<'a> Keys<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(Self { path, map: serde_json::from_str(&text).map_err(Error::library("parse", path))? })
    }

    pub(super) fn model_type(&self) -> Result<String> {
        // Without the key, DistilBERT's own names tell.
        let default = if self.map.contains_key("n_layers") { Family::DistilBert } else { Family::Bert };
        Ok(self.text(&["model_type"], default.name())?.1)
    }

    /// The model as a family's; `activation` replaces the file's.
    pub(super) fn config(&self, family: Family, activation: Option<Activation>) -> Result<StudentConfig> {
        if family.is_decoder() {
            return settings::read(self, family, activation);
        }
        let default = if family == Family::Albert { Activation::GeluNew } else { Activation::Gelu };
        let activation = match activation {
            Some(activation) => activation,
            None => self.activation(&["activation", "hidden_act"], default)?,
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
            ..StudentConfig::default()
        })
    }

    pub(super) fn activation(&self, names: &[&str], default: Activation) -> Result<Activation> {
        let (key, name) = self.text(names, default.name())?;
        let remedy = "choose the student's with --activation: copied layers then begin with another function than the teacher's";
        name.parse().map_err(|expected: String| Error::data(self.path, key, expected, format!("\"{name}\""), remedy))
    }

    /// Whether a key is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(name, "true or false", value)),
        }
    }

    /// Ids of a token that may be one, several or none.
    pub(super) fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let ids = match self.map.get(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(one) => vec![one],
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.into_iter().map(|value| id(value).ok_or_else(|| self.refuse(name, "token ids", value))).collect()
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(value) => Err(self.refuse(name, "an object", value)),
        }
    }

    /// What a key says is not computed here.
    pub(super) fn refuse_setting(&self, name: &str, expected: &str) -> Error {
        self.refuse(name, expected, self.map.get(name).unwrap_or(&Value::Null))
    }

    fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &Value)> {
        names.iter().find_map(|name| self.map.get(*name).map(|value| (*name, value)))
    }

    fn refuse(&self, name: &str, expected: &str, value: &Value) -> Error {
        Error::data(self.path, name, expected, value.to_string(), REMEDY)
    }

    pub(super) fn count(&self, names: &[&str]) -> Result<usize> {
        let expected = "a whole number above 0";
        let (name, value) = self.find(names).ok_or_else(|| Error::data(self.path, names.join(" or "), expected, "no such key", REMEDY))?;
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0);
        count.ok_or_else(|| self.refuse(name, expected, value))
    }

    pub(super) fn real(&self, names: &[&str], default: f64) -> Result<f64> {
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
