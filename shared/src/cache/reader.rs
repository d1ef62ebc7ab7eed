//! Opening a cache and streaming it by row group. Nothing is believed before it is checked: manifest and version, presence and sizes, then,
//! as each file is first used, its checksum, its metadata, its schema, and at last its records.

use crate::cache::decode::{self, Mismatch};
use crate::cache::guard::guarded;
use crate::cache::manifest::{FileEntry, MANIFEST_FILE, Manifest, ShardEntry};
use crate::cache::record::Record;
use crate::cache::schema::{Part, Promise, RESTORE, hidden_column};
use crate::cache::vocabulary::read_vocabulary;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::target::TargetSpec;
use arrow_array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A cache directory whose manifest is complete and whose files are all there, of the right size, and no others.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    directory: PathBuf,
    manifest: Manifest,
    /// The spec of a record that was read without hidden states.
    spec_without_hidden: TargetSpec,
    /// Whether this process has compared a file's checksum: a file is hashed once, however many epochs and threads read it.
    verified: Mutex<BTreeMap<String, Arc<Mutex<bool>>>>,
    /// Of each shard, once they have been looked up.
    row_groups: OnceLock<Vec<usize>>,
}

/// Threads that read footers at most: beyond these a disk gains nothing.
const FOOTER_THREADS: usize = 8;

/// What is known of a row without its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCounts {
    /// As [`Record::document_id`].
    pub document_id: u64,
    /// Its tokens.
    pub tokens: usize,
    /// Its labels that are not [`IGNORED_LABEL`](crate::cache::record::IGNORED_LABEL).
    pub labelled: usize,
}

/// Which hidden columns to decode. The default reads the logits file alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The layers wanted; a record's `hidden_states` then holds just these, in this order.
    pub hidden_layers: Vec<u32>,
}

