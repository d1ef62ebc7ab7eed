//! Documents to sequences of bounded length. Pure: the same tokens give the same sequences.

use crate::tokenize::{Encoded, Frame, NO_WORD, SpecialTokens};
use logitcache::error::{Error, Result};

/// Tokens, special ones included, below which a document or the rest of one is dropped. (Sanh et al. 2019 drop those of at most 11.)
pub const DEFAULT_MIN_TOKENS: usize = 12;

/// The largest length of a sequence: positions are stored as 16-bit numbers.
pub const LARGEST_LENGTH: usize = u16::MAX as usize;

/// How documents are cut. Fields are private so that only checked values exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRules {
    max_length: usize,
    min_tokens: usize,
}

impl WindowRules {
    /// Sequences of at most `max_length` tokens and at least `min_tokens`, both with the frame counted.
    ///
    /// # Errors
    /// [`Error::Usage`] where no sequence could have such a length.
    pub fn new(max_length: usize, min_tokens: usize, frame: &Frame) -> Result<Self> {
        let shortest = frame.tokens() + 1;
        if max_length < shortest || max_length > LARGEST_LENGTH {
            let expected = format!("{shortest} (a token and {} special ones) to {LARGEST_LENGTH}", frame.tokens());
            return Err(Error::usage("--max-length", expected, max_length.to_string(), "choose a length the teacher was trained for"));
        }
        if min_tokens > max_length {
            let expected = format!("at most --max-length {max_length}");
            return Err(Error::usage("--min-tokens", expected, min_tokens.to_string(), "lower it, or raise --max-length"));
        }
        Ok(Self { max_length, min_tokens: min_tokens.max(shortest) })
    }
}

/// What the teacher is asked about, before masking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its number in corpus order, from 0; the same in every pass.
    pub sequence_id: u64,
    /// The document it was cut from.
    pub document_id: u64,
    /// `[length]`: token ids, frame included.
    pub input_ids: Vec<u32>,
    /// `[length]`: segment ids.
    pub token_type_ids: Vec<u8>,
    /// `[length]`: the word each token belongs to, numbered through the document; [`NO_WORD`] in the frame.
    pub words: Vec<u32>,
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
    /// Sequences kept.
    pub sequences: u64,
    /// Tokens of the sequences kept, frame included.
    pub tokens: u64,
}

/// Cuts the documents of one pass in corpus order, numbers the sequences and counts.
///
/// A special token that stands in the text itself counts as unknown here: neither can be masked or asked. So every sequence kept has at
/// least one token that can.
#[derive(Clone, Debug)]
pub struct Windows {
    rules: WindowRules,
    frame: Frame,
    special: SpecialTokens,
    counts: WindowCounts,
}

impl Windows {
    /// Starts at sequence 0.
    pub fn new(rules: WindowRules, frame: &Frame, special: &SpecialTokens) -> Self {
        Self { rules, frame: frame.clone(), special: special.clone(), counts: WindowCounts::default() }
    }

    /// The sequences of the next document: consecutive stretches of its tokens, each as long as `max_length` allows, with the frame put
    /// around each.
    pub fn cut(&mut self, document_id: u64, encoded: &Encoded) -> Vec<Sequence> {
        self.counts.documents += 1;
        if encoded.ids.len() + self.frame.tokens() < self.rules.min_tokens {
            self.counts.dropped_short += 1;
            return Vec::new();
        }
        if self.half_unknown(&encoded.ids) {
            self.counts.dropped_unknown += 1;
            return Vec::new();
        }
        let room = self.rules.max_length - self.frame.tokens();
        let mut sequences = Vec::with_capacity(encoded.ids.len().div_ceil(room));
        for (ids, words) in encoded.ids.chunks(room).zip(encoded.words.chunks(room)) {
            if ids.len() + self.frame.tokens() < self.rules.min_tokens || self.half_unknown(ids) {
                self.counts.dropped_windows += 1;
                continue;
            }
            sequences.push(self.put_in_frame(document_id, ids, words));
        }
        sequences
    }

    /// What has been seen so far.
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    fn half_unknown(&self, ids: &[u32]) -> bool {
        2 * ids.iter().filter(|id| self.special.contains(**id)).count() >= ids.len()
    }

