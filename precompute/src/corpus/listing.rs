//! Which files a corpus consists of, and in which order.

use super::compression::Compression;
use logitcache::error::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

/// The extensions that are read, for messages.
pub const READABLE: &str = "text (.txt, .text, .raw, .tokens, .smi, .smiles), JSON lines (.jsonl, .ndjson), tables (.csv, .tsv, .tab) or \
     CoNLL columns (.conll, .iob, .iob2, .bio), each plain or with .gz or .zst after it, or Parquet (.parquet, .pq)";

/// How the decompressed content of a file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// UTF-8 text: a document per line or per block.
    Text,
    /// A JSON object per line, some fields of which are read.
    JsonLines,
    /// A record per line with commas between its fields.
    Csv,
    /// The same with tabs.
    Tsv,
    /// A word per line with its columns, a blank line after each sentence.
    Conll,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// Every format with its name in flags and the extensions that tell it.
    const ALL: [(Self, &str, &[&str]); 6] = [
        (Self::Text, "text", &["txt", "text", "raw", "tokens", "smi", "smiles"]),
        (Self::JsonLines, "jsonl", &["jsonl", "ndjson"]),
        (Self::Csv, "csv", &["csv"]),
        (Self::Tsv, "tsv", &["tsv", "tab"]),
        (Self::Conll, "conll", &["conll", "iob", "iob2", "bio"]),
        (Self::Parquet, "parquet", &["parquet", "pq"]),
    ];

    /// The name in flags and files.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(format, ..)| *format == self).map_or("", |(_, name, _)| name)
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name, _)| *name == text).map(|(format, ..)| *format);
        found.ok_or_else(|| {
            let names = Self::ALL.map(|(_, name, _)| name).join(", ");
            Error::usage(
                "--format",
                format!("one of {names}"),
                format!("`{text}`"),
                "type one of them, or leave the flag out to go by the names",
            )
        })
    }
}

/// One file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusFile {
    /// Where it is, as given or as found under a directory given.
    pub path: Arc<Path>,
    /// Its size on disk, before decompression.
    pub bytes: u64,
    /// When it was last written, where the file system tells.
    pub modified: Option<SystemTime>,
    /// What its name, or a flag, says about its content.
    pub format: Format,
    /// What its name says about its compression.
    pub compression: Compression,
}

impl CorpusFile {
    /// Refuses a file that was written since it was listed: what was read of it is not what was hashed, or not what the next pass would read.
    ///
    /// # Errors
    /// [`Error::Data`]; [`Error::Io`] where it is gone.
    pub fn expect_unchanged(&self) -> Result<()> {
        let now = self.path.metadata().map_err(Error::io("look at", &self.path))?;
        if now.len() == self.bytes && now.modified().ok() == self.modified {
            return Ok(());
        }
        let found = match now.len() {
            bytes if bytes == self.bytes => "written again meanwhile".to_owned(),
            bytes => format!("{bytes} bytes"),
        };
        let remedy = "let nobody write to the corpus during a run; begin again in another directory";
        Err(Error::data(&self.path, "file", format!("the {} bytes it had when the run began", self.bytes), found, remedy))
    }
}

/// Lists the files of `paths`: each path in the order given, a directory's files depth first in the byte order of their names. Hidden
/// entries of a directory are skipped; a file reached twice is refused, since its documents would count twice. With a `format` every file has
/// it, whatever its name.
///
/// # Errors
/// A path that is not there, a directory without files, a file that is not a regular one, an extension that is not read.
pub fn list(paths: &[PathBuf], format: Option<Format>) -> Result<Vec<CorpusFile>> {
    if paths.is_empty() {
        return Err(Error::usage("--corpus", "at least one file or directory", "none", "name the text to read"));
    }
    let mut listing = Listing { files: Vec::new(), seen: HashSet::new(), format };
    for path in paths {
        listing.add_given(path)?;
    }
    Ok(listing.files)
}

struct Listing {
    files: Vec<CorpusFile>,
    /// Canonical paths of the files and directories visited.
    seen: HashSet<PathBuf>,
    /// Of every file, where it was given.
    format: Option<Format>,
}

impl Listing {
    fn add_given(&mut self, path: &Path) -> Result<()> {
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let found = format!("{}, which is not there", path.display());
                Err(Error::usage("--corpus", "an existing file or directory", found, "check the path"))
            }
            Err(error) => Err(Error::io("read", path)(error)),
            Ok(metadata) if metadata.is_dir() => {
                let before = self.files.len();
                self.add_directory(path)?;
                if self.files.len() == before {
                    let remedy = "put the corpus there or name another path (hidden files are skipped)";
                    return Err(Error::data(path, "directory", READABLE, "no files", remedy));
                }
                Ok(())
            }
            Ok(metadata) => self.add_file(path, &metadata),
        }
    }

    fn add_directory(&mut self, directory: &Path) -> Result<()> {
        self.visit(directory)?;
        let mut entries = std::fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<std::io::Result<Vec<_>>>())
            .map_err(Error::io("list", directory))?;
        entries.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        entries.sort_unstable_by(|a, b| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));
        for name in entries {
            let path = directory.join(name);
            let metadata = path.metadata().map_err(Error::io("read", &path))?;
            if metadata.is_dir() {
                self.add_directory(&path)?;
            } else {
                self.add_file(&path, &metadata)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, metadata: &std::fs::Metadata) -> Result<()> {
        if !metadata.is_file() {
            let remedy = "write the text to a file first: it is read once for its fingerprint and once per pass";
            return Err(Error::data(path, "file", "a regular file", "a pipe or device", remedy));
        }
        self.visit(path)?;
        let (format, compression) = from_name(path, self.format)?;
        self.files.push(CorpusFile { path: path.into(), bytes: metadata.len(), modified: metadata.modified().ok(), format, compression });
        Ok(())
    }

    fn visit(&mut self, path: &Path) -> Result<()> {
        let canonical = path.canonicalize().map_err(Error::io("resolve", path))?;
        if self.seen.insert(canonical) {
            return Ok(());
        }
        let remedy = "name each file once, and let no link lead back into a directory";
        Err(Error::data(path, "path", "a file or directory reached once", "one that was reached before", remedy))
    }
}

