//! The run's index, `manifest.json`: what was asked, what it was made from, what is there, what is complete.
//!
//! It holds no clock value, host name or path, so a rerun writes the same bytes.

use crate::atomic_file::write_bytes_atomically;
use crate::cache::schema::{hidden_file_name, logits_file_name};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::target::{Pooling, TargetSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The version this crate writes and the newest it reads. It grows with any change that an older reader would misread.
pub const FORMAT_VERSION: u32 = 1;

/// The manifest's name within a cache directory.
pub const MANIFEST_FILE: &str = "manifest.json";

const REWRITE: &str = "let precompute write the cache again";

/// What a cache was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprints {
    /// Of the model file with its external data.
    pub teacher: Fingerprint,
    /// Of the tokenizer file.
    pub tokenizer: Fingerprint,
    /// Of the corpus files, in order.
    pub corpus: Fingerprint,
    /// Of everything that determines the bytes of the shards, the three above included.
    pub run: Fingerprint,
}

/// What is told of the teacher; nothing here is read back to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSummary {
    /// Elements of all its initialisers.
    pub parameters: u64,
    /// Encoder layers; 0 where unknown.
    pub layers: u32,
    /// Width of a hidden state; 0 where unknown.
    pub hidden_size: u32,
    /// The execution provider that ran it, for example `cpu`.
    pub provider: String,
    /// The output that was read as logits, or as the states or vectors of sentences.
    pub logits_output: String,
    /// For each stored layer, the tensor that was exposed as its hidden states.
    pub hidden_tensors: BTreeMap<u32, String>,
    /// How it makes one vector of a sentence, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Whether it scales that vector to length 1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub normalized: bool,
}

/// What the corpus came to, once it has been read to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusCounts {
    /// Documents read.
    pub documents: u64,
    /// Malformed records that were skipped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub malformed: u64,
    /// Documents dropped for having too few tokens.
    pub dropped_short: u64,
    /// Documents dropped for being mostly unknown tokens.
    pub dropped_unknown: u64,
    /// Documents of which the end was left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated: u64,
    /// Sequences per pass.
    pub sequences: u64,
    /// Tokens of all passes, special ones included.
    pub tokens: u64,
    /// Tokens fed to the teacher in all passes, padding included.
    pub padded_tokens: u64,
    /// Positions asked in all passes.
    pub positions: u64,
    /// Masked positions of all passes.
    pub masked: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name within the directory.
    pub name: String,
    /// Its rows: one per sequence.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// The digest of its content.
    pub sha256: Fingerprint,
}

/// -ln(a) over asked positions, a the teacher's mass on the stored ids at the first temperature: the Kullback-Leibler divergence of the
/// renormalised top-k from the whole distribution, in nats. Rounded to 6 significant digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MassSummary {
    /// The mean.
    pub mean: f64,
    /// The smallest value that at least 90 % of the positions do not exceed.
    pub p90: f64,
    /// The same for 99 %.
    pub p99: f64,
}

impl MassSummary {
    /// The summary of one value per position; zeros for none.
    pub fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len();
        let quantile = |percent: usize| round(values[(count * percent).div_ceil(100).max(1) - 1]);
        Self { mean: round(values.iter().sum::<f64>() / count as f64), p90: quantile(90), p99: quantile(99) }
    }
}

/// 6 significant digits: few enough that JSON gives the very number back, whatever parser reads it.
fn round(value: f64) -> f64 {
    format!("{value:.5e}").parse().expect("a number written by format! parses")
}

/// One shard: a contiguous range of the sequences of one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its number, from 0 without gaps.
    pub index: u32,
    /// The pass of every row.
    pub pass: u16,
    /// The `sequence_id` of its first row; the others follow without gaps.
    pub first_sequence: u64,
    /// Tokens of its rows.
    pub tokens: u64,
    /// Tokens fed to the teacher for its rows, padding included.
    pub padded_tokens: u64,
    /// Positions asked.
    pub positions: u64,
    /// Masked positions.
    pub masked: u64,
    /// Inputs and logits.
    pub logits: FileEntry,
    /// Hidden states, where the spec has layers.
    pub hidden: Option<FileEntry>,
    /// How much of the teacher's probability the top-k leaves out.
    pub minus_log_stored_mass: MassSummary,
}

/// The index of a cache directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The program and its version.
    pub writer: String,
    /// What every record promises.
    pub spec: TargetSpec,
    /// What the cache was made from.
    pub fingerprints: Fingerprints,
    /// The settings that determine the content, by name as typed; for a person, and to say what differs on a rerun.
    pub settings: BTreeMap<String, Value>,
    /// What is told of the teacher.
    pub teacher: TeacherSummary,
    /// What the corpus came to; present once complete.
    pub counts: Option<CorpusCounts>,
    /// The shards, in order.
    pub shards: Vec<ShardEntry>,
    /// Whether every pass is there to its end.
    pub complete: bool,
}

