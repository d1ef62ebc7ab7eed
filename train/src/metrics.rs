//! `metrics.jsonl`: a line per logged step and per evaluation, units in the keys.

use crate::evaluate::Evaluation;
use crate::loss::{PARTS, PartValues};
use crate::tensorboard::EventFile;
use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The file's name within the student's directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Means over the steps since the line before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Completed optimiser steps.
    pub step: u64,
    /// Epochs that these make.
    pub epoch: f64,
    /// The weighted total that is minimised.
    pub loss: f64,
    /// Its parts before their weights, by their keys; only those that were computed, each the mean over the steps that did.
    #[serde(flatten)]
    pub parts: PartValues,
    /// Of the last of the steps.
    pub learning_rate: f64,
    /// Norm of the whole gradient before clipping.
    pub gradient_norm: f64,
    /// Throughput, waiting for data included, evaluations not.
    pub tokens_per_second: f64,
    /// Time that a step waited for its data; near zero where reading is hidden behind computing.
    pub data_wait_ms: f64,
    /// Time of a step's forward passes.
    pub forward_ms: f64,
    /// Time of a step's backward passes.
    pub backward_ms: f64,
    /// Time of a step's clipping and update.
    pub update_ms: f64,
    /// Since training began, evaluations included.
    pub elapsed_seconds: f64,
    /// Steps so far that were skipped since their loss or gradient was not finite; the means are over the others.
    #[serde(default)]
    pub skipped_steps: u64,
}

/// An evaluation and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationMetrics {
    /// Completed optimiser steps.
    pub step: u64,
    /// Epochs that these make.
    pub epoch: f64,
    /// What was found.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// How long it took.
    pub evaluation_seconds: f64,
    /// Since training began.
    pub elapsed_seconds: f64,
}

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// Of training.
    Step(StepMetrics),
    /// Of an evaluation.
    Evaluation(EvaluationMetrics),
}

/// The log of a run, with TensorBoard's beside it. Each line is written with one call, so that the file holds whole lines at any moment.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: EventFile,
    bytes: u64,
    lines: Vec<Line>,
}

impl MetricsLog {
    /// Starts the log in `directory`, over an older one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(METRICS_FILE);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let events = EventFile::create(directory, [])?;
        Ok(Self { path, file, events, bytes: 0, lines: Vec::new() })
    }

    /// Takes up the log in `directory` where it had `bytes` bytes: what came after that moment is cut off and will be written again.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Data`] for a log that is shorter or does not end in a line there.
    pub fn resume(directory: &Path, bytes: u64) -> Result<Self> {
        let path = directory.join(METRICS_FILE);
        let mut file = File::options().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        let mut text = String::new();
        (&mut file).take(bytes).read_to_string(&mut text).map_err(Error::io("read", &path))?;
        if text.len() as u64 != bytes || !(text.is_empty() || text.ends_with('\n')) {
            let expected = format!("whole lines in the first {bytes} bytes, as the checkpoint has it");
            let remedy = "put the run's log back, or remove the student's directory to train from the start";
            return Err(Error::data(&path, "length", expected, format!("{} bytes", text.len()), remedy));
        }
        let lines = text.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>().map_err(Error::library("parse", &path))?;
        let values: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        file.set_len(bytes).map_err(Error::io("cut", &path))?;
        file.seek(SeekFrom::Start(bytes)).map_err(Error::io("seek in", &path))?;
        let events = EventFile::create(directory, &values)?;
        Ok(Self { path, file, events, bytes, lines })
    }

    /// Makes what is written last; returns the file's length.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))?;
        Ok(self.bytes)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, line: Line) -> Result<()> {
        let mut text = serde_json::to_string(&line).map_err(Error::library("write", &self.path))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))?;
        self.bytes += text.len() as u64;
        self.events.append(&serde_json::to_value(line).map_err(Error::library("write", &self.path))?)?;
        self.lines.push(line);
        Ok(())
    }

    /// What has been written, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// Sums over steps, from which the next [`StepMetrics`] is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepSums {
    /// Steps summed.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Steps that computed each part of the loss.
    #[serde(deserialize_with = "part_steps")]
    pub part_steps: [u64; PARTS],
    /// Sums of the fields of the same name; `step`, `epoch`, `learning_rate`, `tokens_per_second`, `elapsed_seconds`
    /// and `skipped_steps` are not used.
    pub totals: StepMetrics,
}

/// Checkpoints of earlier versions know fewer parts, the first ones.
fn part_steps<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<[u64; PARTS], D::Error> {
    let (counts, mut all) = (Vec::<u64>::deserialize(deserializer)?, [0; PARTS]);
    let known =
        all.get_mut(..counts.len()).ok_or_else(|| serde::de::Error::invalid_length(counts.len(), &"at most one count for each part"))?;
    known.copy_from_slice(&counts);
    Ok(all)
}

