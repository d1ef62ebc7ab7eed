//! The corpus: files in a fixed order, streamed as documents that know where they came from.
//!
//! - [`listing`]: which files, in which order, of which format.
//! - [`compression`]: their bytes, decompressed as they are read.
//! - [`lines`]: numbered UTF-8 lines of bounded length.
//! - `text`, `jsonl`, `delimited`, `conll`, `parquet_rows`: records of each format; `fields`: what of a record is read.
//! - `labels`: what an answer in a record means to the teacher.
//! - `reading`: the records of all files as [`Document`]s, the malformed ones counted; `shuffle`: in a random order.
//!
//! Memory holds a record or a few and their buffers, however large the corpus is.

pub mod compression;
mod conll;
mod delimited;
mod document;
mod fields;
mod jsonl;
mod labels;
pub mod lines;
pub mod listing;
mod parquet_rows;
mod reading;
mod shuffle;
mod text;

pub use delimited::Dialect;
pub use document::{Document, Gold, Place, Text};
pub use fields::{DEFAULT_TEXT_FIELD, Fields};
pub use labels::LabelScheme;
pub use listing::{CorpusFile, Format};

use logitcache::error::{Error, Result};
use logitcache::fingerprint::{Fingerprint, Hasher};
use reading::Reading;
use shuffle::{Shuffled, ShuffledDocuments};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// What one document of a text file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DocumentUnit {
    /// A line; blank ones are skipped.
    #[default]
    Line,
    /// Lines up to a blank one.
    Block,
}

impl fmt::Display for DocumentUnit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Line => "line",
            Self::Block => "block",
        })
    }
}

impl FromStr for DocumentUnit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "line" => Ok(Self::Line),
            "block" => Ok(Self::Block),
            other => Err(Error::usage("--document", "line or block", other, "choose one of the two")),
        }
    }
}

/// How documents are taken from the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusOptions {
    /// The format of every file, where their names are not to be gone by.
    pub format: Option<Format>,
    /// What a document of a text file is.
    pub document: DocumentUnit,
    /// Which fields of a record are read.
    pub fields: Fields,
    /// How delimited files are written.
    pub dialect: Dialect,
    /// What the answers mean.
    pub labels: LabelScheme,
    /// Malformed records that are skipped; one more is an error.
    pub skip_bad: u64,
    /// The seed of a random order; none for that of the files.
    pub shuffle_seed: Option<u64>,
    /// Documents left out at the beginning of that order.
    pub skip: u64,
    /// Documents taken after those, at most.
    pub limit: Option<u64>,
    /// Where a random order may be put down; the current directory where it is empty.
    pub scratch: PathBuf,
}

/// A listed corpus; each pass streams it anew.
#[derive(Clone, Debug)]
pub struct Corpus {
    files: Arc<[CorpusFile]>,
    options: Arc<CorpusOptions>,
    /// Made by the first pass that needs it.
    shuffled: Arc<Mutex<Option<Arc<Shuffled>>>>,
}

impl Corpus {
    /// Lists the files of `paths` (see [`listing::list`]) without reading them.
    ///
    /// # Errors
    /// Those of [`listing::list`].
    pub fn open(paths: &[PathBuf], options: CorpusOptions) -> Result<Self> {
        Ok(Self { files: listing::list(paths, options.format)?.into(), options: Arc::new(options), shuffled: Arc::default() })
    }

