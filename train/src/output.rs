//! The student's directory as a whole: whether this run may write there, and the record by which a later run knows what it holds.

use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The record's name within the student's directory.
pub const RUN_FILE: &str = "run.json";

const RECORD_VERSION: u32 = 1;

/// What a directory was trained with, and how far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Grows with any change that an older program would misread.
    pub record_version: u32,
    /// See [`crate::config::Config`]: equal settings are the same run.
    pub settings: BTreeMap<String, String>,
    /// Optimiser steps behind the student in the directory.
    pub completed_steps: u64,
    /// Whether these are all.
    pub finished: bool,
}

/// What a directory holds for this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// Nothing.
    Empty,
    /// A run of the same settings that ended early, after so many steps that are lost.
    Unfinished(u64),
    /// The finished student of the same settings.
    Finished,
}

impl RunRecord {
    /// A record of `settings`.
    pub fn new(settings: &BTreeMap<String, String>, completed_steps: u64, finished: bool) -> Self {
        Self { record_version: RECORD_VERSION, settings: settings.clone(), completed_steps, finished }
    }

    /// Publishes the record in `directory`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(RUN_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(Error::library("write", &path))?;
        text.push('\n');
        write_bytes_atomically(&path, text.as_bytes())
    }
}

/// Looks into `directory`, which need not exist, and changes nothing.
///
/// # Errors
/// [`Error::Usage`] where it holds something else, or a student of other settings, saying which; [`Error::Library`] for a record that
/// cannot be parsed.
pub fn examine(directory: &Path, settings: &BTreeMap<String, String>) -> Result<Occupancy> {
    let path = directory.join(RUN_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return examine_without_record(directory),
        other => other.map_err(Error::io("read", &path))?,
    };
    let record: RunRecord = serde_json::from_str(&text).map_err(Error::library("parse", &path))?;
    let differing = differences(&record.settings, settings);
    if !differing.is_empty() || record.record_version != RECORD_VERSION {
        let expected = format!("a new directory, or a student of the same settings in {}", directory.display());
        return Err(Error::usage(
            "--out",
            expected,
            format!("another: {}", differing.join("; ")),
            "choose another --out, or remove that one",
        ));
    }
    Ok(if record.finished { Occupancy::Finished } else { Occupancy::Unfinished(record.completed_steps) })
}

fn examine_without_record(directory: &Path) -> Result<Occupancy> {
    if !directory.exists() {
        return Ok(Occupancy::Empty);
    }
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        // What a run that was killed while it wrote its first record leaves behind.
        if !(name.starts_with('.') && name.ends_with(".partial")) {
            let expected = format!("a new or empty directory, or an earlier run's, at {}", directory.display());
            return Err(Error::usage("--out", expected, format!("{name} and no {RUN_FILE}"), "choose another --out"));
        }
    }
    Ok(Occupancy::Empty)
}

/// `name: is stored, asked is ...` for each setting that differs.
fn differences(stored: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = stored.keys().chain(asked.keys()).collect();
    let said = |value: Option<&String>| value.cloned().unwrap_or("not given".to_owned());
    names
        .into_iter()
        .filter(|name| stored.get(*name) != asked.get(*name))
        .map(|name| format!("--{name} was {}, now {}", said(stored.get(name)), said(asked.get(name))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64) -> BTreeMap<String, String> {
        BTreeMap::from([("seed".to_owned(), seed.to_string()), ("learning-rate".to_owned(), 5e-4.to_string())])
    }

    #[test]
    fn an_absent_or_empty_directory_may_be_used() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(examine(&directory.path().join("new"), &settings(0)).unwrap(), Occupancy::Empty);
        std::fs::write(directory.path().join(".run.json.partial"), "{").unwrap();
        assert_eq!(examine(directory.path(), &settings(0)).unwrap(), Occupancy::Empty);
    }

    #[test]
    fn foreign_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.tex"), "").unwrap();
        let error = examine(directory.path(), &settings(0)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("thesis.tex"), "{error}");
    }

    #[test]
    fn the_same_settings_are_the_same_run_and_others_are_named() {
        let directory = tempfile::tempdir().unwrap();
        RunRecord::new(&settings(3), 17, false).write(directory.path()).unwrap();
        assert_eq!(examine(directory.path(), &settings(3)).unwrap(), Occupancy::Unfinished(17));
        RunRecord::new(&settings(3), 20, true).write(directory.path()).unwrap();
        assert_eq!(examine(directory.path(), &settings(3)).unwrap(), Occupancy::Finished);
        let error = examine(directory.path(), &settings(4)).unwrap_err().to_string();
        assert!(error.contains("--seed was 3, now 4"), "{error}");
        assert!(!error.contains("learning-rate"), "{error}");
    }
}