impl Manifest {
    /// Reads `manifest.json` in `directory`; the version is looked at before anything else, and the entries are checked against each other.
    ///
    /// # Errors
    /// [`Error::Data`] naming the field for a file that is missing, of another version, or contradicts itself; [`Error::Io`] for one that
    /// cannot be read.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST_FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let remedy = "name a directory that precompute has written";
                return Err(Error::data(&path, "manifest", "the index of a cache", "no such file", remedy));
            }
            other => other.map_err(Error::io("read", &path))?,
        };
        check_version(&path, &bytes)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            Error::data(&path, place, format!("a manifest of format version {FORMAT_VERSION}"), error.to_string(), REWRITE)
        })?;
        manifest.check().map_err(|(field, expected, found)| Error::data(&path, field, expected, found, REWRITE))?;
        Ok(manifest)
    }

    /// Publishes the manifest in `directory`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses; [`Error::Invalid`] for a manifest that contradicts itself, before anything is written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        self.check().map_err(|(field, expected, found)| Error::invalid(field, expected, found))?;
        let path = directory.join(MANIFEST_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(Error::library("write", &path))?;
        text.push('\n');
        write_bytes_atomically(&path, text.as_bytes())
    }

    /// What keeps `other`, a run as asked for now, from continuing this one: (name, stored, asked), in the order of the names.
    ///
    /// Settings and inputs come first. The targets and the run's own fingerprint follow from them, so those are named only where nothing
    /// else differs.
    pub fn differing_settings(&self, other: &Self) -> Vec<(String, String, String)> {
        let mut differing = differing_values(&self.settings, &other.settings);
        let (stored, asked) = (&self.fingerprints, &other.fingerprints);
        let inputs = [
            ("content of the teacher", stored.teacher, asked.teacher),
            ("content of the tokenizer", stored.tokenizer, asked.tokenizer),
            ("content of the corpus", stored.corpus, asked.corpus),
        ];
        let named = |(name, stored, asked): (&str, Fingerprint, Fingerprint)| {
            (stored != asked).then(|| (name.to_string(), format!("sha256 {stored}"), format!("sha256 {asked}")))
        };
        differing.extend(inputs.into_iter().filter_map(named));
        if differing.is_empty() {
            differing = differing_values(&spec_fields(&self.spec), &spec_fields(&other.spec));
        }
        if differing.is_empty() {
            differing.extend(named(("run", stored.run, asked.run)));
        }
        differing
    }

    /// (field, expected, found) of the first contradiction.
    fn check(&self) -> std::result::Result<(), (String, String, String)> {
        if self.format_version != FORMAT_VERSION {
            return Err(("format_version".into(), FORMAT_VERSION.to_string(), self.format_version.to_string()));
        }
        if self.complete != self.counts.is_some() {
            let found = format!("complete: {} with counts {}", self.complete, if self.counts.is_some() { "present" } else { "absent" });
            return Err(("counts".into(), "counts exactly where the cache is complete".into(), found));
        }
        for (i, shard) in self.shards.iter().enumerate() {
            shard.check(i, &self.spec).map_err(|(field, expected, found)| (format!("shards[{i}].{field}"), expected, found))?;
        }
        Ok(())
    }
}

impl ShardEntry {
    fn check(&self, number: usize, spec: &TargetSpec) -> std::result::Result<(), (String, String, String)> {
        let expect = |field: &str, expected: String, found: String| {
            if expected == found { Ok(()) } else { Err((field.to_string(), expected, found)) }
        };
        expect("index", number.to_string(), self.index.to_string())?;
        expect("logits.name", logits_file_name(self.index), self.logits.name.clone())?;
        let presence = |present: bool| if present { "a hidden file" } else { "no hidden file" }.to_string();
        expect("hidden", presence(!spec.hidden_layers().is_empty()), presence(self.hidden.is_some()))?;
        if let Some(hidden) = &self.hidden {
            expect("hidden.name", hidden_file_name(self.index), hidden.name.clone())?;
            expect("hidden.rows", format!("the logits file's {}", self.logits.rows), format!("the logits file's {}", hidden.rows))?;
        }
        if self.logits.rows == 0 || self.first_sequence.checked_add(self.logits.rows).is_none() {
            let found = format!("{} rows from sequence {}", self.logits.rows, self.first_sequence);
            return Err(("logits.rows".into(), "at least 1, in a range of u64".into(), found));
        }
        Ok(())
    }
}

fn check_version(path: &Path, bytes: &[u8]) -> Result<()> {
    let refuse = |found: String| {
        let remedy = "name a directory that precompute has written";
        Error::data(path, "format_version", "a JSON object with a format version", found, remedy)
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    let version = value.get("format_version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
    check_format_version(path, "format_version", version.ok_or_else(|| refuse("another value".to_string()))?)
}

/// Refuses every version but the one this crate knows.
pub(super) fn check_format_version(path: &Path, field: &str, found: u32) -> Result<()> {
    if found == FORMAT_VERSION {
        return Ok(());
    }
    let remedy = if found > FORMAT_VERSION { "use the newer programs that wrote it" } else { REWRITE };
    Err(Error::data(path, field, format!("format version {FORMAT_VERSION}"), format!("version {found}"), remedy))
}

fn spec_fields(spec: &TargetSpec) -> BTreeMap<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

fn differing_values(stored: &BTreeMap<String, Value>, asked: &BTreeMap<String, Value>) -> Vec<(String, String, String)> {
    let names: BTreeSet<&String> = stored.keys().chain(asked.keys()).collect();
    let text = |value: Option<&Value>| match value {
        None => "not set".to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let differing = names.into_iter().filter(|name| stored.get(*name) != asked.get(*name));
    differing.map(|name| (name.clone(), text(stored.get(name)), text(asked.get(name)))).collect()
}

#[cfg(test)]
mod tests;
