//! The special tokens around a sequence and between the texts of a pair, found by what the tokenizer's own template makes of samples.

use logitcache::error::{Error, Result};
use std::path::Path;
use tokenizers::Tokenizer;

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

    /// Finds the frame by encoding the same text with and without special tokens. Two texts must agree on it.
    pub(super) fn find<'a>(tokenizer: &Tokenizer, samples: impl Iterator<Item = &'a str>, path: &Path) -> Result<Self> {
        let mut found: Option<Self> = None;
        for sample in samples {
            // A tokenizer may refuse or drop what its vocabulary cannot express; another sample will do.
            let (Ok(plain), Ok(framed)) = (tokenizer.encode(sample, false), tokenizer.encode(sample, true)) else { continue };
            if plain.is_empty() {
                continue;
            }
            let frame = Self::around(plain.get_ids(), framed.get_ids(), framed.get_type_ids());
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

    fn around(plain: &[u32], framed: &[u32], segments: &[u32]) -> Option<Self> {
        let start = position(framed, plain)?;
        let end = start + plain.len();
        Some(Self {
            prefix: framed[..start].to_vec(),
            suffix: framed[end..].to_vec(),
            prefix_segments: bytes(&segments[..start])?,
            suffix_segments: bytes(&segments[end..])?,
            segment: *bytes(&segments[start..end])?.first()?,
        })
    }
}

/// The special tokens around and between the two texts of a pair, for example `[CLS]`, `[SEP]` and `[SEP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFrame {
    /// Ids before the first text.
    pub prefix: Vec<u32>,
    /// Ids between the texts.
    pub middle: Vec<u32>,
    /// Ids after the second text.
    pub suffix: Vec<u32>,
    /// Segment ids of `prefix`, `middle` and `suffix`.
    pub frame_segments: [Vec<u8>; 3],
    /// Segment ids of the first and the second text.
    pub segments: [u8; 2],
}

impl PairFrame {
    /// How many tokens it adds.
    pub fn tokens(&self) -> usize {
        self.prefix.len() + self.middle.len() + self.suffix.len()
    }

    /// Finds the frame by encoding pairs with special tokens; `None` where no two of them agree on it.
    pub(super) fn find<'a>(tokenizer: &Tokenizer, samples: impl Iterator<Item = &'a str>) -> Option<Self> {
        let plain =
            |sample| tokenizer.encode(sample, false).ok().filter(|encoding| !encoding.is_empty()).map(|encoding| (sample, encoding));
        let samples: Vec<_> = samples.filter_map(plain).take(3).collect();
        // Each sample with the next one, so that the texts of a pair differ where they can.
        let mut frames = (0..samples.len()).map(|first| {
            let ((a, a_plain), (b, b_plain)) = (&samples[first], &samples[(first + 1) % samples.len()]);
            let framed = tokenizer.encode((*a, *b), true).ok()?;
            Self::around([a_plain.get_ids(), b_plain.get_ids()], framed.get_ids(), framed.get_type_ids())
        });
        let first = frames.next()??;
        frames.all(|frame| frame.as_ref() == Some(&first)).then_some(first)
    }

    fn around([a, b]: [&[u32]; 2], framed: &[u32], segments: &[u32]) -> Option<Self> {
        let start = position(framed, a)?;
        let end = start + a.len();
        let second = end + position(&framed[end..], b)?;
        let second_end = second + b.len();
        Some(Self {
            prefix: framed[..start].to_vec(),
            middle: framed[end..second].to_vec(),
            suffix: framed[second_end..].to_vec(),
            frame_segments: [bytes(&segments[..start])?, bytes(&segments[end..second])?, bytes(&segments[second_end..])?],
            segments: [*bytes(&segments[start..end])?.first()?, *bytes(&segments[second..second_end])?.first()?],
        })
    }
}

fn position(framed: &[u32], plain: &[u32]) -> Option<usize> {
    framed.windows(plain.len()).position(|window| window == plain)
}

fn bytes(segments: &[u32]) -> Option<Vec<u8>> {
    segments.iter().map(|segment| u8::try_from(*segment).ok()).collect()
}
