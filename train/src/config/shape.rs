//! The student's shape and first weights, from the teacher's configuration and what the user changed.

use super::{Initialisation, TEACHER_FOLDER, task};
use crate::cli::StudentArguments;
use crate::student::config::{Overrides, StudentConfig};
use crate::student::family::Family;
use crate::student::tensor_source::weights_file;
use crate::student::{FirstValues, FirstWeights, InitWidths};
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};

/// The teacher's shape with what the user changed, and the head of the cache's task.
///
/// # Errors
/// A flag whose value cannot be, or a teacher's configuration that does not fit the cache.
pub(super) fn student_config(shape: &StudentArguments, cache: &Cache) -> Result<StudentConfig> {
    let dropout = task::dropout(shape, cache)?;
    let overrides = Overrides {
        family: task::family(shape, cache)?,
        num_hidden_layers: Some(shape.layers),
        hidden_size: shape.hidden_size,
        num_attention_heads: shape.heads,
        intermediate_size: shape.feed_forward,
        embedding_size: shape.embedding_size,
        wide_embedding: first_weights_are_wide(shape, cache)?,
        activation: shape.activation.as_deref().map(|name| parsed("--activation", name)).transpose()?,
        key_value_heads: shape.key_value_heads,
        dropout: Some(dropout),
        attention_dropout: Some(dropout),
    };
    let path = cache.directory().join(TEACHER_FOLDER).join("config.json");
    let config = StudentConfig::from_teacher(&path, &overrides).map_err(name_the_flag)?;
    let vocabulary = cache.spec().vocabulary_size();
    if config.vocab_size != vocabulary {
        let expected = format!("the cache's {vocabulary} ids, the length of a logits row");
        return Err(Error::data(
            &path,
            "vocab_size",
            expected,
            config.vocab_size.to_string(),
            "run precompute with the teacher's own config.json",
        ));
    }
    task::with_task(config, shape, cache)
}

/// Whether first weights come from a teacher that is no ALBERT, whose embeddings are as wide as its hidden states.
fn first_weights_are_wide(shape: &StudentArguments, cache: &Cache) -> Result<bool> {
    let Some(path) = &shape.init_from else { return Ok(false) };
    let beside = weights_file(path).with_file_name("config.json");
    let caches = cache.directory().join(TEACHER_FOLDER).join("config.json");
    let config = if beside.is_file() { beside } else { caches };
    Ok(StudentConfig::read_teacher(&config)?.family != Family::Albert)
}

/// A flag whose value is one of a few names.
pub(super) fn parsed<T: std::str::FromStr<Err = String>>(flag: &str, text: &str) -> Result<T> {
    text.parse().map_err(|expected: String| Error::usage(flag, expected, text, "use one of these names"))
}

/// A shape that cannot be is a matter of the flag that set it.
fn name_the_flag(error: Error) -> Error {
    let Error::Invalid { field, expected, found } = error else { return error };
    let flag = match field.as_str() {
        "num_hidden_layers" => "--layers",
        "hidden_size" => "--hidden-size",
        "num_attention_heads" => "--heads",
        "num_key_value_heads" => "--key-value-heads",
        "intermediate_size" => "--feed-forward",
        "embedding_size" => "--embedding-size",
        _ => return Error::Invalid { field, expected, found },
    };
    Error::usage(flag, expected.replace("hidden_size", "--hidden-size"), found, "change one of the student's flags")
}

/// Where the first weights come from.
///
/// # Errors
/// A file that is missing or cannot give them.
pub(super) fn initialisation(shape: &StudentArguments, student: &StudentConfig, cache: &Cache, seed: u64) -> Result<Initialisation> {
    let Some(path) = &shape.init_from else { return Ok(Initialisation::Random) };
    let path = weights_file(path);
    if !path.is_file() {
        let (expected, remedy) = ("a model.safetensors or model.onnx, or a directory with one", "name the teacher's file, or leave it out");
        return Err(Error::usage("--init-from", expected, format!("{}: no such file", path.display()), remedy));
    }
    let config = cache.directory().join(TEACHER_FOLDER).join("config.json");
    let (teacher, family) = (StudentConfig::read_teacher(&config)?, StudentConfig::family_in(&config)?);
    let widths = shape.init_widths.as_deref().map_or(Ok(InitWidths::default()), |name| parsed("--init-widths", name))?;
    let mut first = FirstWeights { layers: shape.init_layers.clone(), widths, heads: Some(teacher.num_attention_heads), family, seed };
    first.layers = Some(FirstValues::open(&path, student, &first)?.layers().to_vec());
    Ok(Initialisation::Teacher { path, first })
}
