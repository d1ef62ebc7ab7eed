//! The files in which `sentence-transformers` says how token states become the vector of a sentence.
//!
//! `modules.json` lists the modules a text passes through, `N_Pooling/config.json` says how the pooling module pools. What is understood: one
//! transformer, one pooling of one kind, a normalisation after it, and dropout, which does nothing outside of training. Another module, or another kind
//! of pooling, is remembered, since a graph may well compute it: whoever has to compute it here refuses it.

use logitcache::error::{Error, Result};
use logitcache::target::Pooling;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// The list of modules, beside config.json.
pub(super) const MODULES: &str = "modules.json";

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SentenceFiles {
    /// How states are pooled; none where no module pools.
    pub pooling: Option<Pooling>,
    /// Whether the vector is scaled to length 1.
    pub normalized: bool,
    /// The first thing that is not understood.
    pub unknown: Option<Unknown>,
    /// The files that belong to modules, relative to the directory of `modules.json`.
    pub module_files: Vec<PathBuf>,
}

/// What cannot be computed outside of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub path: PathBuf,
    pub field: &'static str,
    pub expected: &'static str,
    pub found: String,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl SentenceFiles {
    /// Reads `modules.json` at `path`, and the pooling's configuration.
    ///
    /// # Errors
    /// [`Error::Data`] for a list that cannot be followed: no JSON, a path out of the directory, a pooling whose configuration is missing.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let modules: Vec<Module> = serde_json::from_slice(&bytes).map_err(Error::library("parse", path))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut files = Self::default();
        for (index, module) in modules.iter().enumerate() {
            let folder = inside(path, &module.path)?;
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if index == 0 => continue,
                "Pooling" if files.pooling.is_none() && files.unknown.is_none() => {
                    match pooling(&directory.join(&folder).join("config.json"))? {
                        Ok(pooling) => files.pooling = Some(pooling),
                        Err(unknown) => files.unknown = Some(unknown),
                    }
                }
                "Normalize" if index > 1 => files.normalized = true,
                "Dropout" => {}
                _ => {
                    let expected = "a Transformer, a Pooling and at most a Normalize module, which can be computed outside of the graph";
                    let unknown = Unknown { path: path.to_owned(), field: "type", expected, found: module.kind.clone() };
                    files.unknown = files.unknown.or(Some(unknown));
                }
            }
            let file = folder.join("config.json");
            if !module.path.is_empty() && directory.join(&file).is_file() {
                files.module_files.push(file);
            }
        }
        Ok(files)
    }
}

/// A module's folder, which must not lead elsewhere.
fn inside(modules: &Path, path: &str) -> Result<PathBuf> {
    let folder = PathBuf::from(path);
    if folder.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(folder);
    }
    Err(Error::data(modules, "path", "a folder beside the file", format!("`{path}`"), "save the sentence encoder again"))
}

/// The one kind of pooling that a configuration names: by a key `pooling_mode`, or by the one `pooling_mode_...` that is true.
fn pooling(path: &Path) -> Result<std::result::Result<Pooling, Unknown>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let remedy = "copy the folder from the sentence encoder's directory";
            return Err(Error::data(path, "pooling", "the configuration of the pooling that modules.json lists", "no such file", remedy));
        }
        other => other.map_err(Error::io("read", path))?,
    };
    let fields: Map<String, Value> = serde_json::from_slice(&bytes).map_err(Error::library("parse", path))?;
    let mut kinds: Vec<String> = match fields.get("pooling_mode") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let flags = fields.iter().filter(|(_, value)| **value == Value::Bool(true));
    kinds.extend(flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).map(str::to_owned));
    Ok(match kinds.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        ["max" | "max_tokens"] => Ok(Pooling::Max),
        _ => {
            let found = if kinds.is_empty() { "none".to_owned() } else { kinds.join(" and ") };
            Err(Unknown { path: path.to_owned(), field: "pooling_mode", expected: "one of mean, cls and max", found })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(modules: &str, pooling: Option<&str>) -> Result<SentenceFiles> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(MODULES), modules).unwrap();
        if let Some(pooling) = pooling {
            std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
            std::fs::write(directory.path().join("1_Pooling/config.json"), pooling).unwrap();
        }
        SentenceFiles::read(&directory.path().join(MODULES))
    }

    fn modules(kinds: &[&str]) -> String {
        let module = |(index, kind): (usize, &&str)| {
            let path = if index == 0 { String::new() } else { format!("{index}_{}", kind.rsplit('.').next().unwrap()) };
            serde_json::json!({ "idx": index, "name": index.to_string(), "path": path, "type": kind })
        };
        serde_json::Value::from(kinds.iter().enumerate().map(module).collect::<Vec<_>>()).to_string()
    }

    const TRANSFORMER: &str = "sentence_transformers.models.Transformer";
    const POOLING: &str = "sentence_transformers.models.Pooling";

    #[test]
    fn pooling_and_normalisation_are_read() {
        let listed = modules(&[TRANSFORMER, POOLING, "sentence_transformers.models.Normalize"]);
        for (config, pooling) in [
            (r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true, "include_prompt": true}"#, Pooling::Mean),
            (r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#, Pooling::Cls),
            (r#"{"pooling_mode": "max"}"#, Pooling::Max),
        ] {
            let files = read(&listed, Some(config)).unwrap();
            assert_eq!((files.pooling, files.normalized, files.unknown), (Some(pooling), true, None));
            assert_eq!(files.module_files, [PathBuf::from("1_Pooling/config.json")]);
        }
        let files = read(&modules(&[TRANSFORMER, POOLING]), Some(r#"{"pooling_mode": ["mean"]}"#)).unwrap();
        assert!(!files.normalized && files.unknown.is_none());
    }

    #[test]
    fn what_is_not_understood_is_remembered_and_what_is_broken_refused() {
        let dense = modules(&[TRANSFORMER, POOLING, "sentence_transformers.models.Dense", "sentence_transformers.models.Normalize"]);
        let files = read(&dense, Some(r#"{"pooling_mode_mean_tokens": true}"#)).unwrap();
        assert_eq!(files.unknown.unwrap().found, "sentence_transformers.models.Dense");
        let listed = modules(&[TRANSFORMER, POOLING]);
        for (config, found) in [
            (r#"{"pooling_mode_lasttoken": true}"#, "lasttoken"),
            (r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#, "cls_token and mean_tokens"),
            ("{}", "none"),
        ] {
            let unknown = read(&listed, Some(config)).unwrap().unknown.unwrap();
            assert!(unknown.found == found && unknown.path.ends_with("1_Pooling/config.json"), "{unknown:?}");
        }
        let error = read(&listed, None).unwrap_err().to_string();
        assert!(error.contains("1_Pooling") && error.contains("no such file"), "{error}");
        let error = read(r#"[{"path": "../x", "type": "a.Transformer"}]"#, None).unwrap_err().to_string();
        assert!(error.contains("modules.json: path") && error.contains("../x"), "{error}");
        assert!(read("{}", None).is_err());
    }
}
