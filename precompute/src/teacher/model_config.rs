//! What `config.json` says of a teacher, under the names that different model families use.

use logitcache::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The facts that are needed; each is absent where the file, or the key, is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelConfig {
    pub path: Option<PathBuf>,
    pub layers: Option<u32>,
    pub hidden_size: Option<u32>,
    pub vocabulary_size: Option<u32>,
    /// Tokens of a sequence at most.
    pub maximum_length: Option<u32>,
    /// The position number of the first token.
    pub first_position: u32,
}

/// Families that number positions from the padding id's successor on, as fairseq did.
const POSITIONS_AFTER_PADDING: [&str; 6] = ["camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"];

impl ModelConfig {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// It is no JSON object, or a key that is needed holds no whole number.
    pub(super) fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let fields: Map<String, Value> = serde_json::from_slice(&text).map_err(Error::library("parse", path))?;
        let number = |names: &[&str]| number(path, &fields, names);
        let model_type = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let first_position = match POSITIONS_AFTER_PADDING.contains(&model_type) {
            true => number(&["pad_token_id"])?.map_or(0, |id| id.saturating_add(1)),
            false => 0,
        };
        let positions = number(&["max_position_embeddings", "n_positions"])?;
        Ok(Self {
            path: Some(path.to_owned()),
            layers: number(&["num_hidden_layers", "n_layers", "n_layer"])?,
            hidden_size: number(&["hidden_size", "dim", "n_embd"])?,
            vocabulary_size: number(&["vocab_size"])?,
            maximum_length: positions.map(|positions| positions.saturating_sub(first_position)),
            first_position,
        })
    }
}

fn number(path: &Path, fields: &Map<String, Value>, names: &[&str]) -> Result<Option<u32>> {
    let present = names.iter().find_map(|name| fields.get(*name).map(|value| (*name, value)));
    match present {
        None | Some((_, Value::Null)) => Ok(None),
        Some((name, value)) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::data(path, name, "a whole number", value.to_string(), "use the config.json of the exported model")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ModelConfig::read(Some(file.path()))
    }

    #[test]
    fn families_name_the_same_things_differently() {
        let bert = read(
            r#"{"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 256, "vocab_size": 591, "max_position_embeddings": 512, "pad_token_id": 0}"#,
        );
        let bert = bert.unwrap();
        assert_eq!((bert.layers, bert.hidden_size, bert.vocabulary_size), (Some(12), Some(256), Some(591)));
        assert_eq!((bert.maximum_length, bert.first_position), (Some(512), 0));
        let distilbert = read(r#"{"model_type": "distilbert", "n_layers": 6, "dim": 768, "pad_token_id": 0}"#).unwrap();
        assert_eq!((distilbert.layers, distilbert.hidden_size, distilbert.vocabulary_size), (Some(6), Some(768), None));
        let roberta = read(r#"{"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}"#).unwrap();
        assert_eq!((roberta.maximum_length, roberta.first_position), (Some(512), 2));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = read(r#"{"num_hidden_layers": "twelve"}"#).unwrap_err().to_string();
        assert!(error.contains("num_hidden_layers") && error.contains("twelve"), "{error}");
        assert!(read("[]").is_err());
        assert_eq!(ModelConfig::read(None).unwrap(), ModelConfig::default());
    }
}
