//! The files of a teacher.

use super::sentence_files::MODULES;
use logitcache::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The graph's name in a directory that `optimum-cli export onnx` wrote.
const MODEL: &str = "model.onnx";
/// The configuration beside the graph.
pub const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// The folder of the graph in directories that `sentence-transformers` lays out; everything else is beside that folder.
const MODEL_FOLDER: &str = "onnx";
/// What makes a directory a sentence encoder's, and is copied with it.
const SENTENCE_COMPANIONS: [&str; 3] = ["config_sentence_transformers.json", MODULES, "sentence_bert_config.json"];
/// What may lie beside `tokenizer.json` and belongs to it.
const TOKENIZER_COMPANIONS: [&str; 9] = [
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// The files of an export as `optimum-cli export onnx` lays them out, or of a bare model with its tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherFiles {
    /// The ONNX graph.
    pub model: PathBuf,
    /// `config.json` beside it.
    pub config: Option<PathBuf>,
    /// `modules.json` of a sentence encoder, beside config.json.
    pub modules: Option<PathBuf>,
    /// The tokenizer, in the format of `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Configuration and tokenizer files that a cache copies to `teacher/`, sorted by path; the tokenizer itself is among them.
    pub companions: Vec<PathBuf>,
}

/// Finds the files. `teacher` is a directory that holds `model.onnx`, or a model file; `tokenizer` a file or a directory that holds
/// `tokenizer.json`, and by default the model's own directory.
///
/// # Errors
/// [`Error::Usage`] naming what is missing, and what is there instead.
pub fn locate(teacher: &Path, tokenizer: Option<&Path>) -> Result<TeacherFiles> {
    let model = locate_model(teacher, "--teacher")?;
    let directory = model.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let tokenizer = locate_tokenizer(&directory, tokenizer)?;
    let config = locate_config(&model);
    let beside_tokenizer = tokenizer.parent().unwrap_or(Path::new("."));
    let modules = Some(beside_config(&directory, MODULES)).filter(|path| path.is_file());
    let others = TOKENIZER_COMPANIONS.iter().map(|name| beside_tokenizer.join(name)).filter(|path| path.is_file());
    let sentence =
        SENTENCE_COMPANIONS.iter().map(|name| beside_config(&directory, name)).filter(|path| modules.is_some() && path.is_file());
    let mut companions: Vec<PathBuf> = config.iter().chain([&tokenizer]).cloned().chain(others).chain(sentence).collect();
    companions.sort();
    companions.dedup();
    Ok(TeacherFiles { model, config, modules, tokenizer, companions })
}

/// `config.json` beside the graph, or beside the graph's folder `onnx/`.
pub fn locate_config(model: &Path) -> Option<PathBuf> {
    let directory = model.parent().unwrap_or(Path::new(""));
    Some(beside_config(directory, CONFIG)).filter(|path| path.is_file())
}

/// The path of a file of the export: beside the graph, or beside the graph's folder `onnx/` where it is only there.
fn beside_config(directory: &Path, name: &str) -> PathBuf {
    let beside = directory.join(name);
    match directory.parent() {
        Some(parent) if !beside.is_file() && directory.file_name().is_some_and(|folder| folder == MODEL_FOLDER) => parent.join(name),
        _ => beside,
    }
}

/// The graph: `teacher` itself, or `model.onnx` in it. `flag` is where it was named.
///
/// # Errors
/// [`Error::Usage`] naming what is there instead.
pub fn locate_model(teacher: &Path, flag: &str) -> Result<PathBuf> {
    if teacher.is_file() {
        return Ok(teacher.to_owned());
    }
    let expected = format!("a directory that holds {MODEL}, or a model file");
    if !teacher.is_dir() {
        let found = format!("{}, which does not exist", teacher.display());
        return Err(Error::usage(flag, expected, found, "check the path"));
    }
    if let Some(model) = [teacher.join(MODEL), teacher.join(MODEL_FOLDER).join(MODEL)].into_iter().find(|model| model.is_file()) {
        return Ok(model);
    }
    let models = names_ending(teacher, ".onnx")?;
    let (found, remedy) = if models.is_empty() {
        ("no .onnx file".to_owned(), "export the model with `optimum-cli export onnx`, a student with `train export --student DIR --onnx`")
    } else {
        (models.join(", "), "give the file itself, DIR/NAME.onnx")
    };
    Err(Error::usage(flag, expected, format!("{found} in {}", teacher.display()), remedy))
}

fn locate_tokenizer(directory: &Path, tokenizer: Option<&Path>) -> Result<PathBuf> {
    let file = match tokenizer {
        None => beside_config(directory, TOKENIZER),
        Some(given) if given.is_dir() => given.join(TOKENIZER),
        Some(given) => given.to_owned(),
    };
    if file.is_file() {
        return Ok(file);
    }
    let expected = format!("a {TOKENIZER} file, or a directory that holds one");
    let remedy = "save the teacher's fast tokenizer with `tokenizer.save_pretrained(DIR)` and give --tokenizer DIR";
    Err(Error::usage("--tokenizer", expected, format!("no file {}", file.display()), remedy))
}

fn names_ending(directory: &Path, ending: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(directory.path().join(name), "{}").unwrap());
        directory
    }

    #[test]
    fn an_export_is_found_with_its_companions() {
        let export = directory(&["model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors"]);
        let files = locate(export.path(), None).unwrap();
        assert_eq!(files.model, export.path().join("model.onnx"));
        assert_eq!(files.config, Some(export.path().join("config.json")));
        let names: Vec<_> = files.companions.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]);
    }

    #[test]
    fn a_sentence_encoder_may_keep_its_graph_in_a_folder() {
        let export = directory(&["config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"]);
        std::fs::create_dir(export.path().join("onnx")).unwrap();
        std::fs::write(export.path().join("onnx/model.onnx"), "").unwrap();
        for typed in [export.path().to_owned(), export.path().join("onnx"), export.path().join("onnx/model.onnx")] {
            let files = locate(&typed, None).unwrap();
            assert_eq!(files.model, export.path().join("onnx/model.onnx"));
            assert_eq!(files.config, Some(export.path().join("config.json")));
            assert_eq!(files.modules, Some(export.path().join("modules.json")));
            assert_eq!((files.tokenizer, files.companions.len()), (export.path().join("tokenizer.json"), 4));
        }
    }

    #[test]
    fn a_bare_model_takes_its_tokenizer_from_elsewhere() {
        let (bare, other) = (directory(&["teacher.onnx"]), directory(&["tokenizer.json", "vocab.txt"]));
        let model = bare.path().join("teacher.onnx");
        for tokenizer in [other.path().to_owned(), other.path().join("tokenizer.json")] {
            let files = locate(&model, Some(&tokenizer)).unwrap();
            assert_eq!((&files.model, &files.config), (&model, &None));
            assert_eq!(files.tokenizer, other.path().join("tokenizer.json"));
            assert_eq!(files.companions, [other.path().join("tokenizer.json"), other.path().join("vocab.txt")]);
        }
        let error = locate(&model, None).unwrap_err();
        assert!(error.to_string().starts_with("--tokenizer"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let other = directory(&["decoder.onnx", "encoder.onnx", "tokenizer.json"]);
        let error = locate(other.path(), None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("decoder.onnx, encoder.onnx"), "{error}");
        let error = locate(&other.path().join("nowhere"), None).unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
}
