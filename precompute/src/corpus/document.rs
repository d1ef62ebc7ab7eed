//! A document: what is read of one record, and where it stands.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a record stands in its file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Its first line, after decompression.
    Line(u64),
    /// Its row in a file that has no lines.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(formatter, "line {number}"),
            Self::Row(number) => write!(formatter, "row {number}"),
        }
    }
}

/// The text of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Text {
    /// As it was written.
    Whole(String),
    /// Already split into words.
    Words(Vec<String>),
}

/// What is known to be the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Gold {
    /// Nothing.
    #[default]
    Unknown,
    /// The class of the whole.
    Class(u32),
    /// A number for each class, or one for a pair.
    Values(Vec<f32>),
    /// `[word]`: the class of each word, or [`logitcache::cache::record::IGNORED_LABEL`].
    Words(Vec<i32>),
}

/// A text, what belongs to it and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its number in corpus order, from 0; skipped and malformed records have one too.
    pub id: u64,
    /// The file that holds it.
    pub file: Arc<Path>,
    /// Where in the file.
    pub place: Place,
    /// The text, without its last line end.
    pub text: Text,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The answer, where the corpus has it.
    pub gold: Gold,
}

impl Document {
    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        let text = match &self.text {
            Text::Whole(text) => text.len(),
            Text::Words(words) => words.iter().map(String::len).sum(),
        };
        text + self.pair.as_ref().map_or(0, String::len)
    }
}
