//! The student's directory as a whole: whether this run may write there, and the record by which a later run knows what it holds.

use crate::export::MODEL_FILE;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::directory_lock::{DirectoryLock, LOCK_FILE};
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The record's name within the student's directory.
pub const RUN_FILE: &str = "run.json";

/// Settings that may change when a run goes on. With another length the learning rate follows the new one from there on, and what comes out is
/// not what a run of that length from the start would give; the others change no bit of the student.
pub const MAY_CHANGE: [&str; 4] = ["epochs", "steps", "log-every", "eval-every"];

/// 2 since `init-from` stands for the values taken, not for the whole file.
const RECORD_VERSION: u32 = 2;

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
    /// The digest of a finished student's `model.safetensors`; absent before, and in records from before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<Fingerprint>,
}

/// What a directory holds for this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// Nothing.
    Empty,
    /// A run of the same settings that ended early.
    Unfinished,
    /// The finished student of the same settings but for those that may change.
    Finished {
        /// Steps behind it.
        steps: u64,
        /// Whether it was asked to train as long as now.
        same_length: bool,
    },
}

impl RunRecord {
    /// A record of `settings`.
    pub fn new(settings: &BTreeMap<String, String>, completed_steps: u64, finished: bool) -> Self {
        Self { record_version: RECORD_VERSION, settings: settings.clone(), completed_steps, finished, model_sha256: None }
    }

    /// The record with the digest of the student that lies in `directory`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn with_model(self, directory: &Path) -> Result<Self> {
        Ok(Self { model_sha256: Some(Fingerprint::of_file(&directory.join(MODEL_FILE))?), ..self })
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            Error::data(path, "content", "the record that train wrote", error.to_string(), "put back a copy of it, or choose another --out")
        })
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

/// Takes `directory` for this run alone, making it where it is missing.
///
/// # Errors
/// [`Error::Usage`] where it cannot be made or written, or another run is at work in it.
pub fn claim(directory: &Path) -> Result<DirectoryLock> {
    std::fs::create_dir_all(directory).map_err(|error| unusable(directory, &error))?;
    DirectoryLock::take(directory, "--out").map_err(|error| match error {
        Error::Io { source, .. } => unusable(directory, &source),
        other => other,
    })
}

fn unusable(directory: &Path, error: &std::io::Error) -> Error {
    let found = format!("{}: {error}", directory.display());
    Error::usage("--out", "a directory that this program may make and write", found, "choose another --out, or mend what stands in its way")
}

/// Looks into `directory`, which need not exist, and changes nothing.
///
/// # Errors
/// [`Error::Usage`] where it holds something else, or a student of other settings, saying which, or cannot be looked into;
/// [`Error::Library`] for a record that cannot be parsed.
pub fn examine(directory: &Path, settings: &BTreeMap<String, String>) -> Result<Occupancy> {
    let path = directory.join(RUN_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return examine_without_record(directory),
        Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::PermissionDenied) => {
            return Err(unusable(directory, &error));
        }
        other => other.map_err(Error::io("read", &path))?,
    };
    let record = RunRecord::parse(&text, &path)?;
    if record.record_version != RECORD_VERSION {
        let remedy = "use the program that began it, or choose another --out";
        return Err(Error::data(path, "record_version", RECORD_VERSION.to_string(), record.record_version.to_string(), remedy));
    }
    refuse_other_settings(directory, &record.settings, settings)?;
    let same = |name: &str| record.settings.get(name) == settings.get(name);
    let same_length = same("epochs") && same("steps");
    Ok(if record.finished { Occupancy::Finished { steps: record.completed_steps, same_length } } else { Occupancy::Unfinished })
}

/// Refuses a finished student in `directory` whose weights are no longer those that were written. `checkpoints`, ascending, may hold them still.
///
/// # Errors
/// [`Error::Data`], saying where the weights still are.
pub fn check_finished(directory: &Path, checkpoints: &[(u64, PathBuf)]) -> Result<()> {
    let (record, model) = (directory.join(RUN_FILE), directory.join(MODEL_FILE));
    let text = std::fs::read_to_string(&record).map_err(Error::io("read", &record))?;
    let record = RunRecord::parse(&text, &record)?;
    let found = model.is_file().then(|| Fingerprint::of_file(&model)).transpose()?;
    let same = match record.model_sha256 {
        Some(expected) => found == Some(expected),
        None => found.is_some(),
    };
    if same {
        return Ok(());
    }
    let expected =
        record.model_sha256.map_or("the finished student's weights".to_owned(), |sha256| format!("{sha256}, as {RUN_FILE} notes"));
    let found = found.map_or("no such file".to_owned(), |sha256| sha256.to_string());
    let copies = checkpoints.iter().rev().map(|(_, path)| path.join(MODEL_FILE));
    let copy = copies.into_iter().find(|path| record.model_sha256.is_some() && Fingerprint::of_file(path).ok() == record.model_sha256);
    let remedy = match copy {
        Some(copy) => format!("copy {} there: it holds the same weights", copy.display()),
        None => "choose another --out, or remove that one to train again".to_owned(),
    };
    Err(Error::data(model, "SHA-256", expected, found, remedy))
}

/// Refuses settings that make `asked` another run than the one that `directory` holds.
///
/// # Errors
/// [`Error::Usage`] with both values of each.
pub fn refuse_other_settings(directory: &Path, stored: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> Result<()> {
    let differing = differences(stored, asked);
    if differing.is_empty() {
        return Ok(());
    }
    let expected = format!("a new directory, or a student of the same settings in {}", directory.display());
    Err(Error::usage("--out", expected, format!("another: {}", differing.join("; ")), "choose another --out, or remove that one"))
}

fn examine_without_record(directory: &Path) -> Result<Occupancy> {
    if !directory.exists() {
        return Ok(Occupancy::Empty);
    }
    for entry in std::fs::read_dir(directory).map_err(|error| unusable(directory, &error))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        // What a run that was killed while it wrote its first record leaves behind.
        if name != LOCK_FILE && !(name.starts_with('.') && name.ends_with(".partial")) {
            let expected = format!("a new or empty directory, or an earlier run's, at {}", directory.display());
            return Err(Error::usage("--out", expected, format!("{name} and no {RUN_FILE}"), "choose another --out"));
        }
    }
    Ok(Occupancy::Empty)
}