/// What the file's name says: `reactions.jsonl.zst` is zstd-compressed JSON lines. A `format` that was given goes before the name's.
fn from_name(path: &Path, format: Option<Format>) -> Result<(Format, Compression)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(".zst") {
        (stem, Compression::Zstandard)
    } else {
        (name.as_str(), Compression::None)
    };
    let extension = stem.rsplit_once('.').map_or("", |(_, extension)| extension);
    let named = Format::ALL.iter().find(|(_, _, extensions)| extensions.contains(&extension)).map(|(format, ..)| *format);
    let Some(format) = format.or(named) else {
        let found = if extension.is_empty() { "no extension".to_owned() } else { format!(".{extension}") };
        let remedy = "say what it is with --format, rename it, or leave it out of the corpus";
        return Err(Error::data(path, "extension", READABLE, found, remedy));
    };
    if format == Format::Parquet && compression != Compression::None {
        let remedy = "decompress it: Parquet compresses its columns itself, and is read by its end first";
        return Err(Error::data(path, "extension", "a Parquet file as it was written", "a compressed one", remedy));
    }
    Ok((format, compression))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(paths: &[PathBuf], root: &Path) -> Vec<String> {
        let files = list(paths, None).unwrap();
        files.iter().map(|file| file.path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn directories_are_walked_in_name_order_and_hidden_entries_skipped() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/deep")).unwrap();
        fs::create_dir_all(root.path().join(".cache")).unwrap();
        for name in ["c.txt", "a.txt", "B.TXT", "b/z.jsonl.gz", "b/deep/x.smi.zst", ".hidden.csv", ".cache/y.txt"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        let listed = names(&[root.path().to_owned()], root.path());
        assert_eq!(listed, ["B.TXT", "a.txt", "b/deep/x.smi.zst", "b/z.jsonl.gz", "c.txt"]);
        let given = [root.path().join("c.txt"), root.path().join("a.txt"), root.path().join("b")];
        assert_eq!(names(&given, root.path()), ["c.txt", "a.txt", "b/deep/x.smi.zst", "b/z.jsonl.gz"]);
    }

    #[test]
    fn a_name_tells_format_and_compression() {
        let cases = [
            ("a.txt", Format::Text, Compression::None),
            ("a.v2.JSONL.GZ", Format::JsonLines, Compression::Gzip),
            ("train.smi.zst", Format::Text, Compression::Zstandard),
            ("sst2.TSV.gz", Format::Tsv, Compression::Gzip),
            ("a.csv", Format::Csv, Compression::None),
            ("eng.iob2.zst", Format::Conll, Compression::Zstandard),
            ("train-00000-of-00001.parquet", Format::Parquet, Compression::None),
        ];
        for (name, format, compression) in cases {
            assert_eq!(from_name(Path::new(name), None).unwrap(), (format, compression), "{name}");
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
        }
        let given = from_name(Path::new("train.txt.gz"), Some(Format::Conll)).unwrap();
        assert_eq!(given, (Format::Conll, Compression::Gzip), "a format given goes before the name's");
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("text, jsonl, csv, tsv, conll, parquet"));
    }

    #[test]
    fn refusals_name_the_path_and_what_is_read() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing.txt");
        let error = list(std::slice::from_ref(&missing), None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("missing.txt"), "{error}");
        let error = list(&[root.path().to_owned()], None).unwrap_err();
        assert!(error.to_string().contains("no files") && error.exit_code() == 1, "{error}");
        for name in ["table.xlsx", "rows.arrow", "plain", "rows.xml.gz", "archive.gz"] {
            let path = root.path().join(name);
            fs::write(&path, "x").unwrap();
            let message = list(std::slice::from_ref(&path), None).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(".jsonl") && message.contains(".txt"), "{message}");
            fs::remove_file(path).unwrap();
        }
        let error = from_name(Path::new("rows.parquet.gz"), None).unwrap_err();
        assert!(error.to_string().contains("decompress"), "{error}");
        assert_eq!(list(&[], None).unwrap_err().exit_code(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_reached_twice_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("a.txt");
        fs::write(&file, "x").unwrap();
        let message = list(&[root.path().to_owned(), file], None).unwrap_err().to_string();
        assert!(message.contains("a.txt") && message.contains("before"), "{message}");
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).unwrap();
        let message = list(&[root.path().to_owned()], None).unwrap_err().to_string();
        assert!(message.contains("loop"), "{message}");
    }
}
