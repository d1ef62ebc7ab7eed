//! What a run came to: `summary.json` for programs, a table for a person.

mod quality;
mod speed;

pub use quality::Quality;
pub use speed::{ForwardTime, SPEED_FILE, Speed, read_pair};

use crate::evaluate::Evaluation;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::cache::manifest::Manifest;
use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file's name within the student's directory.
pub const SUMMARY_FILE: &str = "summary.json";

/// The cache's own record of what it cost; a cache without it is complete all the same.
const CACHE_TIMING_FILE: &str = "timing.json";

/// The numbers of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Elements of the teacher's tensors.
    pub teacher_parameters: u64,
    /// Elements of the student's, the tied decoder counted once.
    pub student_parameters: u64,
    /// Rows of an epoch, its tokens, and the steps made.
    pub training: crate::batcher::StepArithmetic,
    /// Of the student as it began; absent where nothing is held out.
    pub first_evaluation: Option<Evaluation>,
    /// Of the student as it is written; absent where nothing is held out.
    pub evaluation: Option<Evaluation>,
    /// More of the student as it is written; absent where nothing is held out, and in summaries from before it was noted.
    #[serde(default)]
    pub quality: Option<Quality>,
    /// Size of the student's model.safetensors, where it is there.
    #[serde(default)]
    pub student_safetensors_bytes: Option<u64>,
    /// Forward times and sizes, once `speed.json` is there.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// The cache's logits files over its tokens.
    pub logits_bytes_per_token: f64,
    /// The cache's hidden files over its tokens; 0 where there are none.
    pub hidden_bytes_per_token: f64,
    /// What precompute took, where the cache says so.
    pub precompute_seconds: Option<f64>,
    /// From the first batch to the last evaluation.
    pub train_seconds: f64,
    /// Training tokens over the time spent in steps.
    pub tokens_per_second: f64,
    /// What the products read, `fp32` or `bf16`; absent in summaries from before it was noted, which are of `fp32`.
    #[serde(default)]
    pub dtype: Option<String>,
    /// Threads that computed.
    pub threads: usize,
    /// What made the steps, as `--device` calls it; absent in summaries from before it was noted, which are of the processor.
    #[serde(default)]
    pub device: Option<String>,
    /// Where the curves are.
    pub curves: PathBuf,
    /// Where the student is.
    pub student: PathBuf,
}