impl StepSums {
    /// Adds one step of `tokens` tokens.
    pub fn add(&mut self, tokens: u64, of: &StepMetrics) {
        self.steps += 1;
        self.tokens += tokens;
        let total = &mut self.totals;
        total.loss += of.loss;
        total.parts.add(&of.parts, &mut self.part_steps);
        total.gradient_norm += of.gradient_norm;
        total.data_wait_ms += of.data_wait_ms;
        total.forward_ms += of.forward_ms;
        total.backward_ms += of.backward_ms;
        total.update_ms += of.update_ms;
        total.learning_rate = of.learning_rate;
    }

    /// The line of the steps added so far, after `step` steps; starts again from none.
    pub fn take(&mut self, step: u64, epoch: f64, elapsed_seconds: f64) -> StepMetrics {
        let Self { steps, tokens, part_steps, totals } = std::mem::take(self);
        let mean = |sum: f64| sum / steps.max(1) as f64;
        let milliseconds = totals.data_wait_ms + totals.forward_ms + totals.backward_ms + totals.update_ms;
        StepMetrics {
            step,
            epoch,
            loss: mean(totals.loss),
            parts: totals.parts.means(&part_steps),
            learning_rate: totals.learning_rate,
            gradient_norm: mean(totals.gradient_norm),
            tokens_per_second: if milliseconds > 0.0 { tokens as f64 * 1000.0 / milliseconds } else { 0.0 },
            data_wait_ms: mean(totals.data_wait_ms),
            forward_ms: mean(totals.forward_ms),
            backward_ms: mean(totals.backward_ms),
            update_ms: mean(totals.update_ms),
            elapsed_seconds,
            skipped_steps: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Measures;
    use crate::evaluate::masked_lm::MaskedLm;
    use crate::loss::Part;

    #[test]
    fn a_line_is_the_mean_of_its_steps() {
        let mut sums = StepSums::default();
        let step = |loss: f64, rate: f64| StepMetrics { loss, learning_rate: rate, forward_ms: 250.0, ..StepMetrics::default() };
        sums.add(100, &step(3.0, 0.1));
        sums.add(300, &step(1.0, 0.2));
        let line = sums.take(2, 0.5, 1.5);
        assert_eq!((line.loss, line.learning_rate, line.tokens_per_second, line.forward_ms), (2.0, 0.2, 800.0, 250.0));
        assert_eq!(sums.steps, 0, "the sums start again");
    }

    #[test]
    fn lines_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(directory.path()).unwrap();
        let measures = Measures::MaskedLm(MaskedLm { masked_positions: 4, student_teacher_top1: 0.5, ..MaskedLm::default() });
        let evaluation = Evaluation { sequences: 3, measures };
        let evaluated = EvaluationMetrics { step: 0, epoch: 0.0, evaluation, evaluation_seconds: 0.25, elapsed_seconds: 0.5 };
        log.write(Line::Evaluation(evaluated)).unwrap();
        let parts = PartValues::of(&[(Part::Ce, 0.1), (Part::HiddenMse, 0.25)]);
        log.write(Line::Step(StepMetrics { step: 10, loss: 1.25, parts, ..StepMetrics::default() })).unwrap();
        let text = std::fs::read_to_string(directory.path().join(METRICS_FILE)).unwrap();
        let read: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, log.lines());
        assert!(text.starts_with(r#"{"kind":"evaluation","step":0,"epoch":0.0,"sequences":3,"masked_positions":4,"student_"#), "{text}");
        assert!(text.contains(r#""loss":1.25,"ce_nats":0.1,"hidden_mse":0.25,"learning_rate""#), "{text}");
    }

    #[test]
    fn a_log_goes_on_where_it_is_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(METRICS_FILE);
        let line = |step| Line::Step(StepMetrics { step, ..StepMetrics::default() });
        let mut log = MetricsLog::create(directory.path()).unwrap();
        log.write(line(1)).unwrap();
        let bytes = log.sync().unwrap();
        log.write(line(2)).unwrap();
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"{\"kind".to_vec()].concat()).unwrap();
        let mut log = MetricsLog::resume(directory.path(), bytes).unwrap();
        assert_eq!(log.lines(), [line(1)]);
        log.write(line(3)).unwrap();
        assert_eq!(log.sync().unwrap(), std::fs::metadata(&path).unwrap().len());
        assert_eq!(MetricsLog::resume(directory.path(), log.bytes).unwrap().lines(), [line(1), line(3)]);
        let error = MetricsLog::resume(directory.path(), bytes + 3).err().unwrap().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("whole lines"), "{error}");
    }
}