/// What to do where the system refuses a file below `directory` in the middle of a run: `last` is the newest checkpoint. Other errors stay as
/// they are.
pub fn explain_refusal(error: Error, directory: &Path, last: Option<&Path>) -> Error {
    let Error::Io { path, action, source } = error else { return error };
    let expected = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => "room for what the run writes",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "a file that this program may write",
        _ => return Error::Io { path, action, source },
    };
    if !path.starts_with(directory) {
        return Error::Io { path, action, source };
    }
    let remedy = match last {
        Some(last) => format!("mend that and give the same command: it goes on from {}, which is whole", last.display()),
        None => "mend that and give the same command; there is no checkpoint yet".to_owned(),
    };
    Error::data(path, action, expected, source.to_string(), remedy)
}

/// How a file or cache is told from another, for a person.
pub fn content(fingerprint: &str) -> String {
    format!("the content of SHA-256 {fingerprint}")
}

/// `name: is stored, asked is ...` for each setting that differs.
fn differences(stored: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = stored.keys().chain(asked.keys()).collect();
    let said = |value: Option<&String>| match value {
        None => "not given".to_owned(),
        Some(value) if value.parse::<Fingerprint>().is_ok() => content(value),
        Some(value) => value.clone(),
    };
    names
        .into_iter()
        .filter(|name| !MAY_CHANGE.contains(&name.as_str()) && stored.get(*name) != asked.get(*name))
        .map(|name| {
            let flag = match name.as_str() {
                "teacher" => "the cache's teacher".to_owned(),
                "held-out-by" => "what is held out together".to_owned(),
                _ => format!("--{name}"),
            };
            format!("{flag} was {}, now {}", said(stored.get(name)), said(asked.get(name)))
        })
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
    fn a_place_that_cannot_be_a_directory_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for out in [file.clone(), file.join("below")] {
            for error in [examine(&out, &settings(0)).unwrap_err(), claim(&out).unwrap_err()] {
                assert_eq!(error.exit_code(), 2, "{error}");
                assert!(
                    error.to_string().contains("--out: expected a directory") && error.to_string().contains("choose another"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_full_disk_is_explained() {
        let full = || Error::io("write", "out/checkpoints/x")(std::io::Error::from(ErrorKind::StorageFull));
        let error = explain_refusal(full(), Path::new("out"), Some(Path::new("out/checkpoints/step-1"))).to_string();
        assert!(error.contains("expected room") && error.contains("goes on from out/checkpoints/step-1"), "{error}");
        assert!(matches!(explain_refusal(full(), Path::new("elsewhere"), None), Error::Io { .. }));
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
    fn a_finished_student_whose_weights_changed_is_refused_with_the_place_of_its_copy() {
        let (directory, checkpoint) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (out, model) = (directory.path(), directory.path().join(MODEL_FILE));
        std::fs::write(&model, "weights").unwrap();
        std::fs::write(checkpoint.path().join(MODEL_FILE), "weights").unwrap();
        let checkpoints = [(3, checkpoint.path().to_owned())];
        RunRecord::new(&settings(3), 3, true).with_model(out).unwrap().write(out).unwrap();
        check_finished(out, &checkpoints).unwrap();
        let refused = |checkpoints: &[(u64, PathBuf)]| check_finished(out, checkpoints).unwrap_err().to_string();
        std::fs::write(&model, "weighty").unwrap();
        let changed = refused(&checkpoints);
        let digest = Fingerprint::of_bytes(b"weights").to_string();
        assert!(changed.contains(&digest) && changed.contains(&format!("copy {}", checkpoint.path().display())), "{changed}");
        std::fs::remove_file(&model).unwrap();
        let missing = refused(&[]);
        assert!(missing.contains("model.safetensors: SHA-256") && missing.contains("found no such file"), "{missing}");
        RunRecord::new(&settings(3), 3, true).write(out).unwrap();
        assert!(refused(&checkpoints).contains("no such file"), "a record without a digest");
        std::fs::write(out.join(RUN_FILE), "{").unwrap();
        let damaged = examine(out, &settings(3)).unwrap_err().to_string();
        assert!(damaged.contains("run.json: content: expected the record") && damaged.contains("another --out"), "{damaged}");
    }

    #[test]
    fn the_same_settings_are_the_same_run_and_others_are_named() {
        let directory = tempfile::tempdir().unwrap();
        RunRecord::new(&settings(3), 17, false).write(directory.path()).unwrap();
        assert_eq!(examine(directory.path(), &settings(3)).unwrap(), Occupancy::Unfinished);
        RunRecord::new(&settings(3), 20, true).write(directory.path()).unwrap();
        assert_eq!(examine(directory.path(), &settings(3)).unwrap(), Occupancy::Finished { steps: 20, same_length: true });
        let mut longer = settings(3);
        longer.insert("steps".to_owned(), "30".to_owned());
        assert_eq!(examine(directory.path(), &longer).unwrap(), Occupancy::Finished { steps: 20, same_length: false });
        let error = examine(directory.path(), &settings(4)).unwrap_err().to_string();
        assert!(error.contains("--seed was 3, now 4"), "{error}");
        assert!(!error.contains("learning-rate"), "{error}");
    }
}
