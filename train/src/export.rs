//! The student directory: what `transformers` opens with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained`, and what a
//! later run loads again.
//!
//! | file | content |
//! | --- | --- |
//! | `config.json` | the settings, as the family's `...ForMaskedLM` |
//! | `model.safetensors` | every parameter in float32 under its Hugging Face name; the decoder's weight is the word embeddings' |
//! | `tokenizer.json`, ... | the teacher's tokenizer files as the cache holds them, byte for byte |
//!
//! Each file appears whole or not at all; `model.safetensors` is written last, so where it is new the others are too.

use crate::kernels::{Parameter, ParameterRef};
use crate::student::config::StudentConfig;
use crate::student::layout::layout;
use crate::student::tensor_file::TensorFile;
use crate::student::tensor_source::TensorSource;
use crate::student::tensor_writer::{Named, write_tensors};
use crate::student::{ParameterSpec, Student};
use candle_core::DType;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The settings' file.
pub const CONFIG_FILE: &str = "config.json";

/// The parameters' file.
pub const MODEL_FILE: &str = "model.safetensors";

const TOKENIZER_FILE: &str = "tokenizer.json";

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
    write_parameters(&path, student.parameters())
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
    let mut file = TensorFile::open(&directory.join(MODEL_FILE))?;
    let known: HashSet<String> = layout(&config).into_iter().map(|parameter| parameter.name).collect();
    if let Some(surplus) = file.names().into_iter().find(|name| !known.contains(name)) {
        let expected = format!("only the {} tensors that {CONFIG_FILE} beside it describes", known.len());
        let remedy = format!("put back the {CONFIG_FILE} that belongs to these weights");
        return Err(Error::data(directory.join(MODEL_FILE), format!("tensor {surplus}"), expected, "this one too", remedy));
    }
    Student::new(config, DType::F32, &mut |parameter: &ParameterSpec| {
        file.read(&parameter.name, &parameter.shape).map_err(|error| match error {
            Error::Data { path, field, expected, found, .. } if expected.starts_with("shape") => {
                let remedy = format!("{CONFIG_FILE} and {MODEL_FILE} are of two students: give a directory as train wrote it");
                Error::data(path, field, expected, found, remedy)
            }
            other => other,
        })
    })
}

/// The files of the cache's `teacher` folder that a student takes along: all but the teacher's own configuration, in alphabetical order. Asked
/// before training starts, it tells early that a student could not be saved.
///
/// # Errors
/// A folder that cannot be read or holds no `tokenizer.json`.
pub fn tokenizer_files(teacher_files: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(teacher_files).map_err(Error::io("list", teacher_files))? {
        let path = entry.map_err(Error::io("list", teacher_files))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A name that starts with a dot is a write that was cut off; one with "config.json" describes the teacher's model.
        if path.is_file() && !name.starts_with('.') && !["config.json", "generation_config.json"].contains(&name) {
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
    let named: Vec<Named> = parameters.iter().map(|parameter| (parameter.name().to_owned(), parameter.shape().dims().to_vec())).collect();
    write_tensors(path, &named, |i| with_f32(&parameters[i], <[f32]>::to_vec))
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
mod tests {
    use super::*;
    use crate::student::at_random;
    use candle_core::Tensor;
    use safetensors::SafeTensors;

    fn config() -> StudentConfig {
        StudentConfig {
            vocab_size: 13,
            hidden_size: 8,
            embedding_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 12,
            max_position_embeddings: 7,
            dropout: 0.1,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            pad_token_id: None,
            ..StudentConfig::default()
        }
    }

    fn student(dtype: DType) -> Student {
        Student::new(config(), dtype, &mut |spec: &ParameterSpec| Ok(at_random(&config(), 1, spec))).unwrap()
    }

    fn teacher_files() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", ".vocab.txt.partial"] {
            std::fs::write(directory.path().join(name), format!("the teacher's {name}")).unwrap();
        }
        directory
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn values(student: &Student) -> Vec<(String, Vec<f32>)> {
        student.parameters().iter().map(|parameter| (parameter.name().to_owned(), with_f32(parameter, <[f32]>::to_vec).unwrap())).collect()
    }

    #[test]
    fn a_saved_student_loads_as_it_was() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        let directory = out.path().join("new/student");
        for dtype in [DType::F64, DType::F32] {
            let student = student(dtype);
            save(&student, teacher.path(), &directory).unwrap();
            let loaded = load(&directory).unwrap();
            assert_eq!(loaded.config(), student.config());
            assert_eq!(values(&loaded), values(&student));
        }
        assert_eq!(names(&directory), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(std::fs::read_to_string(directory.join("tokenizer.json")).unwrap(), "the teacher's tokenizer.json");
        assert!(std::fs::read_to_string(directory.join("config.json")).unwrap().contains("DistilBertForMaskedLM"));
    }

    #[test]
    fn the_file_is_what_other_readers_expect() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        save(&student(DType::F32), teacher.path(), out.path()).unwrap();
        let bytes = std::fs::read(out.path().join(MODEL_FILE)).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 4 + 2 * 16 + 5);
        assert_eq!(tensors.tensor("distilbert.transformer.layer.1.ffn.lin1.weight").unwrap().shape(), [12, 8]);
        // The tied weight is stored once, under the name of the word embeddings.
        assert!(tensors.tensor("vocab_projector.weight").is_err() && tensors.tensor("vocab_projector.bias").is_ok());
    }

    #[test]
    fn a_diverged_student_does_not_replace_a_good_one() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        let student = student(DType::F32);
        save(&student, teacher.path(), out.path()).unwrap();
        let before = std::fs::read(out.path().join(MODEL_FILE)).unwrap();
        student.parameters()[3]
            .set_value(&Tensor::new(&[0f32, 1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0], &candle_core::Device::Cpu).unwrap())
            .unwrap();
        let message = save(&student, teacher.path(), out.path()).unwrap_err().to_string();
        assert!(message.contains("LayerNorm.bias: expected finite values, found NaN at element 2"), "{message}");
        assert_eq!(std::fs::read(out.path().join(MODEL_FILE)).unwrap(), before);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        std::fs::remove_file(teacher.path().join("tokenizer.json")).unwrap();
        let message = save(&student(DType::F32), teacher.path(), out.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json: expected the teacher's tokenizer, found 1 other files"), "{message}");
        let message = load(out.path()).err().unwrap().to_string();
        assert!(message.contains("cannot read") && message.contains("config.json"), "{message}");
    }

    #[test]
    fn tensors_of_more_layers_than_the_settings_say_are_refused() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        save(&student(DType::F32), teacher.path(), out.path()).unwrap();
        let fewer = StudentConfig { num_hidden_layers: 1, ..config() };
        std::fs::write(out.path().join(CONFIG_FILE), fewer.to_json()).unwrap();
        let message = load(out.path()).err().unwrap().to_string();
        assert!(
            message.contains("model.safetensors: tensor distilbert.transformer.layer.1.") && message.contains("only the 25"),
            "{message}"
        );
    }

    #[test]
    fn settings_of_another_student_are_refused() {
        let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
        save(&student(DType::F32), teacher.path(), out.path()).unwrap();
        let other = StudentConfig { intermediate_size: 16, ..config() };
        std::fs::write(out.path().join(CONFIG_FILE), other.to_json()).unwrap();
        let message = load(out.path()).err().unwrap().to_string();
        assert!(message.contains("ffn.lin1.weight: expected shape [16, 8], found shape [12, 8]"), "{message}");
    }
}
