//! What `config.json` says of a teacher, under the names that different model families use.

use logitcache::error::{Error, Result};
use logitcache::target::Problem;
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
    /// The family, such as `bert`.
    pub model_type: Option<String>,
    /// The class of the model in `transformers`, such as `BertForMaskedLM`: the first of `architectures`.
    pub architecture: Option<String>,
    /// A classifier's classes by id.
    pub class_names: Option<Vec<String>>,
    /// What a sequence classifier's logits mean.
    pub problem: Option<Problem>,
}

/// Families that number positions from the padding id's successor on, as fairseq did.
const POSITIONS_AFTER_PADDING: [&str; 6] = ["camembert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"];

const OF_THE_EXPORT: &str = "use the config.json of the exported model";

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
        let architectures = fields.get("architectures").and_then(Value::as_array);
        Ok(Self {
            model_type: Some(model_type.to_owned()).filter(|family| !family.is_empty()),
            architecture: architectures.and_then(|list| Some(list.first()?.as_str()?.to_owned())),
            class_names: class_names(path, &fields)?,
            problem: problem(path, &fields)?,
            path: Some(path.to_owned()),
            layers: number(&["num_hidden_layers", "n_layers", "n_layer"])?,
            hidden_size: number(&["hidden_size", "dim", "n_embd"])?,
            vocabulary_size: number(&["vocab_size"])?,
            maximum_length: positions.map(|positions| positions.saturating_sub(first_position)),
            first_position,
        })
    }
}

/// The classes by id: `id2label`, whose keys must be 0, 1, 2, ...; where there is only `num_labels`, so many with the names that `transformers` gives.
fn class_names(path: &Path, fields: &Map<String, Value>) -> Result<Option<Vec<String>>> {
    let count = number(path, fields, &["num_labels", "_num_labels"])?;
    let Some(Value::Object(labels)) = fields.get("id2label") else {
        return Ok(count.map(|count| default_class_names(count as usize)));
    };
    let refuse = |found: String| {
        let expected = format!("a name for each of the ids 0 to {}", labels.len().saturating_sub(1));
        Err(Error::data(path, "id2label", expected, found, OF_THE_EXPORT))
    };
    let mut names = vec![None; labels.len()];
    for (id, name) in labels {
        let place = id.parse::<usize>().ok().and_then(|id| names.get_mut(id));
        let Some(place) = place else { return refuse(format!("the id {id}")) };
        *place = Some(name.as_str().map_or_else(|| name.to_string(), str::to_owned));
    }
    let Some(names) = names.into_iter().collect::<Option<Vec<String>>>() else { return refuse("an id twice".to_owned()) };
    match count {
        Some(count) if count as usize != names.len() => refuse(format!("num_labels {count} and {} names", names.len())),
        _ => Ok(Some(names)),
    }
}

/// The names that `transformers` gives to classes without any.
pub(super) fn default_class_names(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("LABEL_{id}")).collect()
}

fn problem(path: &Path, fields: &Map<String, Value>) -> Result<Option<Problem>> {
    match fields.get("problem_type") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name == "single_label_classification" => Ok(Some(Problem::SingleLabel)),
        Some(Value::String(name)) if name == "multi_label_classification" => Ok(Some(Problem::MultiLabel)),
        Some(Value::String(name)) if name == "regression" => Ok(Some(Problem::Regression)),
        Some(other) => {
            let expected = "single_label_classification, multi_label_classification or regression";
            Err(Error::data(path, "problem_type", expected, other.to_string(), OF_THE_EXPORT))
        }
    }
}

fn number(path: &Path, fields: &Map<String, Value>, names: &[&str]) -> Result<Option<u32>> {
    let present = names.iter().find_map(|name| fields.get(*name).map(|value| (*name, value)));
    match present {
        None | Some((_, Value::Null)) => Ok(None),
        Some((name, value)) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::data(path, name, "a whole number", value.to_string(), OF_THE_EXPORT)),
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
    fn classes_come_by_id_whatever_their_order() {
        let config = read(
            r#"{"architectures": ["BertForSequenceClassification"], "id2label": {"2": "c", "0": "a", "1": 7}, "problem_type": "regression"}"#,
        );
        let config = config.unwrap();
        assert_eq!(config.class_names.unwrap(), ["a", "7", "c"]);
        assert_eq!((config.problem, config.architecture.as_deref()), (Some(Problem::Regression), Some("BertForSequenceClassification")));
        assert_eq!(read(r#"{"num_labels": 2}"#).unwrap().class_names.unwrap(), ["LABEL_0", "LABEL_1"]);
        for (text, part) in [
            (r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label: expected a name for each of the ids 0 to 1, found the id 2"),
            (r#"{"id2label": {"0": "a", "00": "b"}}"#, "an id twice"),
            (r#"{"id2label": {"0": "a"}, "num_labels": 3}"#, "num_labels 3 and 1 names"),
            (r#"{"problem_type": "ranking"}"#, "problem_type"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = read(r#"{"num_hidden_layers": "twelve"}"#).unwrap_err().to_string();
        assert!(error.contains("num_hidden_layers") && error.contains("twelve"), "{error}");
        assert!(read("[]").is_err());
        assert_eq!(ModelConfig::read(None).unwrap(), ModelConfig::default());
    }
}