impl Cache {
    /// Opens the cache in `directory`. Reads the manifest and the directory listing, no shard.
    ///
    /// # Errors
    /// [`Error::Data`] for a manifest that is missing, of another version or incomplete; for a shard file that is missing, of another size,
    /// or in the directory without being the manifest's.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        if !manifest.complete {
            let found = format!("{} shards of an unfinished run", manifest.shards.len());
            let remedy = "run precompute again with the same arguments: it continues from there";
            return Err(Error::data(directory.join(MANIFEST_FILE), "complete", "a finished run", found, remedy));
        }
        let listed: Vec<&FileEntry> =
            manifest.shards.iter().flat_map(|shard| std::iter::once(&shard.logits).chain(&shard.hidden)).collect();
        for entry in &listed {
            check_size(directory, entry)?;
        }
        check_no_others(directory, &listed.iter().map(|entry| entry.name.as_str()).collect())?;
        let spec_without_hidden = manifest.spec.without_hidden();
        Ok(Self(Arc::new(Opened {
            directory: directory.to_owned(),
            manifest,
            spec_without_hidden,
            verified: Mutex::default(),
            row_groups: OnceLock::new(),
        })))
    }

    /// The run's index.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// What every record promises.
    pub fn spec(&self) -> &TargetSpec {
        &self.0.manifest.spec
    }

    /// The directory, as given.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.0.manifest.shards.len()
    }

    /// Opens shard `index` of [`Self::shards`]; its hidden file only once a projection asks for it. The first use of a file in a process
    /// compares its checksum, which reads it once more.
    ///
    /// # Errors
    /// [`Error::Data`] naming the file and the key or column that is not as the manifest promises; [`Error::Invalid`] for an index beyond
    /// the last shard.
    pub fn shard(&self, index: usize) -> Result<ShardReader> {
        let entry = self.entry(index)?;
        let logits = self.0.open(Part::Logits, entry.index, &entry.logits)?;
        Ok(ShardReader { cache: Arc::clone(&self.0), entry: entry.clone(), logits, hidden: OnceLock::new() })
    }

    /// How many row groups each shard has, by the footers of the logits files, and nothing else of them: a file's checksum is compared when
    /// [`Self::shard`] opens it. Footers are read on several threads, once in a process.
    ///
    /// # Errors
    /// As for [`Self::shard`], of the first such shard.
    pub fn row_groups(&self) -> Result<&[usize]> {
        if let Some(known) = self.0.row_groups.get() {
            return Ok(known);
        }
        let entries = &self.0.manifest.shards;
        let read = |entry: &ShardEntry| Ok(self.0.open_unverified(Part::Logits, entry.index, &entry.logits)?.group_rows.len());
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(FOOTER_THREADS);
        let counts: Result<Vec<usize>> = std::thread::scope(|scope| {
            let pieces = entries.chunks(entries.len().div_ceil(threads).max(1));
            let pieces: Vec<_> = pieces.map(|piece| scope.spawn(move || piece.iter().map(read).collect::<Result<Vec<usize>>>())).collect();
            let joined = pieces.into_iter().map(|piece| piece.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            Ok(joined.collect::<Result<Vec<_>>>()?.concat())
        });
        let counts = counts?;
        Ok(self.0.row_groups.get_or_init(|| counts))
    }

    /// What the rows of shard `index` of [`Self::shards`] come to, in order, by the few small columns that say it. The file's checksum is not
    /// compared, which would read all of it: that is done before a row is used.
    ///
    /// # Errors
    /// As for [`Self::shard`].
    pub fn row_counts(&self, index: usize) -> Result<Vec<RowCounts>> {
        let (entry, spec) = (self.entry(index)?, &self.0.manifest.spec);
        let file = self.0.open_unverified(Part::Logits, entry.index, &entry.logits)?;
        let mut counts = Vec::new();
        for group in 0..file.group_rows.len() {
            let schema = file.metadata.schema();
            let columns = decode::COUNTED_COLUMNS.iter().filter_map(|name| schema.column_with_name(name)).map(|(place, _)| place);
            let mask = ProjectionMask::roots(file.metadata.parquet_schema(), columns);
            counts.extend(decode::row_counts(spec, &file.decode(group, mask)?).map_err(|found| file.refuse(found))?);
        }
        Ok(counts)
    }

    fn entry(&self, index: usize) -> Result<&ShardEntry> {
        let entry = self.0.manifest.shards.get(index);
        entry.ok_or_else(|| Error::invalid("shard", format!("a number below {}", self.shards()), index.to_string()))
    }

    /// Compares the checksum of every file of every shard.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first file whose content is not what was written.
    pub fn verify(&self) -> Result<()> {
        self.0.manifest.shards.iter().flat_map(|shard| std::iter::once(&shard.logits).chain(&shard.hidden)).try_for_each(|entry| {
            check_size(&self.0.directory, entry)?;
            check_content(&self.0.directory, entry)
        })
    }

    /// The tokens by id, from `vocabulary.parquet`; at most as many as the spec's vocabulary, whose last ids may have none.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is not such a table; [`Error::Io`] where there is none.
    pub fn vocabulary(&self) -> Result<Vec<String>> {
        read_vocabulary(&self.0.directory, self.spec().vocabulary_size())
    }
}

impl Opened {
    fn open(&self, part: Part, index: u32, entry: &FileEntry) -> Result<OpenFile> {
        check_size(&self.directory, entry)?;
        let known = Arc::clone(self.verified.lock().unwrap_or_else(PoisonError::into_inner).entry(entry.name.clone()).or_default());
        // Held while the file is hashed, so that others who want it wait and do not hash it too.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if !*known {
            check_content(&self.directory, entry)?;
            *known = true;
        }
        drop(known);
        self.open_unverified(part, index, entry)
    }

    /// A file whose size, metadata and schema are as promised, and whose rows have not been looked at.
    fn open_unverified(&self, part: Part, index: u32, entry: &FileEntry) -> Result<OpenFile> {
        check_size(&self.directory, entry)?;
        let promise = Promise { spec: &self.manifest.spec, fingerprints: &self.manifest.fingerprints, index };
        OpenFile::open(part, self.directory.join(&entry.name), entry, &promise)
    }
}

