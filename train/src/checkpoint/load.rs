//! Reading a checkpoint: everything is checked before anything is used.

use super::{Checkpoints, FORMAT_VERSION, OPTIMIZER_FILE, PROJECTIONS_FILE, STATE_FILE, State, exact};
use crate::export::load_as;
use crate::kernels::ParameterRef;
use crate::optim::Moments;
use crate::student::Student;
use crate::student::config::StudentConfig;
use crate::student::tensor_file::TensorFile;
use candle_core::{Device, Tensor};
use logitcache::atomic_directory::remove_leftovers;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A checkpoint whose files are what its state says.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: State,
}

/// `state.json` as it lies on the disk.
#[derive(Deserialize)]
struct Sealed {
    sha256: Fingerprint,
    state: serde_json::Value,
}

impl Checkpoints {
    /// The newest checkpoint, verified; nothing where there is none. Leftovers of writes that were cut off are removed.
    ///
    /// # Errors
    /// [`Error::Data`] where the newest is damaged, naming the file and the newest one before it that is sound: an older state is never
    /// taken up in silence.
    pub fn newest(&self) -> Result<Option<Checkpoint>> {
        if self.folder.exists() {
            remove_leftovers(&self.folder)?;
        }
        let mut paths: Vec<PathBuf> = self.list()?.into_iter().map(|(_, path)| path).collect();
        let Some(newest) = paths.pop() else { return Ok(None) };
        let error = match Checkpoint::open(&newest) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => error,
        };
        let previous = paths.iter().rev().find(|path| Checkpoint::open(path).is_ok());
        let remedy = match previous {
            Some(previous) => format!("remove {}: the run then goes on from {}", newest.display(), previous.display()),
            None => format!("no earlier checkpoint is sound: remove {} to train from the start", self.folder.display()),
        };
        Err(match error {
            Error::Data { path, field, expected, found, .. } => Error::Data { path, field, expected, found, remedy },
            Error::Io { path, action, source } => Error::data(path, action, "a readable file", source.to_string(), remedy),
            other => Error::data(newest, "checkpoint", "whole files", other.to_string(), remedy),
        })
    }
}

impl Checkpoint {
    /// Reads the state in `path` and verifies every file that it lists.
    ///
    /// # Errors
    /// [`Error::Data`] for a file of another length or content, [`Error::Io`] for one that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let state = read_state(&path.join(STATE_FILE))?;
        for (name, record) in &state.files {
            let file = path.join(name);
            let bytes = std::fs::metadata(&file).map_err(Error::io("read", &file))?.len();
            if bytes != record.bytes {
                return Err(damaged(&file, "length", format!("{} bytes", record.bytes), format!("{bytes} bytes")));
            }
            let sha256 = Fingerprint::of_file(&file)?;
            if sha256 != record.sha256 {
                return Err(damaged(&file, "SHA-256", record.sha256.to_string(), sha256.to_string()));
            }
        }
        Ok(Self { path: path.to_owned(), state })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The student as it was.
    ///
    /// # Errors
    /// Parameters that are not those of `config`.
    pub fn student(&self, config: &StudentConfig) -> Result<Student> {
        load_as(config, &self.path)
    }

    /// Gives the parameters that are not the student's the values they had.
    ///
    /// # Errors
    /// Parameters that the checkpoint does not hold.
    pub fn restore_projections(&self, projections: &[ParameterRef]) -> Result<()> {
        if projections.is_empty() {
            return Ok(());
        }
        let path = self.path.join(PROJECTIONS_FILE);
        let mut file = TensorFile::open(&path)?;
        for projection in projections {
            let shape = projection.shape().dims();
            let values = file.read(projection.name(), shape)?;
            let restored = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|values| projection.set_value(&values));
            restored.map_err(|error| Error::invalid(projection.name(), "a parameter in memory", error.to_string()))?;
        }
        Ok(())
    }

    /// The optimiser's memory of `trainable`, in that order.
    ///
    /// # Errors
    /// Parameters that the checkpoint does not hold.
    pub fn moments(&self, trainable: &[ParameterRef]) -> Result<Moments> {
        let mut file = TensorFile::open(&self.path.join(OPTIMIZER_FILE))?;
        let mut read = |kind: &str| -> Result<Vec<Vec<f32>>> {
            trainable.iter().map(|each| file.read(&format!("{kind}.{}", each.name()), each.shape().dims())).collect()
        };
        Ok(Moments { step: self.state.optimizer_steps, first: read("first")?, second: read("second")? })
    }
}

fn damaged(file: &Path, field: &str, expected: String, found: String) -> Error {
    Error::data(file, field, expected, found, "the checkpoint is damaged")
}

/// The state alone, its digest checked, the other files not.
pub(super) fn read_state(path: &Path) -> Result<State> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let parse = |error: serde_json::Error| damaged(path, "content", "the state that was written".to_owned(), error.to_string());
    let sealed: Sealed = serde_json::from_slice(&text).map_err(parse)?;
    let found = Fingerprint::of_bytes(&serde_json::to_vec(&sealed.state).map_err(parse)?);
    if found != sealed.sha256 {
        return Err(damaged(path, "SHA-256", sealed.sha256.to_string(), found.to_string()));
    }
    let version = sealed.state.get("format_version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(FORMAT_VERSION)) {
        let found = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(damaged(path, "format_version", FORMAT_VERSION.to_string(), found));
    }
    exact::from_value(sealed.state).map_err(parse)
}