impl Summary {
    /// Reads the summary in `directory`, to which its paths then point: it may have been moved since.
    ///
    /// # Errors
    /// [`Error::Data`] where it is missing or cannot be parsed.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(SUMMARY_FILE);
        let refuse = |found: String| {
            let remedy =
                "put back a copy; without the file, train report leaves its rows out, and train evaluate measures the student anew";
            Error::data(&path, "content", "the summary that train wrote", found, remedy)
        };
        let text = std::fs::read(&path).map_err(|error| refuse(error.to_string()))?;
        let stored: Self = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        let curves = stored.curves.file_name().map_or(stored.curves.clone(), |name| directory.join(name));
        Ok(Self { curves, student: directory.to_owned(), ..stored })
    }

    /// Takes in what the files in `directory` say of sizes and times.
    ///
    /// # Errors
    /// See [`read_pair`].
    pub fn with_files(self, directory: &Path) -> Result<Self> {
        let student_safetensors_bytes = std::fs::metadata(directory.join("model.safetensors")).ok().map(|file| file.len());
        Ok(Self { student_safetensors_bytes, speed: read_pair(directory)?.as_ref().map(Speed::of), ..self })
    }

    /// Publishes it in `directory`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(SUMMARY_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(Error::library("write", &path))?;
        text.push('\n');
        write_bytes_atomically(&path, text.as_bytes())
    }

    /// The table that ends a run: a name, a value and a remark a line.
    pub fn table(&self) -> String {
        let mut rows = named(vec![
            ("teacher parameters", thousands(self.teacher_parameters), String::new()),
            ("student parameters", thousands(self.student_parameters), of(self.student_parameters as f64, self.teacher_parameters as f64)),
        ]);
        match &self.evaluation {
            None => rows.push(("evaluation".to_owned(), "none".to_owned(), "nothing was held out".to_owned())),
            Some(found) => {
                let first = self.first_evaluation.map_or_else(Vec::new, |first| first.figures());
                for figure in found.figures() {
                    let first = first.iter().find(|first| first.key == figure.key);
                    let before = first.map_or(String::new(), |first| format!("{:.4} before training", first.student));
                    if let Some(teacher) = figure.teacher {
                        rows.push((format!("{}, teacher", figure.title), format!("{teacher:.4}"), String::new()));
                    }
                    let (name, remark) = match figure.teacher {
                        Some(_) => (format!("{}, student", figure.title), figure.against_teacher()),
                        None => (figure.title.to_owned(), before),
                    };
                    rows.push((name, format!("{:.4}", figure.student), remark));
                }
                let (count, what) = found.count();
                let sequences = format!("in {} sequences", thousands(found.sequences));
                // Sequences are not in themselves.
                let remark = if what == "sequences" { String::new() } else { sequences };
                rows.push((format!("held-out {what}"), thousands(count), remark));
            }
        }
        if let Some(quality) = &self.quality {
            rows.extend(quality.rows());
        }
        rows.extend(self.size_and_speed_rows());
        let seconds = |seconds: f64| format!("{seconds:.1}");
        let training = format!("{} steps, {:.0} tokens per second", self.training.steps, self.tokens_per_second);
        rows.extend(named(vec![
            ("cache bytes per token, logits", format!("{:.1}", self.logits_bytes_per_token), String::new()),
            ("cache bytes per token, hidden", format!("{:.1}", self.hidden_bytes_per_token), String::new()),
            ("seconds in precompute", self.precompute_seconds.map_or("unknown".to_owned(), seconds), String::new()),
            ("seconds in train", seconds(self.train_seconds), training),
        ]));
        let mut table = String::new();
        for (name, value, remark) in rows {
            table.push_str(format!("{name:<33}{value:>14}   {remark}").trim_end());
            table.push('\n');
        }
        table.push_str(&format!("curves:  {}\nstudent: {}\n", self.curves.display(), self.student.display()));
        table
    }

    fn size_and_speed_rows(&self) -> Rows {
        let mut rows = Rows::new();
        let mut size = |name: &str, student: u64, teacher: Option<u64>| {
            let teacher = teacher.map_or(String::new(), |teacher| format!("teacher {}", thousands(teacher)));
            rows.push((format!("{name}, bytes"), thousands(student), teacher));
        };
        if let Some(bytes) = self.student_safetensors_bytes {
            size("model.safetensors", bytes, self.speed.as_ref().and_then(|speed| speed.teacher_safetensors_bytes));
        }
        let Some(speed) = &self.speed else { return rows };
        size("model.onnx", speed.student_onnx_bytes, Some(speed.teacher_onnx_bytes));
        for time in &speed.times {
            let faster = if time.student_ms > 0.0 { time.teacher_ms / time.student_ms } else { 0.0 };
            let remark = format!("teacher {:.2}: {faster:.2} times the student's", time.teacher_ms);
            rows.push((format!("forward of batch {}, ms", time.batch), format!("{:.2}", time.student_ms), remark));
        }
        rows
    }
}

type Rows = Vec<(String, String, String)>;

fn named(rows: Vec<(&str, String, String)>) -> Rows {
    rows.into_iter().map(|(name, value, remark)| (name.to_owned(), value, remark)).collect()
}

/// Bytes of the logits files and of the hidden files per token.
pub fn bytes_per_token(manifest: &Manifest) -> (f64, f64) {
    let tokens = manifest.shards.iter().map(|shard| shard.tokens).sum::<u64>().max(1) as f64;
    let logits: u64 = manifest.shards.iter().map(|shard| shard.logits.bytes).sum();
    let hidden: u64 = manifest.shards.iter().filter_map(|shard| shard.hidden.as_ref()).map(|file| file.bytes).sum();
    (logits as f64 / tokens, hidden as f64 / tokens)
}

