//! Writing a student as an ONNX graph, in the layout of `optimum-cli export onnx`: `model.onnx` beside `config.json` and the tokenizer's files.
//!
//! The graph takes any batch and length, in int64, and gives float32 `logits`: `[batch, sequence, vocabulary]` of a language model, `[batch, sequence,
//! classes]` of a token classifier, `[batch, classes]` of a sequence classifier. A sentence encoder gives `last_hidden_state` and, pooled and scaled
//! in the graph, `sentence_embedding` `[batch, embedding]`. Nodes are named after their modules
//! and biases, embeddings and LayerNorms keep their Hugging Face names, so that `precompute` finds the hidden states when the student is the next
//! teacher. A model beyond protobuf's 2 GB has its weights in `model.onnx_data`.

mod decoder_graph;
mod destination;
mod graph;

use crate::cli::ExportArguments;
use crate::export::{CONFIG_FILE, check_student_flag, load, with_f32};
use crate::student::{Student, sentence_files};
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use logitcache::onnx::write::{LARGEST_MODEL_BYTES, write_model};
use logitcache::target::Task;
use std::path::Path;

/// The graph's file.
pub const ONNX_FILE: &str = "model.onnx";

const TOKENIZER_FILE: &str = "tokenizer.json";

/// What may lie beside `tokenizer.json` and belongs to it or to a sentence encoder.
const TOKENIZER_COMPANIONS: [&str; 15] = [
    sentence_files::MODULES_FILE,
    sentence_files::LENGTH_FILE,
    sentence_files::COMPARISON_FILE,
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
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

/// `train export`: returns what a person is told.
///
/// # Errors
/// [`Error::Usage`] for a directory that holds no student, or a destination that holds another model or a cache; a damaged student, or a
/// refusal of the file system.
pub fn run(arguments: &ExportArguments) -> Result<String> {
    let student = &arguments.student;
    check_student_flag(student)?;
    let out = arguments.out.as_deref().unwrap_or(student);
    destination::check(student, out, &companions(student))?;
    let loaded = load(student)?;
    if !destination::same_directory(student, out) {
        copy_companions(student, out)?;
    }
    let path = out.join(ONNX_FILE);
    let bytes = write_onnx(&loaded, &path, LARGEST_MODEL_BYTES)?;
    let inputs = graph::input_names(loaded.config()).join(", ");
    let outputs = match loaded.config().task {
        Task::MaskedLm | Task::CausalLm => "logits [batch, sequence, vocabulary]",
        Task::TokenClassification => "logits [batch, sequence, classes]",
        Task::SequenceClassification => "logits [batch, classes]",
        Task::SentenceEmbedding => "last_hidden_state [batch, sequence, hidden] and sentence_embedding [batch, embedding]",
    };
    let megabytes = bytes as f64 / 1e6;
    Ok(format!("{}: {megabytes:.1} MB, {inputs} [batch, sequence] to {outputs}\n", path.display()))
}

/// Publishes the student's graph at `path`; gives the bytes written. Weights go beside it where it would be larger than `largest_bytes`:
/// [`LARGEST_MODEL_BYTES`] but in tests.
///
/// # Errors
/// A refusal of the file system; an existing file is then as it was.
pub fn write_onnx(student: &Student, path: &Path, largest_bytes: u64) -> Result<u64> {
    let graph = graph::build(student.config());
    write_model(path, &graph, largest_bytes, |i| {
        let weight = &graph.weights()[i];
        let name = graph::parameter_of(&weight.name);
        let parameter = student.parameters().iter().find(|parameter| parameter.name() == name);
        let parameter = parameter.expect("the graph is built of the layout's parameters");
        with_f32(parameter, |values| if name == weight.name { values.to_vec() } else { transposed(values, weight.shape[0]) })
    })
}

/// A matrix row-major, from one of `columns` columns: what was column i becomes row i.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

fn copy_companions(student: &Path, out: &Path) -> Result<()> {
    if !student.join(TOKENIZER_FILE).is_file() {
        let remedy = "copy the teacher's tokenizer there, or export into the student's own directory";
        return Err(Error::data(student, TOKENIZER_FILE, "the student's tokenizer", "no such file", remedy));
    }
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    for name in companions(student) {
        let source = student.join(name);
        let bytes = std::fs::read(&source).map_err(Error::io("read", &source))?;
        let (path, folder) = (out.join(name), out.join(name).parent().map_or_else(|| out.to_owned(), Path::to_owned));
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        write_bytes_atomically(&path, &bytes)?;
    }
    Ok(())
}

/// What of the student's directory goes beside its graph.
fn companions(student: &Path) -> Vec<&'static str> {
    let names = [CONFIG_FILE, TOKENIZER_FILE].into_iter().chain(TOKENIZER_COMPANIONS);
    names.filter(|name| student.join(name).is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_transposed() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn a_directory_without_a_student_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ExportArguments { student: directory.path().to_owned(), onnx: true, out: None };
        let error = run(&arguments).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("--student: expected a directory that train wrote"), "{error}");
    }
}