    fn put_in_frame(&mut self, document_id: u64, ids: &[u32], words: &[u32]) -> Sequence {
        let frame = &self.frame;
        let (before, after) = (frame.prefix.len(), frame.suffix.len());
        let sequence = Sequence {
            sequence_id: self.counts.sequences,
            document_id,
            input_ids: [&frame.prefix, ids, &frame.suffix].concat(),
            token_type_ids: [&frame.prefix_segments[..], &vec![frame.segment; ids.len()], &frame.suffix_segments].concat(),
            words: [&vec![NO_WORD; before][..], words, &vec![NO_WORD; after]].concat(),
        };
        self.counts.sequences += 1;
        self.counts.tokens += sequence.input_ids.len() as u64;
        sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNKNOWN: u32 = 1;

    fn frame() -> Frame {
        Frame { prefix: vec![2], suffix: vec![3], prefix_segments: vec![0], suffix_segments: vec![1], segment: 1 }
    }

    fn windows(max_length: usize, min_tokens: usize) -> Windows {
        let special = SpecialTokens { mask: 4, pad: 0, unknown: Some(UNKNOWN), all: vec![0, 1, 2, 3, 4] };
        Windows::new(WindowRules::new(max_length, min_tokens, &frame()).unwrap(), &frame(), &special)
    }

    /// Token i has id 10 + i and word i / 2: any slip shows itself.
    fn document(length: usize) -> Encoded {
        Encoded { ids: (10..10 + length as u32).collect(), words: (0..length as u32).map(|i| i / 2).collect() }
    }

    #[test]
    fn a_short_document_is_one_framed_sequence() {
        let mut windows = windows(8, 3);
        let expected = Sequence {
            sequence_id: 0,
            document_id: 7,
            input_ids: vec![2, 10, 11, 12, 3],
            token_type_ids: vec![0, 1, 1, 1, 1],
            words: vec![NO_WORD, 0, 0, 1, NO_WORD],
        };
        assert_eq!(windows.cut(7, &document(3)), [expected]);
    }

    #[test]
    fn a_tail_is_kept_from_the_minimum_on() {
        let mut windows = windows(8, 5);
        let lengths = |sequences: Vec<Sequence>| sequences.iter().map(|s| (s.sequence_id, s.input_ids.len())).collect::<Vec<_>>();
        assert_eq!(lengths(windows.cut(0, &document(6 + 3))), [(0, 8), (1, 5)]);
        assert_eq!(lengths(windows.cut(1, &document(6 + 2))), [(2, 8)]);
        assert_eq!(lengths(windows.cut(2, &document(12))), [(3, 8), (4, 8)]);
        let expected = WindowCounts { documents: 3, dropped_windows: 1, sequences: 5, tokens: 37, ..WindowCounts::default() };
        assert_eq!(windows.counts(), expected);
    }

    #[test]
    fn short_and_unknown_documents_are_counted_apart() {
        let mut windows = windows(32, 12);
        assert_eq!(windows.cut(0, &document(9)).len(), 0);
        assert_eq!(windows.cut(1, &document(10)).len(), 1);
        assert_eq!(windows.cut(2, &Encoded::default()).len(), 0);
        for (id, unknown, kept) in [(3, 5, 0), (4, 4, 1)] {
            let mut encoded = document(10);
            encoded.ids[..unknown].fill(UNKNOWN);
            assert_eq!(windows.cut(id, &encoded).len(), kept);
        }
        let counts = windows.counts();
        assert_eq!((counts.documents, counts.dropped_short, counts.dropped_unknown, counts.sequences), (5, 2, 1, 2));
    }

    #[test]
    fn a_stretch_without_known_tokens_is_no_sequence() {
        let mut windows = windows(8, 3);
        let mut encoded = document(18);
        encoded.ids[6..12].fill(UNKNOWN);
        let ids: Vec<_> = windows.cut(0, &encoded).iter().map(|s| (s.sequence_id, s.input_ids[1])).collect();
        assert_eq!(ids, [(0, 10), (1, 22)]);
        assert_eq!(windows.counts().dropped_windows, 1);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for (max_length, min_tokens, flag) in [(2, 1, "--max-length"), (70_000, 12, "--max-length"), (10, 12, "--min-tokens")] {
            let error = WindowRules::new(max_length, min_tokens, &frame()).unwrap_err();
            assert!(error.to_string().contains(flag) && error.exit_code() == 2, "{error}");
        }
        // A sequence has at least one token of its own, whatever the minimum says.
        assert_eq!(windows(3, 0).cut(0, &Encoded::default()), []);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_repeated(length in 0_usize..200, max_length in 3_usize..40, min_tokens in 0_usize..40) {
            let min_tokens = min_tokens.min(max_length);
            let mut windows = windows(max_length, min_tokens);
            let encoded = document(length);
            let sequences = windows.cut(0, &encoded);
            let mut ids = Vec::new();
            for sequence in &sequences {
                let end = sequence.input_ids.len() - 1;
                prop_assert!(sequence.input_ids.len() <= max_length && sequence.input_ids.len() >= min_tokens.max(3));
                prop_assert_eq!((sequence.input_ids[0], sequence.input_ids[end]), (2, 3));
                prop_assert_eq!(sequence.words.len(), end + 1);
                prop_assert_eq!(sequence.token_type_ids.len(), end + 1);
                ids.extend_from_slice(&sequence.input_ids[1..end]);
            }
            prop_assert_eq!(&ids[..], &encoded.ids[..ids.len()]);
            let lost = length - ids.len();
            prop_assert!(lost == 0 || lost + 2 < min_tokens.max(3), "{} tokens lost", lost);
        }
    }
}
