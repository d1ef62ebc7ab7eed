//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! `OUT/checkpoints/step-00000120/` is a whole student directory (see [`crate::export`]), and beside its files:
//!
//! | file | content |
//! | --- | --- |
//! | `optimizer.safetensors` | AdamW's moments, `first.NAME` and `second.NAME` for each parameter trained, float32 |
//! | `projections.safetensors` | parameters that are trained and do not belong to the student, where there are any |
//! | `run.toml` | the resolved configuration, where the run has written it |
//! | `state.json` | [`State`]: position, settings, counts, and size and SHA-256 of the files above; a digest of itself |
//!
//! The directory appears whole or not at all, everything in it synced. Random draws depend on (seed, step, sequence) alone, so the step is the
//! state of every random stream, and epoch and step within it the position in the data. Nothing else is carried from one step to the next.

mod exact;
mod keep;
mod load;
mod save;
#[cfg(test)]
mod tests;

pub use load::Checkpoint;
pub use save::Snapshot;

use crate::config::Config;
use crate::trainer::RunState;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The folder of the checkpoints within the student's directory.
pub const CHECKPOINTS_FOLDER: &str = "checkpoints";

/// The file of a checkpoint that describes the others.
pub const STATE_FILE: &str = "state.json";

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const PROJECTIONS_FILE: &str = "projections.safetensors";
const CONFIGURATION_FILE: &str = "run.toml";
const NAME_START: &str = "step-";
const FORMAT_VERSION: u32 = 1;

/// Size and content of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its length.
    pub bytes: u64,
    /// The digest of its content.
    pub sha256: Fingerprint,
}

/// What a checkpoint says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Grows with any change that an older program would misread.
    pub format_version: u32,
    /// See [`crate::config::Config`]: flags and fingerprints of the run.
    pub settings: BTreeMap<String, String>,
    /// Threads that computed; another number may change the last bits.
    pub threads: usize,
    /// The device that computed, as `--device` calls it; states from before there was another than `cpu` do not say it.
    #[serde(default = "cpu")]
    pub device: String,
    /// The epoch of the next step, from 0.
    pub epoch: u64,
    /// Steps of that epoch that are done.
    pub step_in_epoch: u64,
    /// Updates that AdamW has made: fewer than the steps where some were skipped.
    pub optimizer_steps: u64,
    /// Length of `metrics.jsonl` at that moment.
    pub metrics_bytes: u64,
    /// What the loop carries from step to step.
    pub run: RunState,
    /// The other files.
    pub files: BTreeMap<String, FileRecord>,
}

fn cpu() -> String {
    "cpu".to_owned()
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    out: PathBuf,
    teacher_files: PathBuf,
    settings: BTreeMap<String, String>,
    threads: usize,
    device: String,
    keep: usize,
}

impl Checkpoints {
    /// Those of the run that `config` describes; nothing is read or written yet.
    pub fn new(config: &Config) -> Self {
        Self {
            folder: config.out.join(CHECKPOINTS_FOLDER),
            out: config.out.clone(),
            teacher_files: config.teacher_folder(),
            settings: config.settings.clone(),
            threads: config.threads,
            device: config.placement.to_string(),
            keep: config.keep,
        }
    }

    /// Step and directory of each, ascending; leftovers of writes that were cut off are not among them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            other => other.map_err(Error::io("list", &self.folder))?,
        };
        for entry in entries {
            let path = entry.map_err(Error::io("list", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(Ok(step)) = name.strip_prefix(NAME_START).map(str::parse) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{NAME_START}{step:08}"))
    }
}
