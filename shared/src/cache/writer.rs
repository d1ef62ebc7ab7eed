//! Writing shards: row groups, both files at once, each published atomically.

use crate::cache::encode::{hidden_batch, logits_batch, top_logits};
use crate::cache::in_order::in_order;
use crate::cache::manifest::{FileEntry, Fingerprints, MassSummary, ShardEntry};
use crate::cache::parquet_file::{Written, write_parquet};
use crate::cache::record::{IGNORED_LABEL, Record};
use crate::cache::schema::Part;
pub use crate::cache::vocabulary::write_vocabulary;
use crate::error::{Error, Result};
use crate::target::TargetSpec;
use std::ops::Range;
use std::path::Path;

/// A row group ends before its rows would hold more than this in the logits file, uncompressed: about 2 MB compressed.
pub const LOGITS_GROUP_BYTES: u64 = 4 << 20;
/// The same for the hidden file, which is larger by so much that its groups may be: fewer rows would cost the logits file its compression.
pub const HIDDEN_GROUP_BYTES: u64 = 16 << 20;

/// Ids per position that a row is counted with at least. So the borders of the groups, and with them the order in which a training shuffles the
/// rows, are the same for every cache of up to this many: training on fewer of the stored ids is then training on a cache that stores fewer.
pub const GROUP_TOP_K: u64 = 64;

/// Writes both files of shard `index`, each whole or not at all, and returns their entry for the manifest; `padded_tokens` is left 0 for the
/// caller, who knows the batches. `threads` (0 counts as 1) encode the row groups of each file; the bytes depend on the other arguments alone.
/// Memory, beside the records: `threads` row groups of each file, each two to three times its uncompressed bytes ([`LOGITS_GROUP_BYTES`],
/// [`HIDDEN_GROUP_BYTES`]; five times where a row has fewer than 1024 values in a column).
///
/// `records` are one pass's, their sequences without gaps. Logits and hidden states are rounded as the spec says; a logit so far below the
/// largest that float16 ends before it becomes float16's lowest.
///
/// # Errors
/// [`Error::Invalid`] for a record that breaks the spec's promise, rows that are not one contiguous range, or a hidden state that float16
/// cannot hold where the spec rounds to it; [`Error::Io`] and [`Error::Library`] where a file cannot be written.
pub fn write_shard(
    directory: &Path,
    index: u32,
    spec: &TargetSpec,
    fingerprints: &Fingerprints,
    records: &[Record],
    threads: usize,
) -> Result<ShardEntry> {
    let groups = row_groups(spec, records);
    check_rows(spec, records, &groups, threads)?;
    let write = |part: Part| {
        let encode = if part == Part::Logits { logits_batch } else { hidden_batch };
        let build = |group: usize| encode(spec, &records[groups[group].clone()]);
        let path = directory.join(part.file_name(index));
        write_parquet(&path, part.schema(spec), part.properties(spec, fingerprints, index)?, threads, groups.len(), build)
    };
    let (logits, hidden) = std::thread::scope(|scope| {
        let hidden = (!spec.hidden_layers().is_empty()).then(|| scope.spawn(|| write(Part::Hidden)));
        let logits = write(Part::Logits);
        let hidden = hidden.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (logits, hidden)
    });
    let entry = |(part, written): (Part, Written)| FileEntry {
        name: part.file_name(index),
        rows: records.len() as u64,
        bytes: written.bytes,
        sha256: written.sha256,
    };
    let sum = |count: fn(&Record) -> usize| records.iter().map(|record| count(record) as u64).sum();
    Ok(ShardEntry {
        index,
        pass: records[0].pass,
        first_sequence: records[0].sequence_id,
        tokens: sum(|record| record.input_ids.len()),
        padded_tokens: 0,
        positions: sum(|record| record.positions.len()),
        masked: sum(|record| record.labels.iter().filter(|label| **label != IGNORED_LABEL).count()),
        logits: entry((Part::Logits, logits?)),
        hidden: hidden.transpose()?.map(|written| entry((Part::Hidden, written))),
        minus_log_stored_mass: stored_mass(spec, records, &groups, threads)?,
    })
}

