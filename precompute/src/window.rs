//! Documents to sequences of bounded length. Pure: the same tokens give the same sequences.
//!
//! Encoders see each stretch of a document in the tokenizer's frame of special tokens. A causal language model sees the stream that a document
//! in its frame is, cut without repeating the frame, or (packed) the streams of all documents one after the other, cut to full length.

mod causal;
mod framed;
mod rules;

pub use rules::{DEFAULT_MIN_TOKENS, LARGEST_LENGTH, WindowOptions, WindowRules};

use crate::corpus::Gold;
use crate::tokenize::{EncodedDocument, Frame, PairFrame, SpecialTokens};
use causal::Stream;
use logitcache::target::Task;
use rules::Layout;
use std::ops::Range;

/// What the teacher is asked about, before masking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// Its number in corpus order, from 0; the same in every pass.
    pub sequence_id: u64,
    /// The document it was cut from; the first one of a packed sequence.
    pub document_id: u64,
    /// `[length]`: token ids, frame included.
    pub input_ids: Vec<u32>,
    /// `[length]`: segment ids.
    pub token_type_ids: Vec<u8>,
    /// `[length]`: the word each token belongs to, numbered through the document; [`crate::tokenize::NO_WORD`] in the frame. Empty for causal
    /// language models.
    pub words: Vec<u32>,
    /// The record's labels, but for a masked language model, whose labels are what is masked.
    pub labels: Vec<i32>,
    /// The record's gold numbers.
    pub label_values: Vec<f32>,
}

/// What came of one pass over a corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowCounts {
    /// Documents seen, dropped ones included.
    pub documents: u64,
    /// Documents dropped for being shorter than the minimum.
    pub dropped_short: u64,
    /// Documents dropped because at least half of their tokens are unknown.
    pub dropped_unknown: u64,
    /// Windows dropped from documents that were kept: a rest below the minimum, or a stretch that is at least half unknown.
    pub dropped_windows: u64,
    /// Documents of which the end was left out.
    pub truncated: u64,
    /// Sequences kept.
    pub sequences: u64,
    /// Tokens of the sequences kept, frame included.
    pub tokens: u64,
}

/// Cuts the documents of one pass in corpus order, numbers the sequences and counts.
///
/// For a masked language model a special token that stands in the text itself counts as unknown: neither can be masked or asked. So every
/// sequence kept has at least one token that can.
#[derive(Clone, Debug)]
pub struct Windows {
    rules: WindowRules,
    frame: Frame,
    pair_frame: Option<PairFrame>,
    special: SpecialTokens,
    counts: WindowCounts,
    /// What is left of the documents before, where they are packed.
    packed: Stream,
}

impl Windows {
    /// Starts at sequence 0. Pairs need a `pair_frame`; without one their second text is not looked at.
    pub fn new(rules: WindowRules, frame: &Frame, pair_frame: Option<&PairFrame>, special: &SpecialTokens) -> Self {
        let (frame, pair_frame) = (frame.clone(), pair_frame.cloned());
        Self { rules, frame, pair_frame, special: special.clone(), counts: WindowCounts::default(), packed: Stream::default() }
    }

    /// The sequences of the next document: consecutive stretches of its tokens, each as long as the rules allow, or the first one alone; for
    /// packed documents those that it fills.
    pub fn cut(&mut self, document_id: u64, encoded: &EncodedDocument, gold: &Gold) -> Vec<Sequence> {
        self.counts.documents += 1;
        let sequences = match (self.rules.layout, &encoded.pair, self.rules.task.task) {
            (Layout::Framed, Some(pair), Task::SentenceEmbedding) => self.two(&encoded.text, pair, gold),
            (Layout::Framed, Some(pair), _) if self.pair_frame.is_some() => self.pair(&encoded.text, pair, gold),
            (Layout::Framed, ..) => self.framed(&encoded.text, gold),
            (Layout::Stream, ..) => self.stream(&encoded.text),
            (Layout::Packed, ..) => return self.pack(document_id, &encoded.text),
        };
        sequences.into_iter().map(|sequence| self.number(document_id, sequence)).collect()
    }

    /// What is left when the last document was seen: the end of the packed ones.
    pub fn finish(&mut self) -> Option<Sequence> {
        self.rest_of_packed()
    }

    /// How documents are cut.
    pub fn rules(&self) -> &WindowRules {
        &self.rules
    }

    /// What has been seen so far.
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    fn number(&mut self, document_id: u64, sequence: Sequence) -> Sequence {
        let sequence = Sequence { sequence_id: self.counts.sequences, document_id, ..sequence };
        self.counts.sequences += 1;
        self.counts.tokens += sequence.input_ids.len() as u64;
        sequence
    }

    fn half_unknown(&self, ids: &[u32]) -> bool {
        self.rules.task.task == Task::MaskedLm && 2 * ids.iter().filter(|id| self.special.contains(**id)).count() >= ids.len()
    }

    /// The stretches of `length` tokens where `room` of them fit; counts a document of which the end is left out.
    fn stretches(&mut self, length: usize, room: usize) -> Vec<Range<usize>> {
        let mut stretches = Vec::with_capacity(length.div_ceil(room));
        let mut start = 0;
        loop {
            let end = length.min(start + room);
            stretches.push(start..end);
            if end == length {
                return stretches;
            }
            if self.rules.truncate {
                self.counts.truncated += 1;
                return stretches;
            }
            start += room - self.rules.stride;
        }
    }
}

#[cfg(test)]
mod tests;