/// One shard, read a row group at a time. Memory: the row group asked for.
#[derive(Debug)]
pub struct ShardReader {
    cache: Arc<Opened>,
    entry: ShardEntry,
    logits: OpenFile,
    hidden: OnceLock<OpenFile>,
}

impl ShardReader {
    /// Its entry in the manifest.
    pub fn entry(&self) -> &ShardEntry {
        &self.entry
    }

    /// How many row groups it has.
    pub fn row_groups(&self) -> usize {
        self.logits.group_rows.len()
    }

    /// Rows of row group `group`; 0 beyond the last.
    pub fn rows(&self, group: usize) -> usize {
        self.logits.group_rows.get(group).copied().unwrap_or(0)
    }

    /// The records of row group `group`, in sequence order, each checked against the spec.
    ///
    /// # Errors
    /// [`Error::Data`] naming file, column, expected and found for content that is not what the manifest promises; [`Error::Invalid`] for
    /// a group beyond the last or a layer that the cache does not hold.
    pub fn read(&self, group: usize, projection: &Projection) -> Result<Vec<Record>> {
        if group >= self.row_groups() {
            return Err(Error::invalid("row group", format!("a number below {}", self.row_groups()), group.to_string()));
        }
        let spec = &self.cache.manifest.spec;
        let mut records =
            decode::records(spec, &self.logits.decode(group, ProjectionMask::all())?).map_err(|found| self.logits.refuse(found))?;
        self.check_records(group, &records)?;
        if !projection.hidden_layers.is_empty() {
            let hidden = self.hidden_file()?;
            let layers = &projection.hidden_layers;
            let batch = hidden.decode(group, hidden.mask(spec, layers)?)?;
            decode::add_hidden_states(spec, layers, &batch, &mut records).map_err(|found| hidden.refuse(found))?;
        }
        Ok(records)
    }

    fn check_records(&self, group: usize, records: &[Record]) -> Result<()> {
        let before: u64 = self.logits.group_rows[..group].iter().map(|rows| *rows as u64).sum();
        for (row, record) in records.iter().enumerate() {
            // The manifest's check has seen that the last row's number is below 2^64, the file's that it has no more rows.
            let expected = (self.entry.first_sequence + before + row as u64, self.entry.pass);
            if (record.sequence_id, record.pass) != expected {
                let place = |(sequence, pass): (u64, u16)| format!("sequence {sequence} of pass {pass}");
                return Err(self.logits.refuse(("sequence_id".into(), place(expected), place((record.sequence_id, record.pass)))));
            }
            record.validate(&self.cache.spec_without_hidden).map_err(|error| match error {
                Error::Invalid { field, expected, found } => self.logits.refuse((field, expected, found)),
                other => other,
            })?;
        }
        Ok(())
    }

    fn hidden_file(&self) -> Result<&OpenFile> {
        if let Some(opened) = self.hidden.get() {
            return Ok(opened);
        }
        let Some(entry) = &self.entry.hidden else {
            return Err(Error::invalid("hidden_layers", "none, since the cache holds none", "some"));
        };
        let opened = self.cache.open(Part::Hidden, self.entry.index, entry)?;
        if opened.group_rows != self.logits.group_rows {
            let expected = format!("the logits file's {:?}", self.logits.group_rows);
            return Err(opened.refuse(("rows of the row groups".into(), expected, format!("{:?}", opened.group_rows))));
        }
        Ok(self.hidden.get_or_init(|| opened))
    }
}

/// A file whose size, checksum, metadata and schema are as promised.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    group_rows: Vec<usize>,
}

