//! The student directory: what `transformers` opens with `AutoModelForMaskedLM.from_pretrained` (or the task's other class) and
//! `AutoTokenizer.from_pretrained`, sentence-transformers with `SentenceTransformer` where it is a sentence encoder, and what a later run loads
//! again.
//!
//! | file | content |
//! | --- | --- |
//! | `config.json` | the settings, as the family's class for the task: `...ForMaskedLM` |
//! | `model.safetensors` | every parameter in float32 under its Hugging Face name; the decoder's weight is the word embeddings' |
//! | `tokenizer.json`, ... | the teacher's tokenizer files as the cache holds them, byte for byte |
//! | `modules.json`, ... | of a sentence encoder: [`crate::student::sentence_files`] |
//!
//! Each file appears whole or not at all; `model.safetensors` is written last, so where it is new the others are too.

use crate::kernels::{Parameter, ParameterRef};
use crate::student::config::StudentConfig;
use crate::student::layout::layout;
use crate::student::names::PROJECTION_FOLDER;
use crate::student::sentence_files;
use crate::student::tensor_file::TensorFile;
use crate::student::tensor_source::TensorSource;
use crate::student::tensor_writer::{Named, write_tensors};
use crate::student::{ParameterSpec, Student};
use candle_core::DType;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The settings' file.
pub const CONFIG_FILE: &str = "config.json";

/// The parameters' file.
pub const MODEL_FILE: &str = "model.safetensors";

const TOKENIZER_FILE: &str = "tokenizer.json";

/// What the cache holds of the teacher's model, which the student has of its own.
const TEACHERS_OWN: [&str; 5] =
    [CONFIG_FILE, "generation_config.json", sentence_files::MODULES_FILE, sentence_files::LENGTH_FILE, sentence_files::COMPARISON_FILE];

/// Writes the student into `directory`, which is made where it is missing. `teacher_files` is the cache's `teacher` folder.
///
/// # Errors
/// `teacher_files` without a tokenizer, a value that is NaN or infinite (the student is then not written), or a refusal of the file system.
pub fn save(student: &Student, teacher_files: &Path, directory: &Path) -> Result<()> {
    let path = directory.join(MODEL_FILE);
    for parameter in student.parameters() {
        check_finite(&path, parameter)?;
    }
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    for source in tokenizer_files(teacher_files)? {
        let name = source.file_name().expect("a listed file has a name");
        let bytes = std::fs::read(&source).map_err(Error::io("read", &source))?;
        write_bytes_atomically(&directory.join(name), &bytes)?;
    }
    write_bytes_atomically(&directory.join(CONFIG_FILE), student.config().to_json().as_bytes())?;
    let (beside, own): (Vec<_>, Vec<_>) = student.parameters().iter().cloned().partition(|parameter| is_beside(parameter.name()));
    if student.config().task == Task::SentenceEmbedding {
        for (name, text) in sentence_files::texts(student.config(), longest_text(student.config(), teacher_files)?) {
            let path = directory.join(name);
            let folder = path.parent().unwrap_or(directory);
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            write_bytes_atomically(&path, text.as_bytes())?;
        }
    }
    if !beside.is_empty() {
        let folder = directory.join(PROJECTION_FOLDER);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        write_parameters(&folder.join(MODEL_FILE), &beside)?;
    }
    write_parameters(&path, &own)
}

/// Whether a parameter is in the file of the projection's folder.
fn is_beside(name: &str) -> bool {
    file_and_name(name).0.is_some()
}

/// The folder whose file holds a parameter, none for the student's own, and its name there.
fn file_and_name(name: &str) -> (Option<&'static str>, &str) {
    match name.strip_prefix(PROJECTION_FOLDER).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => (Some(PROJECTION_FOLDER), rest),
        None => (None, name),
    }
}

/// How many tokens of a text sentence-transformers reads: the teacher's setting where it says one, at most what the student takes.
fn longest_text(config: &StudentConfig, teacher_files: &Path) -> Result<usize> {
    let path = teacher_files.join(sentence_files::LENGTH_FILE);
    let longest = config.longest_sequence();
    if !path.is_file() {
        return Ok(longest);
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(Error::library("parse", &path))?;
    Ok(value["max_seq_length"].as_u64().map_or(longest, |tokens| longest.min(usize::try_from(tokens).unwrap_or(longest))))
}

/// Refuses a `--student` that holds no student's files.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_student_flag(directory: &Path) -> Result<()> {
    let lacking = match [CONFIG_FILE, MODEL_FILE].into_iter().find(|name| !directory.join(name).is_file()) {
        None => return Ok(()),
        Some(_) if !directory.exists() => "which does not exist".to_owned(),
        Some(_) if !directory.is_dir() => "which is no directory".to_owned(),
        Some(name) => format!("which holds no {name}"),
    };
    let found = format!("{}, {lacking}", directory.display());
    Err(Error::usage("--student", "a directory that train wrote", found, "name the --out of a finished training"))
}

