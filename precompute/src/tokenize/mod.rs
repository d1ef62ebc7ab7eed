//! Documents to token ids, with whatever tokenizer the teacher came with (a `tokenizer.json`).
//!
//! Documents are encoded without special tokens; [`Frame`] and [`PairFrame`] say what to put around a sequence once it has been cut.

mod frame;
mod special_tokens;

pub use frame::{Frame, PairFrame};
pub use special_tokens::SpecialTokens;

use crate::corpus::{Document, Text};
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use tokenizers::{PreTokenizerWrapper, Tokenizer};

/// The word number of a token that belongs to no word.
pub const NO_WORD: u32 = u32::MAX;

/// Largest id accepted: the vocabulary is held as a list, and no real one comes near.
const MAXIMUM_ID: u32 = 1 << 24;

/// A document's tokens, without the frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedDocument {
    /// Those of its text.
    pub text: Encoded,
    /// Those of the second text of a pair.
    pub pair: Option<Encoded>,
}

/// A text's tokens.
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
    pair_frame: Option<PairFrame>,
    special: SpecialTokens,
    vocabulary: Vec<String>,
    path: PathBuf,
}

impl DocumentTokenizer {
    /// Loads `tokenizer.json`, and the names of its special tokens from the files beside it. Truncation and padding that the file asks
    /// for are switched off: cutting and padding are done later, and nothing of a document may be lost here.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, a tokenizer without a special token that `task` needs, a frame that cannot be found.
    pub fn open(tokenizer_json: &Path, task: Task) -> Result<Self> {
        let bytes = std::fs::read(tokenizer_json).map_err(Error::io("read", tokenizer_json))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(Error::library("load the tokenizer", tokenizer_json))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(Error::library("switch off the truncation of", tokenizer_json))?;
        let vocabulary = list_vocabulary(&tokenizer, tokenizer_json)?;
        let mut special = SpecialTokens::find(&tokenizer, &bytes, tokenizer_json, task)?;
        let samples = || {
            let from_vocabulary = vocabulary.iter().enumerate().filter(|(id, token)| !special.contains(*id as u32) && !token.is_empty());
            ["a", "C", "1", "the"].into_iter().chain(from_vocabulary.map(|(_, token)| token.as_str()).take(200))
        };
        let frame = Frame::find(&tokenizer, samples(), tokenizer_json)?;
        let pair_frame = PairFrame::find(&tokenizer, samples());
        let of_pairs = pair_frame.iter().flat_map(|frame| [&frame.prefix, &frame.middle, &frame.suffix].map(Clone::clone)).flatten();
        special.add(frame.prefix.iter().chain(&frame.suffix).copied().chain(of_pairs));
        Ok(Self { tokenizer, frame, pair_frame, special, vocabulary, path: tokenizer_json.to_owned() })
    }

    /// What goes around a sequence.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// What goes around and between the two texts of a pair.
    ///
    /// # Errors
    /// A tokenizer whose template for pairs could not be made out.
    pub fn pair_frame(&self) -> Result<&PairFrame> {
        self.pair_frame.as_ref().ok_or_else(|| {
            let found = "none that puts one text before the other";
            Error::data(
                &self.path,
                "post_processor",
                "a template for pairs",
                found,
                "leave --text-pair-field out, or use another tokenizer",
            )
        })
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

    /// Whether words that are given one by one are the same to the model as words in a text: a byte-level tokenizer that adds no space
    /// before a word takes it for the rest of another.
    pub fn knows_single_words(&self) -> bool {
        fn knows(pre_tokenizer: &PreTokenizerWrapper) -> bool {
            match pre_tokenizer {
                PreTokenizerWrapper::ByteLevel(bytes) => bytes.add_prefix_space,
                PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().all(knows),
                _ => true,
            }
        }
        self.tokenizer.get_pre_tokenizer().is_none_or(knows)
    }

    /// Encodes documents on the current rayon pool; the answers stand in the order of `documents`.
    ///
    /// # Errors
    /// The tokenizer's refusal of a text, with the document's file and line.
    pub fn encode_batch(&self, documents: &[Document]) -> Result<Vec<EncodedDocument>> {
        documents.par_iter().map(|document| self.encode(document)).collect()
    }

    fn encode(&self, document: &Document) -> Result<EncodedDocument> {
        let encoded = |encoding: tokenizers::Result<tokenizers::Encoding>| {
            let encoding = encoding.map_err(Error::library(format!("tokenise {} of", document.place), &document.file))?;
            let words = encoding.get_word_ids().iter().map(|word| word.unwrap_or(NO_WORD)).collect();
            Ok(Encoded { ids: encoding.get_ids().to_vec(), words })
        };
        let text = encoded(match &document.text {
            Text::Whole(text) => self.tokenizer.encode(text.as_str(), false),
            Text::Words(words) => self.tokenizer.encode(words.as_slice(), false),
        })?;
        let pair = document.pair.as_ref().map(|text| encoded(self.tokenizer.encode(text.as_str(), false))).transpose()?;
        Ok(EncodedDocument { text, pair })
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

#[cfg(test)]
mod tests;
