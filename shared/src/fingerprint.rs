//! Content hashes: what a cache was made from, and what its files hold.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

const HEX_DIGITS: usize = 64;
const READ_BYTES: usize = 1 << 18;

/// A SHA-256 digest (FIPS 180-4), written as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The digest of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of a file's content, read in pieces: memory does not grow with the file.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || Error::invalid("fingerprint", format!("{HEX_DIGITS} hexadecimal digits"), format!("{text:?}"));
        if text.len() != HEX_DIGITS || !text.is_ascii() {
            return Err(refuse());
        }
        let mut digest = [0; 32];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16).ok_or_else(refuse);
            *byte = (value(digits[0])? * 16 + value(digits[1])?) as u8;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// A digest that grows piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A digest of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `bytes`; where the pieces are cut does not matter.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Appends `bytes` behind their length, so that a list of parts has one reading: ("ab", "c") differs from ("a", "bc").
    pub fn update_part(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }

    /// The digest of everything appended.
    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's own example.
    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_published_example() {
        assert_eq!(Fingerprint::of_bytes(b"abc").to_string(), OF_ABC);
    }

    #[test]
    fn text_and_json_give_it_back() {
        let fingerprint: Fingerprint = OF_ABC.parse().unwrap();
        assert_eq!(fingerprint, Fingerprint::of_bytes(b"abc"));
        let json = serde_json::to_string(&fingerprint).unwrap();
        assert_eq!(json, format!("\"{OF_ABC}\""));
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), fingerprint);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "abc", &OF_ABC[1..], &OF_ABC.replace('b', "g"), &format!("{OF_ABC}0"), &"é".repeat(32)] {
            let message = text.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(message.contains("64 hexadecimal digits"), "{message}");
        }
    }

    #[test]
    fn pieces_do_not_matter_and_parts_do() {
        let of = |pieces: &[&str], part: bool| {
            let mut hasher = Hasher::new();
            pieces.iter().for_each(|piece| if part { hasher.update_part(piece.as_bytes()) } else { hasher.update(piece.as_bytes()) });
            hasher.finish()
        };
        assert_eq!(of(&["ab", "c"], false), of(&["a", "bc"], false));
        assert_ne!(of(&["ab", "c"], true), of(&["a", "bc"], true));
    }

    #[test]
    fn a_file_larger_than_the_buffer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bytes");
        let bytes: Vec<u8> = (0..READ_BYTES * 2 + 17).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Fingerprint::of_file(&path).unwrap(), Fingerprint::of_bytes(&bytes));
        let missing = Fingerprint::of_file(&directory.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }
}
