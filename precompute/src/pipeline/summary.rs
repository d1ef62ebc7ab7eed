//! What a person wants to know of a finished cache.

use super::publish::Timing;
use logitcache::cache::manifest::{CorpusCounts, FileEntry, Manifest};
use logitcache::target::Task;
use std::fmt;
use std::path::PathBuf;

/// Printed at the end of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The cache.
    pub directory: PathBuf,
    /// Its complete manifest.
    pub manifest: Manifest,
    /// What it cost.
    pub timing: Timing,
    /// Whether it was complete before this run.
    pub reused: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Manifest { shards, counts, spec, .. } = &self.manifest;
        let counts = counts.unwrap_or_default();
        if self.reused {
            writeln!(formatter, "{} is complete; nothing to do", self.directory.display())?;
        }
        writeln!(formatter, "cache       {} ({} shards)", self.directory.display(), shards.len())?;
        writeln!(formatter, "sequences   {}{}", counts.sequences, passes(&self.manifest, &counts))?;
        if counts.dropped_short + counts.dropped_unknown > 0 {
            let (short, unknown) = (counts.dropped_short, counts.dropped_unknown);
            writeln!(formatter, "dropped     {short} too short, {unknown} mostly unknown, of {} documents", counts.documents)?;
        }
        if counts.malformed > 0 {
            writeln!(formatter, "malformed   {} records skipped", counts.malformed)?;
        }
        if counts.truncated > 0 {
            writeln!(formatter, "truncated   {} documents, as long as a sequence can be", counts.truncated)?;
        }
        // Gold numbers are not counted: only labels are.
        let asked = match spec.task() {
            Task::MaskedLm => format!(" ({} asked, {} masked)", counts.positions, counts.masked),
            Task::SentenceEmbedding => String::new(),
            _ if spec.has_label_values() => format!(" ({} asked)", counts.positions),
            _ => format!(" ({} asked, {} with a gold answer)", counts.positions, counts.masked),
        };
        writeln!(formatter, "tokens      {}{asked}", counts.tokens)?;
        writeln!(formatter, "padding     {:.1} % of the tokens fed to the teacher", 100.0 * padding_share(&counts))?;
        let tokens = counts.tokens.max(1) as f64;
        let bytes = |file: fn(&logitcache::cache::manifest::ShardEntry) -> Option<&FileEntry>| {
            shards.iter().filter_map(file).map(|file| file.bytes).sum::<u64>() as f64 / tokens
        };
        let (logits, hidden) = (bytes(|shard| Some(&shard.logits)), bytes(|shard| shard.hidden.as_ref()));
        let answers = if spec.task() == Task::SentenceEmbedding { "vectors" } else { "logits" };
        writeln!(formatter, "bytes/token {logits:.1} {answers}, {hidden:.1} hidden states")?;
        if spec.task().is_language_model() {
            let mass: f64 = shards.iter().map(|shard| shard.minus_log_stored_mass.mean * shard.positions as f64).sum();
            let mean = mass / counts.positions.max(1) as f64;
            let (k, temperature) = (spec.top_k(), spec.logits_temperature());
            writeln!(formatter, "-ln(a)      {mean:.2e} mean, a the mass of the top {k} at T = {temperature}")?;
        }
        let Timing { seconds, teacher_seconds, tokens_per_second, .. } = self.timing;
        write!(formatter, "time        {seconds:.1} s, {teacher_seconds:.1} of them in the teacher; {tokens_per_second:.0} tokens/s")
    }
}

fn passes(manifest: &Manifest, counts: &CorpusCounts) -> String {
    let rows: u64 = manifest.shards.iter().map(|shard| shard.logits.rows).sum();
    match rows.checked_div(counts.sequences) {
        Some(passes) if passes > 1 => format!(" in each of {passes} passes"),
        _ => String::new(),
    }
}

fn padding_share(counts: &CorpusCounts) -> f64 {
    1.0 - counts.tokens as f64 / counts.padded_tokens.max(1) as f64
}
