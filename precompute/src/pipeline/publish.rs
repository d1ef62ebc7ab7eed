//! The last thread, and those it encodes on: a shard is published while the teacher works on the next one.

use super::asker::ShardAnswer;
use crate::config::Config;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::cache::manifest::Manifest;
use logitcache::cache::writer::write_shard;
use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// The one file that holds wall-clock values.
pub const TIMING_FILE: &str = "timing.json";

/// One encoding thread for so many of the session's where both run on the processors.
const CPU_SESSION_SHARE: usize = 4;

/// What a cache cost, over all the runs that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// From the first question to the last shard, summed over runs.
    pub seconds: f64,
    /// Of these, in the teacher's session and in the head that is left to us; where there are several sessions, in the mean of them.
    pub teacher_seconds: f64,
    /// Tokens asked about, padding left out. More than the cache holds where a run was killed within a shard that was then published.
    pub tokens: u64,
    /// The ratio of the two.
    pub tokens_per_second: f64,
    /// Runs that published a shard.
    pub runs: u32,
}

impl Timing {
    /// What earlier runs took; nothing where the file is missing or no longer readable, since nothing depends on it.
    pub fn read(directory: &Path) -> Self {
        let bytes = std::fs::read(directory.join(TIMING_FILE)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// These runs and one more.
    pub fn with_run(&self, seconds: f64, teacher_seconds: f64, tokens: u64) -> Self {
        let (seconds, tokens) = (self.seconds + seconds, self.tokens + tokens);
        Self {
            seconds,
            teacher_seconds: self.teacher_seconds + teacher_seconds,
            tokens,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            runs: self.runs + 1,
        }
    }

    /// Publishes the file.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(TIMING_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(Error::library("write", &path))?;
        text.push('\n');
        write_bytes_atomically(&path, text.as_bytes())
    }
}

/// Threads that encode each file of a shard, at least one. A session on the processors needs them itself, and is slower than this by far; one
/// elsewhere may be faster than this, and leaves them idle.
pub fn encoding_threads(config: &Config) -> usize {
    if config.provider == "cpu" { (config.threads / CPU_SESSION_SHARE).max(1) } else { config.threads }
}

/// A shard on its way to disk, and the seconds the session has taken so far in this run.
pub type Publication = (ShardAnswer, f64);

/// Publishes shards until the sender is gone: files first, then the manifest that lists them, so that what is listed is there. `threads` encode
/// each file.
///
/// # Errors
/// Those of the writer and the file system; the receiver is then dropped, which the sender notices.
pub fn publish(
    directory: &Path,
    mut manifest: Manifest,
    earlier: Timing,
    started: Instant,
    threads: usize,
    shards: Receiver<Publication>,
) -> Result<Manifest> {
    let mut tokens = 0;
    for (answer, teacher_seconds) in shards {
        let mut entry = write_shard(directory, answer.index, &manifest.spec, &manifest.fingerprints, &answer.records, threads)?;
        entry.padded_tokens = answer.padded_tokens;
        tokens += entry.tokens;
        match manifest.shards.get_mut(entry.index as usize) {
            Some(listed) => *listed = entry,
            None => manifest.shards.push(entry),
        }
        manifest.write(directory)?;
        earlier.with_run(started.elapsed().as_secs_f64(), teacher_seconds, tokens).write(directory)?;
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_adds_up_over_runs_and_survives_its_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Timing::read(directory.path()), Timing::default());
        Timing::default().with_run(10.0, 8.0, 1000).write(directory.path()).expect("a writable directory");
        let second = Timing::read(directory.path()).with_run(30.0, 24.0, 1000);
        assert_eq!(second, Timing { seconds: 40.0, teacher_seconds: 32.0, tokens: 2000, tokens_per_second: 50.0, runs: 2 });
    }
}
