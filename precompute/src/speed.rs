//! `precompute time`: the forward time of ONNX models, side by side.
//!
//! Every model gets the same batches: ids drawn at random below the smallest vocabulary (seeded), no padding. A round asks each model once in
//! turn (A B A B ...), so that what slows the machine for a while slows all of them. The first [`WARM_UP_ROUNDS`] are not counted.
//!
//! `--out` writes this JSON:
//!
//! | key | value |
//! | --- | --- |
//! | `format_version` | 1 |
//! | `onnxruntime` | version of the library |
//! | `threads` | threads of each session |
//! | `length` | tokens of each sequence |
//! | `rounds` | timed rounds |
//! | `models[]` | in the order typed: |
//! | `.directory` | as typed |
//! | `.parameters` | values of the graph's weights |
//! | `.onnx_bytes` | size of model.onnx and its external data |
//! | `.safetensors_bytes` | size of model.safetensors beside it, or null |
//! | `.times[]` | in the order of `--batch`: `batch`, then `median_ms`, `min_ms` and `max_ms` of a forward pass over the whole batch |

use crate::cli::TimeArguments;
use crate::teacher::locate::{TeacherFiles, locate_config, locate_model};
use crate::teacher::{HiddenLayers, Runtime, Teacher, TeacherBatch, prepare, runtime};
use logitcache::atomic_file::{check_place, write_bytes_atomically};
use logitcache::error::{Error, Result};
use logitcache::seed::{Purpose, RandomStream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rounds before the timed ones.
pub const WARM_UP_ROUNDS: usize = 3;

const FORMAT_VERSION: u32 = 1;

/// What was measured; see the module for the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Grows with any change that an older reader would misread.
    pub format_version: u32,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// Threads of each session.
    pub threads: usize,
    /// Tokens of each sequence.
    pub length: usize,
    /// Timed rounds.
    pub rounds: usize,
    /// The models, in the order typed.
    pub models: Vec<ModelSpeed>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpeed {
    /// As typed.
    pub directory: PathBuf,
    /// Values of the graph's weights.
    pub parameters: u64,
    /// Bytes of model.onnx and its external data.
    pub onnx_bytes: u64,
    /// Bytes of model.safetensors, where there is one.
    pub safetensors_bytes: Option<u64>,
    /// One entry for each batch size.
    pub times: Vec<ForwardTime>,
}

/// Forward passes of one batch size, in milliseconds each.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForwardTime {
    /// Sequences of the batch.
    pub batch: usize,
    /// The middle one; of an even number of rounds the mean of the two middle ones.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

struct Candidate {
    speed: ModelSpeed,
    teacher: Teacher,
}

/// Times the models and writes the JSON where it was asked for. `cores` is the default number of threads.
///
/// # Errors
/// [`Error::Usage`] for numbers that cannot be run, a directory without model.onnx, a length that a model cannot take and an `--out` that cannot
/// be written; those of the models.
pub fn run(arguments: &TimeArguments, cores: usize) -> Result<Speed> {
    let TimeArguments { models, batch, length, threads, rounds, out, onnxruntime } = arguments;
    let threads = threads.unwrap_or(cores);
    let numbers = [("--length", *length), ("--threads", threads), ("--rounds", *rounds)];
    for (flag, value) in numbers.into_iter().chain(batch.iter().map(|batch| ("--batch", *batch))) {
        if value == 0 {
            return Err(Error::usage(flag, "at least 1", "0", "type a larger number, or leave the flag out for its default"));
        }
    }
    if let Some(out) = out {
        check_place("--out", out, "DIR/speed.json")?;
    }
    let paths: Vec<PathBuf> = models.iter().map(|model| locate_model(model, "MODEL_DIR")).collect::<Result<_>>()?;
    let runtime = runtime::load(onnxruntime.as_deref())?;
    let opened = models.iter().zip(paths).map(|(typed, path)| open(&runtime, typed, path, threads, *length));
    let mut candidates = opened.collect::<Result<Vec<_>>>()?;
    let vocabulary = candidates.iter().map(|each| each.teacher.vocabulary_size()).min().unwrap_or(1);
    for batch in batch {
        let question = question(*batch, *length, vocabulary);
        let mut seconds = vec![Vec::with_capacity(*rounds); candidates.len()];
        for round in 0..WARM_UP_ROUNDS + rounds {
            for (candidate, seconds) in candidates.iter_mut().zip(&mut seconds) {
                let started = Instant::now();
                candidate.teacher.run(&question, |_| Ok(()))?;
                if round >= WARM_UP_ROUNDS {
                    seconds.push(started.elapsed().as_secs_f64());
                }
            }
        }
        for (candidate, seconds) in candidates.iter_mut().zip(seconds) {
            candidate.speed.times.push(forward_time(*batch, seconds));
        }
    }
    let models = candidates.into_iter().map(|candidate| candidate.speed).collect();
    let onnxruntime = runtime.version.clone();
    let speed = Speed { format_version: FORMAT_VERSION, onnxruntime, threads, length: *length, rounds: *rounds, models };
    if let Some(out) = out {
        let mut json = serde_json::to_vec_pretty(&speed).map_err(Error::library("write", out))?;
        json.push(b'\n');
        write_bytes_atomically(out, &json)?;
    }
    Ok(speed)
}

fn open(runtime: &Runtime, typed: &Path, model: PathBuf, threads: usize, length: usize) -> Result<Candidate> {
    let directory = model.parent().unwrap_or(Path::new("")).to_owned();
    // No text is read here, so no tokenizer is needed; nor is it said how states are pooled, which takes no time worth telling.
    let files = TeacherFiles { config: locate_config(&model), model, modules: None, tokenizer: PathBuf::new(), companions: Vec::new() };
    let prepared = prepare(&files, &HiddenLayers::None, &BTreeMap::new())?;
    let sizes = prepared.model_files().map(|path| Ok(std::fs::metadata(path).map_err(Error::io("look at", path))?.len()));
    let onnx_bytes = sizes.sum::<Result<u64>>()?;
    let safetensors_bytes = std::fs::metadata(directory.join("model.safetensors")).ok().map(|found| found.len());
    let teacher = Teacher::open(runtime, prepared, threads, "cpu")?;
    if let Some(longest) = teacher.maximum_length().filter(|longest| *longest < length) {
        let expected = format!("at most the {longest} tokens that {} takes", typed.display());
        return Err(Error::usage("--length", expected, length.to_string(), "time a shorter length"));
    }
    let parameters = teacher.summary().parameters;
    let speed = ModelSpeed { directory: typed.to_owned(), parameters, onnx_bytes, safetensors_bytes, times: Vec::new() };
    Ok(Candidate { speed, teacher })
}

/// The same for every model and every call. `[batch, length]`, ids below `vocabulary`.
fn question(batch: usize, length: usize, vocabulary: usize) -> TeacherBatch {
    let size = batch * length;
    let mut draws = RandomStream::new(0, Purpose::Timing, &[batch as u64, length as u64]);
    TeacherBatch {
        rows: batch,
        length,
        input_ids: (0..size).map(|_| draws.below(vocabulary) as i64).collect(),
        attention_mask: vec![1; size],
        token_type_ids: vec![0; size],
    }
}

/// Of at least one measurement.
fn forward_time(batch: usize, mut seconds: Vec<f64>) -> ForwardTime {
    seconds.sort_by(f64::total_cmp);
    let (last, middle) = (seconds.len() - 1, seconds.len() / 2);
    let median = if seconds.len() % 2 == 1 { seconds[middle] } else { (seconds[middle - 1] + seconds[middle]) / 2.0 };
    ForwardTime { batch, median_ms: median * 1e3, min_ms: seconds[0] * 1e3, max_ms: seconds[last] * 1e3 }
}

impl fmt::Display for Speed {
    /// A table for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { onnxruntime, threads, length, rounds, models, .. } = self;
        let many = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let (threads, tokens, rounds) = (many(*threads, "thread"), many(*length, "token"), many(*rounds, "round"));
        writeln!(f, "One forward pass in ONNX Runtime {onnxruntime}: {threads}, {tokens} a sequence, no padding;")?;
        writeln!(f, "median (min to max) of {rounds}, the models in turn.\n")?;
        let names: Vec<String> = models.iter().map(|model| model.directory.display().to_string()).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("model".len());
        writeln!(f, "{:width$}  batch  {:>28}  {:>10}  {:>17}", "model", "milliseconds", "model.onnx", "model.safetensors")?;
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        for (name, model) in names.iter().zip(models) {
            for time in &model.times {
                let range = format!("{:.2} ({:.2} to {:.2})", time.median_ms, time.min_ms, time.max_ms);
                let weights = model.safetensors_bytes.map_or("none".to_owned(), megabytes);
                writeln!(f, "{name:width$}  {:5}  {range:>28}  {:>10}  {weights:>17}", time.batch, megabytes(model.onnx_bytes))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_extremes() {
        let odd = forward_time(4, vec![0.003, 0.001, 0.009]);
        assert_eq!((odd.batch, odd.median_ms, odd.min_ms, odd.max_ms), (4, 3.0, 1.0, 9.0));
        let even = forward_time(1, vec![0.004, 0.002]);
        assert!((even.median_ms - 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_question_is_whole_and_always_the_same() {
        let asked = question(3, 7, 20);
        assert_eq!(asked, question(3, 7, 20));
        assert_eq!((asked.input_ids.len(), asked.attention_mask.iter().sum::<i64>()), (21, 21));
        assert!(asked.input_ids.iter().all(|id| (0..20).contains(id)));
    }

    #[test]
    fn what_cannot_be_timed_is_refused_by_flag() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = TimeArguments {
            models: vec![folder.path().to_owned()],
            batch: vec![1],
            length: 8,
            threads: Some(1),
            rounds: 1,
            out: None,
            onnxruntime: None,
        };
        let refused = |arguments: &TimeArguments| run(arguments, 1).unwrap_err().to_string();
        assert!(refused(&arguments).starts_with("MODEL_DIR: expected a directory that holds model.onnx"), "{}", refused(&arguments));
        assert!(refused(&TimeArguments { batch: vec![1, 0], ..arguments.clone() }).starts_with("--batch"));
        assert!(refused(&TimeArguments { rounds: 0, ..arguments.clone() }).starts_with("--rounds"));
        let out = Some(folder.path().join("absent/speed.json"));
        assert!(refused(&TimeArguments { out, ..arguments.clone() }).starts_with("--out"));
    }

    #[test]
    fn models_of_every_task_are_timed_side_by_side() {
        let teachers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/teachers");
        let names =
            ["bert-classifier", "roberta-tagger", "distilbert-sentence", "mpnet-sentence", "llama/past.onnx", "electra/int8-dynamic.onnx"];
        let arguments = TimeArguments {
            models: names.map(|name| teachers.join(name)).to_vec(),
            batch: vec![1, 3],
            length: 8,
            threads: Some(1),
            rounds: 1,
            out: None,
            onnxruntime: None,
        };
        let speed = run(&arguments, 1).unwrap();
        assert_eq!(speed.models.len(), names.len());
        assert!(speed.models.iter().all(|model| model.times.len() == 2 && model.parameters > 3_000), "{speed:?}");
    }

    #[test]
    fn the_table_names_every_model_and_batch() {
        let time = |batch| ForwardTime { batch, median_ms: 2.5, min_ms: 2.0, max_ms: 9.0 };
        let model = |name: &str, safetensors_bytes| ModelSpeed {
            directory: name.into(),
            parameters: 10,
            onnx_bytes: 27_000_000,
            safetensors_bytes,
            times: vec![time(1), time(16)],
        };
        let models = vec![model("teacher", None), model("student", Some(14_000_000))];
        let speed = Speed { format_version: FORMAT_VERSION, onnxruntime: "1.0".into(), threads: 2, length: 89, rounds: 5, models };
        let table = speed.to_string();
        assert!(table.contains("2 threads, 89 tokens") && table.contains("2.50 (2.00 to 9.00)") && table.contains("14.0 MB"), "{table}");
        let one = Speed { threads: 1, rounds: 1, ..speed.clone() }.to_string();
        assert!(one.contains(": 1 thread, 89 tokens") && one.contains("of 1 round,"), "{one}");
        let json = serde_json::to_string(&speed).unwrap();
        assert_eq!(serde_json::from_str::<Speed>(&json).unwrap(), speed);
    }
}
