//! Writing a checkpoint.

use super::{CONFIGURATION_FILE, Checkpoints, FORMAT_VERSION, FileRecord, OPTIMIZER_FILE, PROJECTIONS_FILE, STATE_FILE, State, exact};
use crate::export;
use crate::kernels::ParameterRef;
use crate::optim::Moments;
use crate::student::Student;
use crate::student::tensor_writer::{Named, write_tensors};
use crate::trainer::RunState;
use logitcache::atomic_directory::write_directory_atomically;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run between two steps.
pub struct Snapshot<'a> {
    /// The student.
    pub student: &'a Student,
    /// What is trained, in the optimiser's order: the student's parameters, then those that are not the student's.
    pub trainable: &'a [ParameterRef],
    /// The optimiser's memory.
    pub moments: &'a Moments,
    /// What the loop carries.
    pub run: &'a RunState,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Length of the synced log.
    pub metrics_bytes: u64,
}

impl Checkpoints {
    /// Publishes `snapshot`, then removes what is no longer to be kept; returns the checkpoint's directory. One that is there already, which
    /// is the one the run went on from, is left alone.
    ///
    /// # Errors
    /// A value that is not finite, or a refusal of the file system; the earlier checkpoints are then as they were.
    pub fn save(&self, snapshot: &Snapshot<'_>) -> Result<PathBuf> {
        let path = self.path(snapshot.run.step);
        if !path.exists() {
            write_directory_atomically(&path, |partial| self.write(snapshot, partial))?;
        }
        self.prune()?;
        Ok(path)
    }

    fn write(&self, snapshot: &Snapshot<'_>, directory: &Path) -> Result<()> {
        let Snapshot { student, trainable, moments, run, steps_per_epoch, metrics_bytes } = *snapshot;
        export::save(student, &self.teacher_files, directory)?;
        write_moments(&directory.join(OPTIMIZER_FILE), trainable, moments)?;
        let projections = trainable.get(student.parameters().len()..).unwrap_or_default();
        if !projections.is_empty() {
            let named: Vec<Named> = projections.iter().map(|each| (each.name().to_owned(), each.shape().dims().to_vec())).collect();
            write_tensors(&directory.join(PROJECTIONS_FILE), &named, |i, sink| export::with_f32(&projections[i], sink)?)?;
        }
        let configuration = self.out.join(CONFIGURATION_FILE);
        if configuration.is_file() {
            let bytes = std::fs::read(&configuration).map_err(Error::io("read", &configuration))?;
            write_bytes_atomically(&directory.join(CONFIGURATION_FILE), &bytes)?;
        }
        let state = State {
            format_version: FORMAT_VERSION,
            settings: self.settings.clone(),
            threads: self.threads,
            device: self.device.clone(),
            epoch: run.step / steps_per_epoch.max(1),
            step_in_epoch: run.step % steps_per_epoch.max(1),
            optimizer_steps: moments.step,
            metrics_bytes,
            run: run.clone(),
            files: file_records(directory)?,
        };
        write_state(&state, &directory.join(STATE_FILE))
    }
}

/// The state and a digest of it, so that damage to this file shows as damage to the others does.
fn write_state(state: &State, path: &Path) -> Result<()> {
    let json = exact::to_value(state).map_err(Error::library("write", path))?;
    let sha256 = Fingerprint::of_bytes(&serde_json::to_vec(&json).map_err(Error::library("write", path))?);
    let whole = serde_json::json!({ "sha256": sha256, "state": json });
    let mut text = serde_json::to_string_pretty(&whole).map_err(Error::library("write", path))?;
    text.push('\n');
    write_bytes_atomically(path, text.as_bytes())
}

/// Of every file in `directory` and its folders, by its path within.
fn file_records(directory: &Path) -> Result<BTreeMap<String, FileRecord>> {
    let mut records = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let metadata = entry.metadata().map_err(Error::io("read", &path))?;
        if metadata.is_dir() {
            records.extend(file_records(&path)?.into_iter().map(|(within, record)| (format!("{name}/{within}"), record)));
        } else {
            records.insert(name, FileRecord { bytes: metadata.len(), sha256: Fingerprint::of_file(&path)? });
        }
    }
    Ok(records)
}

fn write_moments(path: &Path, trainable: &[ParameterRef], moments: &Moments) -> Result<()> {
    let named = |kind: &'static str| trainable.iter().map(move |each| (format!("{kind}.{}", each.name()), each.shape().dims().to_vec()));
    let tensors: Vec<Named> = named("first").chain(named("second")).collect();
    let count = trainable.len();
    write_tensors(path, &tensors, |i, sink| sink(if i < count { &moments.first[i] } else { &moments.second[i - count] }))
}
