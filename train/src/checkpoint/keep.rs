//! Which checkpoints stay.

use super::load::read_state;
use super::{Checkpoints, STATE_FILE};
use logitcache::atomic_directory::remove_directory_atomically;
use logitcache::error::Result;
use std::path::PathBuf;

impl Checkpoints {
    /// Removes all but the last `--keep` and the best: of those at whose step the student was evaluated, the one with the smallest divergence
    /// from the teacher, the later one of two that are equal.
    pub(super) fn prune(&self) -> Result<()> {
        let all = self.list()?;
        let old = all.len().saturating_sub(self.keep);
        if old == 0 {
            return Ok(());
        }
        let mut best: Option<(f64, PathBuf)> = None;
        for (step, path) in &all {
            // One that cannot be read is no candidate; whether it stays is a matter of its age.
            let Ok(state) = read_state(&path.join(STATE_FILE)) else { continue };
            let Some(evaluation) = state.run.evaluation.filter(|_| state.run.evaluated_step == *step) else { continue };
            if best.as_ref().is_none_or(|(divergence, _)| evaluation.divergence() <= *divergence) {
                best = Some((evaluation.divergence(), path.clone()));
            }
        }
        let best = best.map(|(_, path)| path);
        for (_, path) in all.into_iter().take(old).filter(|(_, path)| best.as_ref() != Some(path)) {
            remove_directory_atomically(&path)?;
        }
        Ok(())
    }
}
