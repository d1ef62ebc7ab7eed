//! The files of a sentence encoder's directory that sentence-transformers reads beside `config.json` and `model.safetensors`.
//!
//! | file | content |
//! | --- | --- |
//! | `modules.json` | the modules in order: transformer, pooling, the projection and the scaling where there are any |
//! | `sentence_bert_config.json` | the longest text in tokens |
//! | `config_sentence_transformers.json` | how two vectors are compared |
//! | `1_Pooling/config.json` | the pooling |
//! | `2_Dense/config.json`, `2_Dense/model.safetensors` | the projection; the folder `2_Normalize` or `3_Normalize` stays empty |

use super::config::StudentConfig;
use super::names::PROJECTION_FOLDER;
use logitcache::error::{Error, Result};
use logitcache::target::Pooling;
use serde_json::{Value, json};
use std::path::Path;

/// The file that lists the modules.
pub const MODULES_FILE: &str = "modules.json";

/// The file with the longest text.
pub const LENGTH_FILE: &str = "sentence_bert_config.json";

/// The file that says how vectors are compared.
pub const COMPARISON_FILE: &str = "config_sentence_transformers.json";

const POOLING_CONFIG: &str = "1_Pooling/config.json";

/// The keys of a pooling module, and which pooling each one is.
const POOLINGS: [(&str, Pooling); 3] =
    [("pooling_mode_cls_token", Pooling::Cls), ("pooling_mode_mean_tokens", Pooling::Mean), ("pooling_mode_max_tokens", Pooling::Max)];

fn module(index: usize, path: &str, kind: &str) -> Value {
    json!({"idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")})
}

/// The text files by their paths in the student's directory. `max_seq_length` tokens of a text are read.
pub fn texts(config: &StudentConfig, max_seq_length: usize) -> Vec<(String, String)> {
    let mut modules = vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
    let mut pooling = json!({
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_mean_sqrt_len_tokens": false,
        "pooling_mode_weightedmean_tokens": false,
        "pooling_mode_lasttoken": false,
        "include_prompt": true,
    });
    for (key, kind) in POOLINGS {
        pooling[key] = json!(config.pooling == kind);
    }
    let comparison = json!({"default_prompt_name": null, "prompts": {}, "similarity_fn_name": "cosine"});
    let mut texts = vec![
        (POOLING_CONFIG.to_owned(), pooling),
        (LENGTH_FILE.to_owned(), json!({"max_seq_length": max_seq_length, "do_lower_case": false})),
        (COMPARISON_FILE.to_owned(), comparison),
    ];
    if config.embedding_output > 0 {
        modules.push(module(2, PROJECTION_FOLDER, "Dense"));
        let dense = json!({
            "in_features": config.hidden_size,
            "out_features": config.embedding_output,
            "bias": true,
            "activation_function": "torch.nn.modules.linear.Identity",
        });
        texts.push((format!("{PROJECTION_FOLDER}/config.json"), dense));
    }
    if config.normalized {
        let index = modules.len();
        modules.push(module(index, &format!("{index}_Normalize"), "Normalize"));
    }
    texts.push((MODULES_FILE.to_owned(), Value::Array(modules)));
    texts.into_iter().map(|(name, value)| (name, format!("{value:#}\n"))).collect()
}

/// Reads how the student in `directory` makes its vector into `config`.
///
/// # Errors
/// A file that is missing or is not as [`texts`] gives it.
pub(super) fn read(directory: &Path, config: &mut StudentConfig) -> Result<()> {
    let modules = directory.join(MODULES_FILE);
    let listed = json_file(&modules)?;
    let kinds: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|module| module["type"].as_str()).collect();
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.rsplit('.').next().unwrap_or_default()).collect();
    let rest = kinds.strip_prefix(&["Transformer", "Pooling"]).unwrap_or(&["none of both"]);
    (config.embedding_output, config.normalized) = match rest {
        [] => (0, false),
        ["Normalize"] => (0, true),
        ["Dense"] => (projected(directory)?, false),
        ["Dense", "Normalize"] => (projected(directory)?, true),
        _ => {
            let expected = "Transformer and Pooling, then Dense, Normalize, both or none";
            return Err(Error::data(modules, "modules", expected, kinds.join(", "), REMEDY));
        }
    };
    let path = directory.join(POOLING_CONFIG);
    let pooling = json_file(&path)?;
    let found: Vec<Pooling> = POOLINGS.into_iter().filter(|(key, _)| pooling[*key] == json!(true)).map(|(_, pooling)| pooling).collect();
    let [one] = found[..] else {
        let expected = format!("one of {}", POOLINGS.map(|(key, _)| key).join(", "));
        return Err(Error::data(path, "pooling", expected, format!("{found:?}"), REMEDY));
    };
    config.pooling = one;
    Ok(())
}

const REMEDY: &str = "give a directory written by train";

fn json_file(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(Error::library("parse", path))
}

fn projected(directory: &Path) -> Result<usize> {
    let path = directory.join(PROJECTION_FOLDER).join("config.json");
    let value = &json_file(&path)?["out_features"];
    let width = value.as_u64().and_then(|width| usize::try_from(width).ok()).filter(|width| *width > 0);
    width.ok_or_else(|| Error::data(path, "out_features", "a whole number above 0", value.to_string(), REMEDY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::target::Task;

    #[test]
    fn what_is_written_reads_back() {
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Max] {
            for (embedding_output, normalized) in [(0, false), (0, true), (24, false), (24, true)] {
                let task = Task::SentenceEmbedding;
                let config = StudentConfig { task, pooling, embedding_output, normalized, ..StudentConfig::default() };
                let directory = tempfile::tempdir().unwrap();
                for (name, text) in texts(&config, 128) {
                    let path = directory.path().join(name);
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(path, text).unwrap();
                }
                let mut found = StudentConfig { task, ..StudentConfig::default() };
                read(directory.path(), &mut found).unwrap();
                assert_eq!(found, config);
            }
        }
    }

    #[test]
    fn modules_of_another_kind_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let modules = json!([module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_LayerNorm", "LayerNorm")]);
        std::fs::write(directory.path().join(MODULES_FILE), modules.to_string()).unwrap();
        let message = read(directory.path(), &mut StudentConfig::default()).unwrap_err().to_string();
        assert!(message.contains("Transformer, Pooling, LayerNorm"), "{message}");
    }
}