/// What the cache says it cost; nothing where it does not say.
pub fn precompute_seconds(cache: &Path) -> Option<f64> {
    let text = std::fs::read(cache.join(CACHE_TIMING_FILE)).ok()?;
    serde_json::from_slice::<serde_json::Value>(&text).ok()?.get("seconds")?.as_f64()
}

fn of(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} % of the teacher's", 100.0 * part / whole) } else { String::new() }
}

/// 12,345,678.
fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::{Duration, StepArithmetic};
    use crate::evaluate::Measures;
    use crate::evaluate::masked_lm::MaskedLm;

    fn summary() -> Summary {
        let measures = MaskedLm {
            masked_positions: 3210,
            student_teacher_top1: 0.9333,
            kl_nats: 0.19,
            teacher_gold_top1: 0.9,
            student_gold_top1: 0.891,
        };
        let of = |measures| Evaluation { sequences: 500, measures: Measures::MaskedLm(measures) };
        Summary {
            teacher_parameters: 6_700_000,
            student_parameters: 3_551_000,
            training: StepArithmetic::new(6000, 300_000, 2048, Duration::Epochs(3)),
            first_evaluation: Some(of(MaskedLm { student_teacher_top1: 0.79, ..measures })),
            evaluation: Some(of(measures)),
            quality: Some(Quality {
                student_ece: Some(0.0625),
                student_perplexity: Some(2.0),
                teacher_perplexity: Some(1.5),
                teacher_gold_positions: Some(3000),
                student_perplexity_there: Some(1.75),
                ..Quality::default()
            }),
            student_safetensors_bytes: Some(14_204_000),
            speed: Some(Speed {
                teacher_safetensors_bytes: Some(26_800_000),
                times: vec![ForwardTime { batch: 16, teacher_ms: 9.0, student_ms: 4.5 }],
                ..Speed::default()
            }),
            logits_bytes_per_token: 190.04,
            hidden_bytes_per_token: 400.0,
            precompute_seconds: None,
            train_seconds: 123.45,
            tokens_per_second: 7300.0,
            dtype: Some("fp32".to_owned()),
            threads: 2,
            device: None,
            curves: "out/curves.svg".into(),
            student: "out".into(),
        }
    }

    #[test]
    fn the_table_says_what_a_person_asks() {
        let table = summary().table();
        for text in ["0.0625", "student 1.7500 on", "14,204,000   teacher 26,800,000", "4.50   teacher 9.00: 2.00 times"] {
            assert!(table.contains(text), "no {text} in\n{table}");
        }
        for text in
            ["6,700,000", "53.0 % of the teacher's", "0.9333   0.7900 before", "99.0 % of", "3,210", "unknown", "123.5", "out/curves.svg"]
        {
            assert!(table.contains(text), "no {text} in\n{table}");
        }
        assert!(Summary { evaluation: None, ..summary() }.table().contains("nothing was held out"));
    }

    #[test]
    fn a_summary_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        summary().write(directory.path()).unwrap();
        let here = Summary { curves: directory.path().join("curves.svg"), student: directory.path().to_owned(), ..summary() };
        assert_eq!(Summary::read(directory.path()).unwrap(), here, "the directory that it was read from");
        for damaged in [Some("{"), None] {
            let path = directory.path().join(SUMMARY_FILE);
            damaged.map_or_else(|| std::fs::remove_file(&path), |text| std::fs::write(&path, text)).unwrap();
            let error = Summary::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains("summary.json: content: expected the summary") && error.contains("put back a copy"), "{error}");
        }
        assert_eq!(precompute_seconds(directory.path()), None);
        std::fs::write(directory.path().join(CACHE_TIMING_FILE), r#"{"seconds": 61.5, "teacher_seconds": 60.0}"#).unwrap();
        assert_eq!(precompute_seconds(directory.path()), Some(61.5));
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!([0, 12, 123, 1234, 1_234_567].map(thousands), ["0", "12", "123", "1,234", "1,234,567"]);
    }
}