    /// The same corpus, its answers read with another meaning.
    pub fn with_labels(self, labels: LabelScheme) -> Self {
        let options = CorpusOptions { labels, ..CorpusOptions::clone(&self.options) };
        Self { files: self.files, options: Arc::new(options), shuffled: Arc::default() }
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// Size of all files on disk, in bytes: what the stream's count of bytes read reaches at the end.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The hash of what is read: of each file, in order, its format, its raw bytes and their number. Where the files lie does not
    /// matter, so a corpus that was moved is the same corpus.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        for file in self.files.iter() {
            hasher.update(match file.format {
                Format::Text => b"text",
                Format::JsonLines => b"json",
                Format::Csv => b"csv ",
                Format::Tsv => b"tsv ",
                Format::Conll => b"conl",
                Format::Parquet => b"parq",
            });
            let mut reader = std::fs::File::open(&file.path).map_err(Error::io("open", &file.path))?;
            let mut length = 0_u64;
            loop {
                let read = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Error::io("read", &file.path)(error)),
                };
                hasher.update(&buffer[..read]);
                length += read as u64;
            }
            hasher.update(&length.to_le_bytes());
        }
        Ok(hasher.finish())
    }

    /// Streams the documents that the options ask for, in their order; an id is the number in the order of the files, from 0, whatever is
    /// shuffled or skipped. The first error ends the stream; a corpus without documents is one.
    pub fn documents(&self) -> Documents {
        Documents { corpus: self.clone(), source: Source::Unopened, to_skip: self.options.skip, given: 0, ended: false }
    }

    /// Does what must be done before the first document can be given: shuffles, where that is asked for. False where `stops` says so before
    /// its end. [`Corpus::documents`] does it too, without looking up.
    ///
    /// # Errors
    /// Those of the corpus, and of a disk that cannot hold its texts.
    pub fn prepare(&self, stops: &dyn Fn() -> bool) -> Result<bool> {
        self.options.shuffle_seed.map_or(Ok(true), |seed| self.shuffled(seed, stops).map(|shuffled| shuffled.is_some()))
    }

    fn shuffled(&self, seed: u64, stops: &dyn Fn() -> bool) -> Result<Option<Arc<Shuffled>>> {
        let mut shuffled = self.shuffled.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shuffled.is_none() {
            let CorpusOptions { skip, limit, scratch, .. } = &*self.options;
            let wanted = limit.map(|limit| limit.saturating_add(*skip));
            *shuffled = Shuffled::write(self, seed, wanted, scratch, stops)?.map(Arc::new);
        }
        Ok(shuffled.clone())
    }
}

enum Source {
    Unopened,
    InOrder(Box<Reading>),
    Shuffled(ShuffledDocuments),
}

/// The stream of [`Corpus::documents`].
pub struct Documents {
    corpus: Corpus,
    source: Source,
    to_skip: u64,
    given: u64,
    ended: bool,
}

impl Documents {
    /// Share of the stream that has been given, in 0..=1: of the bytes on disk, or of the documents where their number is known.
    pub fn share(&self) -> f64 {
        let share = |done: u64, all: u64| (done as f64 / all.max(1) as f64).min(1.0);
        let limited = self.corpus.options.limit.map_or(0.0, |limit| share(self.given, limit));
        let read = match &self.source {
            Source::Unopened => 0.0,
            Source::InOrder(reading) => share(reading.bytes_read(), self.corpus.bytes()),
            Source::Shuffled(documents) => share(self.given, documents.documents()),
        };
        read.max(limited)
    }

    /// Malformed records that were skipped so far.
    pub fn malformed(&self) -> u64 {
        match &self.source {
            Source::Unopened => 0,
            Source::InOrder(reading) => reading.malformed(),
            Source::Shuffled(documents) => documents.malformed(),
        }
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        if self.corpus.options.limit.is_some_and(|limit| self.given == limit) {
            return Ok(None);
        }
        loop {
            let document = match &mut self.source {
                Source::InOrder(reading) => reading.next()?,
                Source::Shuffled(documents) => documents.next()?,
                Source::Unopened => {
                    let shuffled = self.corpus.options.shuffle_seed.map(|seed| self.corpus.shuffled(seed, &|| false)).transpose()?;
                    self.source = match shuffled.flatten() {
                        Some(shuffled) => Source::Shuffled(ShuffledDocuments::of(&shuffled, &self.corpus)),
                        None => Source::InOrder(Box::new(Reading::of(&self.corpus))),
                    };
                    continue;
                }
            };
            if document.is_none() || self.to_skip == 0 {
                self.given += u64::from(document.is_some());
                return Ok(document);
            }
            self.to_skip -= 1;
        }
    }

    fn empty(&self) -> Error {
        let (files, skip) = (&self.corpus.files, self.corpus.options.skip);
        if self.to_skip < skip {
            let found = format!("{skip} and a corpus of {}", skip - self.to_skip);
            return Error::usage("--skip", "fewer documents than there are", found, "skip fewer, or name a larger corpus");
        }
        let path = files.first().map_or(Path::new("corpus"), |file| &file.path);
        let found = if files.len() == 1 { "none".to_owned() } else { format!("none in it and the {} files after it", files.len() - 1) };
        Error::data(path, "documents", "at least one line of text", found, "name a corpus that is not empty")
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = match self.advance() {
            Ok(None) if self.given == 0 => Some(Err(self.empty())),
            other => other.transpose(),
        };
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests;
