//! The corpus: files in a fixed order, streamed as documents that know where they came from.
//!
//! - [`listing`]: which files, in which order.
//! - [`compression`]: their bytes, decompressed as they are read.
//! - [`lines`]: numbered UTF-8 lines of bounded length.
//! - `text`, `jsonl`: documents from lines.
//!
//! Memory holds one line (or block) and two buffers, however large the corpus is.

pub mod compression;
mod jsonl;
pub mod lines;
pub mod listing;
mod text;

pub use listing::CorpusFile;

use lines::Lines;
use listing::Format;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::{Fingerprint, Hasher};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The field of a JSON line that holds the text, unless another is named.
pub const DEFAULT_TEXT_FIELD: &str = "text";

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// What a document of a text file is.
    pub document: DocumentUnit,
    /// Which field of a JSON line is the document.
    pub text_field: String,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { document: DocumentUnit::Line, text_field: DEFAULT_TEXT_FIELD.to_owned() }
    }
}

/// A text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its number in corpus order, from 0.
    pub id: u64,
    /// The file that holds it.
    pub file: Arc<Path>,
    /// The number of its first line, from 1, after decompression.
    pub line: u64,
    /// The text, without its last line end.
    pub text: String,
}

/// A listed corpus; each pass streams it anew.
#[derive(Clone, Debug)]
pub struct Corpus {
    files: Arc<[CorpusFile]>,
    options: CorpusOptions,
}

impl Corpus {
    /// Lists the files of `paths` (see [`listing::list`]) without reading them.
    ///
    /// # Errors
    /// Those of [`listing::list`].
    pub fn open(paths: &[PathBuf], options: CorpusOptions) -> Result<Self> {
        Ok(Self { files: listing::list(paths)?.into(), options })
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// Size of all files on disk, in bytes: what [`Documents::bytes_read`] reaches at the end.
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

    /// Streams every document, numbered from 0 in corpus order. The first error ends the stream; a corpus without documents is one.
    pub fn documents(&self) -> Documents {
        let bytes_read = Arc::new(AtomicU64::new(0));
        Documents { corpus: self.clone(), next_file: 0, current: None, next_id: 0, bytes_read, ended: false }
    }
}

/// The stream of [`Corpus::documents`].
pub struct Documents {
    corpus: Corpus,
    next_file: usize,
    current: Option<(Lines, Format)>,
    next_id: u64,
    bytes_read: Arc<AtomicU64>,
    ended: bool,
}

impl Documents {
    /// Bytes read from the disk so far, before decompression.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some((lines, format)) = &mut self.current {
                let document = match format {
                    Format::Text => text::next_document(lines, self.corpus.options.document)?,
                    Format::JsonLines => jsonl::next_document(lines, &self.corpus.options.text_field)?,
                };
                if let Some((line, text)) = document {
                    let document = Document { id: self.next_id, file: Arc::clone(lines.path()), line, text };
                    self.next_id += 1;
                    return Ok(Some(document));
                }
            }
            let Some(file) = self.corpus.files.get(self.next_file) else { return Ok(None) };
            let reader = compression::open(&file.path, file.compression, &self.bytes_read)?;
            self.current = Some((Lines::new(Arc::clone(&file.path), reader), file.format));
            self.next_file += 1;
        }
    }

    fn empty(&self) -> Error {
        let files = &self.corpus.files;
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
            Ok(None) if self.next_id == 0 => Some(Err(self.empty())),
            other => other.transpose(),
        };
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests;
