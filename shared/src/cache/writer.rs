//! Writing shards: row groups, both files at once, each published atomically.

use crate::atomic_file::write_atomically;
use crate::cache::encode::{hidden_batch, logits_batch, top_logits};
use crate::cache::manifest::{FileEntry, Fingerprints, MassSummary, ShardEntry};
use crate::cache::record::{IGNORED_LABEL, Record};
use crate::cache::schema::Part;
pub use crate::cache::vocabulary::write_vocabulary;
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, Hasher};
use crate::target::TargetSpec;
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A row group ends before its rows would hold more than this in the logits file, uncompressed: about 2 MB compressed.
pub const LOGITS_GROUP_BYTES: u64 = 4 << 20;
/// The same for the hidden file, which is larger by so much that its groups may be: fewer rows would cost the logits file its compression.
pub const HIDDEN_GROUP_BYTES: u64 = 16 << 20;

/// Ids per position that a row is counted with at least. So the borders of the groups, and with them the order in which a training shuffles the
/// rows, are the same for every cache of up to this many: training on fewer of the stored ids is then training on a cache that stores fewer.
pub const GROUP_TOP_K: u64 = 64;

/// Writes both files of shard `index`, each whole or not at all, and returns their entry for the manifest; `padded_tokens` is left 0 for the
/// caller, who knows the batches. The bytes depend on the arguments alone. Memory: one row group of each file, beside the records.
///
/// `records` are one pass's, their sequences without gaps. Logits and hidden states are rounded as the spec says; a logit so far below the
/// largest that float16 ends before it becomes float16's lowest.
///
/// # Errors
/// [`Error::Invalid`] for a record that breaks the spec's promise, rows that are not one contiguous range, or a hidden state that float16
/// cannot hold where the spec rounds to it; [`Error::Io`] and [`Error::Library`] where a file cannot be written.
pub fn write_shard(directory: &Path, index: u32, spec: &TargetSpec, fingerprints: &Fingerprints, records: &[Record]) -> Result<ShardEntry> {
    check_rows(spec, records)?;
    let groups = row_groups(spec, records);
    let write = |part: Part| {
        let build = if part == Part::Logits { logits_batch } else { hidden_batch };
        let batches = groups.iter().map(|rows| build(spec, &records[rows.clone()]));
        let path = directory.join(part.file_name(index));
        write_parquet(&path, part.schema(spec), part.properties(spec, fingerprints, index)?, batches)
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
        minus_log_stored_mass: stored_mass(spec, records),
    })
}

fn check_rows(spec: &TargetSpec, records: &[Record]) -> Result<()> {
    let Some(first) = records.first() else {
        return Err(Error::invalid("records", "at least one row in a shard", "none"));
    };
    for (row, record) in records.iter().enumerate() {
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
fn stored_mass(spec: &TargetSpec, records: &[Record]) -> MassSummary {
    let log_z = records.iter().flat_map(|record| record.log_z.chunks_exact(spec.temperatures().len()).map(|row| f64::from(row[0])));
    let logits = top_logits(spec, records);
    let minus_log = |(log_z, logits): (f64, &[f32])| {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        // Rounding may carry the sum past the whole; mass is at most 1.
        (log_z - sum.ln()).max(0.0)
    };
    MassSummary::of(log_z.zip(logits.chunks_exact(spec.top_k().max(1))).map(minus_log).collect())
}

/// What a written file came to.
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) sha256: Fingerprint,
}

/// Publishes a Parquet file with one row group per batch.
pub(super) fn write_parquet(
    path: &Path,
    schema: Schema,
    properties: WriterProperties,
    batches: impl Iterator<Item = Result<RecordBatch>>,
) -> Result<Written> {
    let mut written = None;
    write_atomically(path, |file| {
        // Arrow's own copy of the schema would say nothing that Parquet's does not.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let hashing = HashingWriter { file, hasher: Hasher::new(), bytes: 0 };
        let mut writer = ArrowWriter::try_new_with_options(hashing, Arc::new(schema), options).map_err(Error::library("write", path))?;
        for batch in batches {
            writer.write(&batch?).and_then(|()| writer.flush()).map_err(Error::library("write", path))?;
        }
        let hashing = writer.into_inner().map_err(Error::library("write", path))?;
        written = Some(Written { bytes: hashing.bytes, sha256: hashing.hasher.finish() });
        Ok(())
    })?;
    Ok(written.expect("write_atomically runs its closure"))
}

/// Counts and hashes what passes, so that the file need not be read again.
struct HashingWriter<'a> {
    file: &'a mut BufWriter<File>,
    hasher: Hasher,
    bytes: u64,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
