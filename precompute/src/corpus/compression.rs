//! Raw bytes of a corpus file, decompressed as they are read.

use logitcache::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a corpus file is compressed; told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip; several members in one file are read one after the other.
    Gzip,
    /// Zstandard; several frames in one file are read one after the other.
    Zstandard,
}

/// How much is read, and decompressed, at a time.
const BUFFER_BYTES: usize = 1 << 16;

/// Counts what has been read from the disk, for progress in the unit that the directory listing knows.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Opens `path` for reading its decompressed content; raw bytes are added to `bytes_read`.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened. Damaged content shows itself when it is read.
pub(super) fn open(path: &Path, compression: Compression, bytes_read: &Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let raw = BufReader::with_capacity(BUFFER_BYTES, Counted { file, bytes: Arc::clone(bytes_read) });
    Ok(match compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::bufread::MultiGzDecoder::new(raw))),
        Compression::Zstandard => {
            let decoder = zstd::Decoder::with_buffer(raw).map_err(Error::io("start decompressing", path))?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn read(name: &str, content: &[u8], compression: Compression) -> (std::io::Result<String>, u64) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let mut text = String::new();
        let outcome = open(&path, compression, &bytes).unwrap().read_to_string(&mut text).map(|_| text);
        (outcome, bytes.load(Ordering::Relaxed))
    }

    #[test]
    fn several_members_and_frames_are_one_text() {
        let members = [gzip("one\n"), gzip(""), gzip("two\n")].concat();
        let (text, bytes) = read("a.txt.gz", &members, Compression::Gzip);
        assert_eq!(text.unwrap(), "one\ntwo\n");
        assert_eq!(bytes, members.len() as u64);
        let frames = [zstd::encode_all(&b"one\n"[..], 1).unwrap(), zstd::encode_all(&b"two\n"[..], 1).unwrap()].concat();
        let (text, bytes) = read("a.txt.zst", &frames, Compression::Zstandard);
        assert_eq!(text.unwrap(), "one\ntwo\n");
        assert_eq!(bytes, frames.len() as u64);
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let whole = gzip(&"reaction ".repeat(500));
        assert!(read("a.txt.gz", &whole[..whole.len() - 6], Compression::Gzip).0.is_err());
        let whole = zstd::encode_all("reaction ".repeat(500).as_bytes(), 1).unwrap();
        assert!(read("a.txt.zst", &whole[..whole.len() - 3], Compression::Zstandard).0.is_err());
    }
}