/// Loads a student that [`save`] wrote, in float32.
///
/// # Errors
/// A missing or damaged file, or one that does not fit the settings beside it, tensors that these do not describe included.
pub fn load(directory: &Path) -> Result<Student> {
    let config = StudentConfig::read(&directory.join(CONFIG_FILE))?;
    let path = directory.join(MODEL_FILE);
    let known: HashSet<String> = layout(&config).into_iter().map(|parameter| parameter.name).filter(|name| !is_beside(name)).collect();
    if let Some(surplus) = TensorFile::open(&path)?.names().into_iter().find(|name| !known.contains(name)) {
        let expected = format!("only the {} tensors that {CONFIG_FILE} beside it describes", known.len());
        let remedy = format!("put back the {CONFIG_FILE} that belongs to these weights");
        return Err(Error::data(path, format!("tensor {surplus}"), expected, "this one too", remedy));
    }
    load_as(&config, directory)
}

/// [`load`] with settings that are known already.
///
/// # Errors
/// A missing or damaged file, or one that does not fit the settings.
pub(crate) fn load_as(config: &StudentConfig, directory: &Path) -> Result<Student> {
    let mut file = TensorFile::open(&directory.join(MODEL_FILE))?;
    let mut beside = match config.embedding_output {
        0 => None,
        _ => Some(TensorFile::open(&directory.join(PROJECTION_FOLDER).join(MODEL_FILE))?),
    };
    Student::new(config.clone(), DType::F32, &mut |parameter: &ParameterSpec| {
        let read = match (file_and_name(&parameter.name), &mut beside) {
            ((Some(_), name), Some(beside)) => beside.read(name, &parameter.shape),
            _ => file.read(&parameter.name, &parameter.shape),
        };
        read.map_err(|error| match error {
            Error::Data { path, field, expected, found, .. } if expected.starts_with("shape") => {
                let remedy = format!("{CONFIG_FILE} and {MODEL_FILE} are of two students: give a directory as train wrote it");
                Error::data(path, field, expected, found, remedy)
            }
            other => other,
        })
    })
}

/// The files of the cache's `teacher` folder that a student takes along: its tokenizer's, in alphabetical order. Asked
/// before training starts, it tells early that a student could not be saved.
///
/// # Errors
/// A folder that cannot be read or holds no `tokenizer.json`.
pub fn tokenizer_files(teacher_files: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(teacher_files).map_err(Error::io("list", teacher_files))? {
        let path = entry.map_err(Error::io("list", teacher_files))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A name that starts with a dot is a write that was cut off; some describe the teacher's model, as the student's own files do the student's.
        if path.is_file() && !name.starts_with('.') && !TEACHERS_OWN.contains(&name) {
            files.push(path);
        }
    }
    files.sort();
    if !files.iter().any(|path| path.ends_with(TOKENIZER_FILE)) {
        let found = format!("{} other files", files.len());
        return Err(Error::data(teacher_files, TOKENIZER_FILE, "the teacher's tokenizer", found, "run precompute again for a whole cache"));
    }
    Ok(files)
}

fn check_finite(path: &Path, parameter: &Parameter) -> Result<()> {
    with_f32(parameter, |values| match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(i) => {
            let found = format!("{} at element {i}", values[i]);
            let remedy = "training has diverged: lower --learning-rate";
            Err(Error::data(path, parameter.name(), "finite values", found, remedy))
        }
    })?
}

fn write_parameters(path: &Path, parameters: &[ParameterRef]) -> Result<()> {
    let name = |parameter: &ParameterRef| file_and_name(parameter.name()).1.to_owned();
    let named: Vec<Named> = parameters.iter().map(|parameter| (name(parameter), parameter.shape().dims().to_vec())).collect();
    write_tensors(path, &named, |i, sink| with_f32(&parameters[i], sink)?)
}

/// Reads a parameter's values in single precision, whichever it has.
pub(crate) fn with_f32<R>(parameter: &Parameter, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let result = match parameter.dtype() {
        DType::F64 => parameter.with_value(|values: &[f64]| read(&values.iter().map(|value| *value as f32).collect::<Vec<_>>())),
        _ => parameter.with_value(|values: &[f32]| read(values)),
    };
    result.map_err(|error| Error::invalid(parameter.name(), "a value in memory", error.to_string()))
}

#[cfg(test)]
mod tests;