fn check_rows(spec: &TargetSpec, records: &[Record], groups: &[Range<usize>], threads: usize) -> Result<()> {
    let Some(first) = records.first() else {
        return Err(Error::invalid("records", "at least one row in a shard", "none"));
    };
    let check = |group: usize| groups[group].clone().try_for_each(|row| check_row(spec, first, row, &records[row]));
    in_order(threads, groups.len(), check, Ok)
}

fn check_row(spec: &TargetSpec, first: &Record, row: usize, record: &Record) -> Result<()> {
    record.validate(spec)?;
    let expected = first.sequence_id.checked_add(row as u64);
    if record.pass != first.pass || Some(record.sequence_id) != expected {
        let place = |sequence: u64, pass: u16| format!("sequence {sequence} of pass {pass} in row {row}");
        let expected = expected.map_or_else(|| "sequences below 2^64".to_string(), |sequence| place(sequence, first.pass));
        return Err(Error::invalid("sequence_id", expected, place(record.sequence_id, record.pass)));
    }
    // Arrow's list offsets are 32-bit; a group of several rows is far below that, a single row may not be.
    let most = record.top_ids.len().max(record.hidden_states.first().map_or(0, Vec::len));
    if i32::try_from(most).is_err() {
        let found = format!("{most} in sequence {}", record.sequence_id);
        return Err(Error::invalid("record", "fewer than 2^31 values in a row's column", found));
    }
    Ok(())
}

/// The same row borders for both files, from the rows' sizes alone, of logits as of [`GROUP_TOP_K`] ids at least.
fn row_groups(spec: &TargetSpec, records: &[Record]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut logits, mut hidden) = (0, 0);
    let top_k = (spec.top_k() as u64).max(GROUP_TOP_K);
    for (row, record) in records.iter().enumerate() {
        let (tokens, positions) = (record.input_ids.len() as u64, record.positions.len() as u64);
        let more_logits =
            tokens * 12 + 4 * spec.embedding_size() as u64 + positions * (8 * top_k + 4 * spec.temperatures().len() as u64 + 8);
        let more_hidden = tokens * 4 * (spec.hidden_size() * spec.hidden_layers().len()) as u64;
        (logits, hidden) = (logits + more_logits, hidden + more_hidden);
        match groups.last_mut() {
            Some(group) if logits <= LOGITS_GROUP_BYTES && hidden <= HIDDEN_GROUP_BYTES => group.end = row + 1,
            _ => {
                groups.push(row..row + 1);
                (logits, hidden) = (more_logits, more_hidden);
            }
        }
    }
    groups
}

/// -ln of the stored probability, per asked position, of the values as they are stored.
fn stored_mass(spec: &TargetSpec, records: &[Record], groups: &[Range<usize>], threads: usize) -> Result<MassSummary> {
    let mut all = Vec::new();
    let of_group = |group: usize| Ok(minus_log_mass(spec, &records[groups[group].clone()]));
    in_order(threads, groups.len(), of_group, |values| {
        all.extend(values);
        Ok(())
    })?;
    Ok(MassSummary::of(all))
}

fn minus_log_mass(spec: &TargetSpec, records: &[Record]) -> Vec<f64> {
    let log_z = records.iter().flat_map(|record| record.log_z.chunks_exact(spec.temperatures().len()).map(|row| f64::from(row[0])));
    let logits = top_logits(spec, records);
    let minus_log = |(log_z, logits): (f64, &[f32])| {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        // Rounding may carry the sum past the whole; mass is at most 1.
        (log_z - sum.ln()).max(0.0)
    };
    log_z.zip(logits.chunks_exact(spec.top_k().max(1))).map(minus_log).collect()
}
