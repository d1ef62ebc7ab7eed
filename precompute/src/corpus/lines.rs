//! Numbered lines of UTF-8 text, one at a time.

use logitcache::error::{Error, Result};
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

/// The longest line, and the longest document, that is read: 64 MiB. It bounds the memory that a file can ask for.
pub const MAXIMUM_DOCUMENT_BYTES: usize = 64 << 20;

/// A line, without its line end (LF or CRLF) and without a byte order mark.
#[derive(Debug)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: u64,
    /// Its text, or why it is none; the next line can be read all the same.
    pub(super) text: Result<String>,
}

/// The lines of one file.
pub(super) struct Lines {
    path: Arc<Path>,
    reader: Box<dyn BufRead + Send>,
    /// Number of the line read last, from 1.
    number: u64,
    /// Decompressed bytes before the next line.
    offset: u64,
    maximum_bytes: usize,
}

impl Lines {
    /// The lines of `reader`, which holds the decompressed content of `path`.
    pub(super) fn new(path: Arc<Path>, reader: Box<dyn BufRead + Send>) -> Self {
        Self { path, reader, number: 0, offset: 0, maximum_bytes: MAXIMUM_DOCUMENT_BYTES }
    }

    /// The file that is read.
    pub(super) fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// Damage that no further line can be read behind, and a line above [`MAXIMUM_DOCUMENT_BYTES`].
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let mut bytes = Vec::new();
        let ended = self.read_to_line_feed(&mut bytes)?;
        if bytes.is_empty() && !ended {
            return Ok(None);
        }
        self.number += 1;
        let start = self.offset;
        self.offset += bytes.len() as u64 + u64::from(ended);
        let text = String::from_utf8(bytes).map_err(|error| self.not_utf8(start, &error)).map(|mut text| {
            if ended && text.ends_with('\r') {
                text.pop();
            }
            if self.number == 1 && text.starts_with('\u{feff}') {
                text.remove(0);
            }
            text
        });
        Ok(Some(Line { number: self.number, text }))
    }

    /// Appends the bytes up to the next line feed, which is consumed but not kept; false where the file ended first.
    fn read_to_line_feed(&mut self, bytes: &mut Vec<u8>) -> Result<bool> {
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let action = format!("read (after line {}, is it damaged or cut short?)", self.number);
                    return Err(Error::library(action, &self.path)(error));
                }
            };
            if available.is_empty() {
                return Ok(false);
            }
            let (used, ended) = match available.iter().position(|byte| *byte == b'\n') {
                Some(index) => (index, true),
                None => (available.len(), false),
            };
            bytes.extend_from_slice(&available[..used]);
            self.reader.consume(used + usize::from(ended));
            if bytes.len() > self.maximum_bytes {
                let expected = format!("at most {} bytes", self.maximum_bytes);
                let remedy = "split it: a document this long is usually a file without line ends";
                return Err(Error::data(&self.path, format!("line {}", self.number + 1), expected, "a longer line", remedy));
            }
            if ended {
                return Ok(true);
            }
        }
    }

    fn not_utf8(&self, start: u64, error: &std::string::FromUtf8Error) -> Error {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let field = format!("line {}, byte offset {}", self.number, start + valid as u64);
        let (found, remedy) = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] if start == 0 => ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
            [0x1f, 0x8b, ..] if start == 0 => ("gzip data", "let its name end in .gz"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] if start == 0 => ("Zstandard data", "let its name end in .zst"),
            _ => ("", "convert it, for example: iconv -f ISO-8859-1 -t UTF-8"),
        };
        let found = if found.is_empty() { format!("the byte 0x{:02x}", bytes[valid]) } else { found.to_owned() };
        Error::data(&self.path, field, "UTF-8 text", found, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Cursor};

    /// A tiny buffer, so that lines cross its border.
    fn lines(content: &[u8]) -> Lines {
        let reader = BufReader::with_capacity(3, Cursor::new(content.to_vec()));
        Lines::new(Path::new("corpus.txt").into(), Box::new(reader))
    }

    fn all(content: &[u8]) -> Vec<(u64, String)> {
        let mut lines = lines(content);
        std::iter::from_fn(|| lines.next().unwrap().map(|line| (line.number, line.text.unwrap()))).collect()
    }

    #[test]
    fn line_ends_and_byte_order_mark_are_taken_off() {
        let expected: Vec<_> = [(1, "first"), (2, ""), (3, "gr\u{fc}n"), (4, "last")].map(|(n, text)| (n, text.to_owned())).into();
        assert_eq!(all("\u{feff}first\r\n\r\ngr\u{fc}n\nlast".as_bytes()), expected);
        assert_eq!(all("first\n\ngr\u{fc}n\nlast\n".as_bytes()), expected);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\n"), [(1, String::new())]);
        assert_eq!(all(b"a\rb\n"), [(1, "a\rb".to_owned())]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_placed() {
        let mut lines = lines(b"good\r\nbad \xe9 here\ngood\n");
        lines.next().unwrap();
        let message = lines.next().unwrap().unwrap().text.unwrap_err().to_string();
        for part in ["corpus.txt", "line 2", "byte offset 10", "0xe9", "UTF-8", "iconv"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert_eq!(lines.next().unwrap().unwrap().text.unwrap(), "good", "the next line can be read");
    }

    #[test]
    fn other_encodings_are_recognised() {
        for (content, found) in [(&b"\xff\xfeC\0"[..], "UTF-16"), (&b"\x1f\x8b\x08"[..], "gzip"), (&b"\x28\xb5\x2f\xfd"[..], "Zstandard")] {
            let message = lines(content).next().unwrap().unwrap().text.unwrap_err().to_string();
            assert!(message.contains(found), "{message}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut lines = lines(&[b'C'; 5000]);
        lines.maximum_bytes = 1000;
        let message = lines.next().unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("1000"), "{message}");
    }
}
