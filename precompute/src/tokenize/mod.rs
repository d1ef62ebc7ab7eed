//! Documents to token ids, with whatever tokenizer the teacher came with (a `tokenizer.json`).
//!
//! Documents are encoded without special tokens; [`Frame`] says what to put around a sequence once it has been cut.

mod special_tokens;

pub use special_tokens::SpecialTokens;

use crate::corpus::{Document, Text};
use logitcache::error::{Error, Result};
use rayon::prelude::*;
use std::path::Path;
use tokenizers::Tokenizer;

/// The word number of a token that belongs to no word.
pub const NO_WORD: u32 = u32::MAX;

/// Largest id accepted: the vocabulary is held as a list, and no real one comes near.
const MAXIMUM_ID: u32 = 1 << 24;

/// The special tokens around a sequence, for example `[CLS]` before and `[SEP]` after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Ids before the sequence.
    pub prefix: Vec<u32>,
    /// Ids after the sequence.
    pub suffix: Vec<u32>,
    /// Segment ids of `prefix`.
    pub prefix_segments: Vec<u8>,
    /// Segment ids of `suffix`.
    pub suffix_segments: Vec<u8>,
    /// Segment id of the sequence's own tokens.
    pub segment: u8,
}

impl Frame {
    /// How many tokens it adds.
    pub fn tokens(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }
}

/// A document's tokens, without the frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// `[length]`: token ids.
    pub ids: Vec<u32>,
    /// `[length]`: number of the word that the token is a piece of, ascending, or [`NO_WORD`]: the document's own words where it has them,
    /// else those into which the tokenizer splits text before its model sees it.
    pub words: Vec<u32>,
}

/// A tokenizer together with what has to be known about it.
pub struct DocumentTokenizer {
    tokenizer: Tokenizer,
    frame: Frame,
    special: SpecialTokens,
    vocabulary: Vec<String>,
}

impl DocumentTokenizer {
    /// Loads `tokenizer.json`, and the names of its special tokens from the files beside it. Truncation and padding that the file asks
    /// for are switched off: cutting and padding are done later, and nothing of a document may be lost here.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, a tokenizer without mask or padding token, a frame that cannot be found.
    pub fn open(tokenizer_json: &Path) -> Result<Self> {
        let bytes = std::fs::read(tokenizer_json).map_err(Error::io("read", tokenizer_json))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(Error::library("load the tokenizer", tokenizer_json))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(Error::library("switch off the truncation of", tokenizer_json))?;
        let vocabulary = list_vocabulary(&tokenizer, tokenizer_json)?;
        let mut special = SpecialTokens::find(&tokenizer, &bytes, tokenizer_json)?;
        let frame = find_frame(&tokenizer, &vocabulary, &special, tokenizer_json)?;
        special.add(frame.prefix.iter().chain(&frame.suffix).copied());
        Ok(Self { tokenizer, frame, special, vocabulary })
    }

    /// What goes around a sequence.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The ids with a meaning of their own.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// `[largest id + 1]`: the token of each id, added ones included; empty where an id has none. Its length is what the teacher's
    /// vocabulary must at least have.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// Whether text is split into words before the model cuts it into pieces; without, a document is one word and whole-word masking
    /// has no meaning.
    pub fn splits_words(&self) -> bool {
        self.tokenizer.get_pre_tokenizer().is_some()
    }

    /// Encodes documents on the current rayon pool; the answers stand in the order of `documents`.
    ///
    /// # Errors
    /// The tokenizer's refusal of a text, with the document's file and line.
    pub fn encode_batch(&self, documents: &[Document]) -> Result<Vec<Encoded>> {
        documents.par_iter().map(|document| self.encode(document)).collect()
    }

    fn encode(&self, document: &Document) -> Result<Encoded> {
        let encoding = match &document.text {
            Text::Whole(text) => self.tokenizer.encode(text.as_str(), false),
            Text::Words(words) => self.tokenizer.encode(words.as_slice(), false),
        };
        let encoding = encoding.map_err(Error::library(format!("tokenise {} of", document.place), &document.file))?;
        let words = encoding.get_word_ids().iter().map(|word| word.unwrap_or(NO_WORD)).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), words })
    }
}

fn list_vocabulary(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<String>> {
    let ids = tokenizer.get_vocab(true);
    let largest = ids.values().copied().max().ok_or_else(|| {
        Error::data(path, "vocabulary", "at least one token", "none", "use the tokenizer.json that belongs to the teacher")
    })?;
    if largest >= MAXIMUM_ID {
        let remedy = "use the tokenizer.json that belongs to the teacher";
        return Err(Error::data(path, "vocabulary", format!("ids below {MAXIMUM_ID}"), largest.to_string(), remedy));
    }
    let mut tokens = vec![String::new(); largest as usize + 1];
    for (token, id) in ids {
        let slot = &mut tokens[id as usize];
        // Two tokens of one id occur in damaged files only; the smaller text wins whatever the hash map's order is.
        if slot.is_empty() || token < *slot {
            *slot = token;
        }
    }
    Ok(tokens)
}

/// Finds the frame by encoding the same text with and without special tokens. Two texts must agree on it.
fn find_frame(tokenizer: &Tokenizer, vocabulary: &[String], special: &SpecialTokens, path: &Path) -> Result<Frame> {
    let from_vocabulary = vocabulary.iter().enumerate().filter(|(id, token)| !special.contains(*id as u32) && !token.is_empty());
    let samples = ["a", "C", "1", "the"].into_iter().chain(from_vocabulary.map(|(_, token)| token.as_str()).take(200));
    let mut found: Option<Frame> = None;
    for sample in samples {
        // A tokenizer may refuse or drop what its vocabulary cannot express; another sample will do.
        let (Ok(plain), Ok(framed)) = (tokenizer.encode(sample, false), tokenizer.encode(sample, true)) else { continue };
        if plain.is_empty() {
            continue;
        }
        let frame = frame_around(plain.get_ids(), framed.get_ids(), framed.get_type_ids());
        match (found, frame) {
            (None, Some(frame)) => found = Some(frame),
            (Some(first), Some(second)) if first == second => return Ok(first),
            _ => {
                let found = format!("tokens {:?} for {sample:?}, which alone gives {:?}", framed.get_ids(), plain.get_ids());
                let expected = "the same special tokens before and after every text";
                return Err(Error::data(path, "post_processor", expected, found, "use a tokenizer whose template frames one sequence"));
            }
        }
    }
    found.ok_or_else(|| {
        Error::data(path, "vocabulary", "tokens that can be encoded", "none", "use the tokenizer.json that belongs to the teacher")
    })
}

fn frame_around(plain: &[u32], framed: &[u32], segments: &[u32]) -> Option<Frame> {
    let start = framed.windows(plain.len()).position(|window| window == plain)?;
    let end = start + plain.len();
    let bytes = |range: &[u32]| range.iter().map(|segment| u8::try_from(*segment).ok()).collect::<Option<Vec<u8>>>();
    Some(Frame {
        prefix: framed[..start].to_vec(),
        suffix: framed[end..].to_vec(),
        prefix_segments: bytes(&segments[..start])?,
        suffix_segments: bytes(&segments[end..])?,
        segment: *bytes(&segments[start..end])?.first()?,
    })
}

#[cfg(test)]
mod tests;