impl OpenFile {
    fn open(part: Part, path: PathBuf, entry: &FileEntry, promise: &Promise<'_>) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        // An Arrow schema that another writer embedded must not change what the columns are taken for.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = guarded(|| ArrowReaderMetadata::load(&file, options))
            .map_err(|found| Error::data(&path, "footer", "a Parquet file", found, RESTORE))?;
        let parquet = metadata.metadata();
        let key_values = parquet.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
        part.check_key_values(&path, key_values, promise)?;
        part.check_schema(&path, metadata.schema(), promise.spec)?;
        let group_rows: Option<Vec<usize>> = parquet.row_groups().iter().map(|group| usize::try_from(group.num_rows()).ok()).collect();
        let total = group_rows.iter().flatten().try_fold(0_u64, |sum, rows| sum.checked_add(*rows as u64));
        match group_rows {
            Some(group_rows) if total == Some(entry.rows) => Ok(Self { path, metadata, group_rows }),
            _ => {
                let found = parquet.row_groups().iter().map(|group| group.num_rows().to_string()).collect::<Vec<_>>().join(" + ");
                Err(Error::data(&path, "rows", format!("the manifest's {}", entry.rows), found, RESTORE))
            }
        }
    }

    /// The sequence ids and the columns of `layers`.
    fn mask(&self, spec: &TargetSpec, layers: &[u32]) -> Result<ProjectionMask> {
        let mut columns = vec![0];
        for layer in layers {
            let place = spec.hidden_layers().iter().position(|stored| stored == layer);
            let place = place.ok_or_else(|| {
                Error::invalid(hidden_column(*layer), format!("one of the stored layers {:?}", spec.hidden_layers()), "no such layer")
            })?;
            columns.push(place + 1);
        }
        Ok(ProjectionMask::roots(self.metadata.parquet_schema(), columns))
    }

    /// A row group as one batch. The file is opened anew, so that threads that share a reader do not share a file position.
    fn decode(&self, group: usize, mask: ProjectionMask) -> Result<RecordBatch> {
        let file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        let rows = self.group_rows[group];
        let place = || format!("row group {group}");
        let batches = guarded(|| {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone()).with_row_groups(vec![group]);
            let batches = builder.with_batch_size(rows).with_projection(mask).build()?;
            Ok(batches.collect::<std::result::Result<Vec<RecordBatch>, _>>()?)
        })
        .map_err(|found| self.refuse((place(), "columns that decode".to_string(), found)))?;
        match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) if batch.num_rows() == rows => Ok(batch),
            Ok([batch]) => Err(self.refuse((place(), format!("{rows} rows"), format!("{} rows", batch.num_rows())))),
            Err(batches) => Err(self.refuse((place(), format!("{rows} rows in one batch"), format!("{} batches", batches.len())))),
        }
    }

    fn refuse(&self, (field, expected, found): Mismatch) -> Error {
        let field = if self.metadata.schema().column_with_name(&field).is_some() { format!("column {field}") } else { field };
        Error::data(&self.path, field, expected, found, RESTORE)
    }
}

fn check_size(directory: &Path, entry: &FileEntry) -> Result<()> {
    let path = directory.join(&entry.name);
    let expected = format!("the manifest's {} bytes", entry.bytes);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() == entry.bytes => Ok(()),
        Ok(found) => Err(Error::data(&path, "size", expected, format!("{} bytes", found.len()), RESTORE)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::data(&path, "size", expected, "no such file", RESTORE)),
        Err(error) => Err(Error::io("look at", &path)(error)),
    }
}

fn check_content(directory: &Path, entry: &FileEntry) -> Result<()> {
    let path = directory.join(&entry.name);
    let found = Fingerprint::of_file(&path)?;
    if found == entry.sha256 {
        return Ok(());
    }
    Err(Error::data(&path, "sha256", format!("the manifest's {}", entry.sha256), format!("{found}: the content has changed"), RESTORE))
}

/// A shard file that the manifest does not list is another run's, or the rest of one.
fn check_no_others(directory: &Path, listed: &BTreeSet<&str>) -> Result<()> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        let shard = (name.starts_with("logits-") || name.starts_with("hidden-")) && name.ends_with(".parquet");
        if shard && !listed.contains(name.as_str()) {
            others.push(name);
        }
    }
    // The first by name, since a directory's order is nobody's promise.
    others.sort();
    match others.first() {
        None => Ok(()),
        Some(name) => {
            let (expected, found) = (format!("only the {} shard files of the manifest", listed.len()), "a shard file of another run");
            Err(Error::data(directory.join(name), "file", expected, found, "remove it, or restore the manifest that lists it"))
        }
    }
}
