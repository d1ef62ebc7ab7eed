//! Sequences of causal language models: the label of a position is the token after it.

use super::{Sequence, Windows};
use crate::tokenize::Encoded;
use logitcache::cache::record::IGNORED_LABEL;

/// Tokens of documents one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Stream {
    ids: Vec<u32>,
    segments: Vec<u8>,
    /// (where it starts, document) for each document that has tokens here, and the one that goes on.
    starts: Vec<(usize, u64)>,
    /// The document of the first token.
    first: u64,
}

impl Windows {
    /// One document in its frame, cut.
    pub(super) fn stream(&mut self, encoded: &Encoded) -> Vec<Sequence> {
        if self.is_too_short(encoded) {
            return Vec::new();
        }
        let (ids, segments) = self.with_frame(encoded);
        let mut sequences = Vec::new();
        for stretch in self.stretches(ids.len(), self.rules.max_length) {
            if stretch.len() < self.rules.shortest_part {
                self.counts.dropped_windows += 1;
                continue;
            }
            // What is repeated is there to be looked back at; its last token says what comes new.
            let repeated = if stretch.start > 0 { self.rules.stride } else { 0 };
            let mut labels = next_tokens(&ids[stretch.clone()]);
            labels[..repeated.saturating_sub(1)].fill(IGNORED_LABEL);
            let (input_ids, token_type_ids) = (ids[stretch.clone()].to_vec(), segments[stretch].to_vec());
            sequences.push(Sequence { input_ids, token_type_ids, labels, ..Sequence::default() });
        }
        sequences
    }

    /// Puts a document behind those before; the sequences that are full.
    pub(super) fn pack(&mut self, document_id: u64, encoded: &Encoded) -> Vec<Sequence> {
        if self.is_too_short(encoded) {
            return Vec::new();
        }
        let (mut ids, mut segments) = self.with_frame(encoded);
        if self.frame.tokens() == 0
            && let Some(end) = self.special.end
        {
            // A template that frames nothing would leave no border between two texts.
            ids.push(end);
            segments.push(self.frame.segment);
        }
        let packed = &mut self.packed;
        if packed.ids.is_empty() {
            packed.first = document_id;
        }
        packed.starts.push((packed.ids.len(), document_id));
        packed.ids.append(&mut ids);
        packed.segments.append(&mut segments);
        let mut sequences = Vec::new();
        while self.packed.ids.len() >= self.rules.max_length {
            let (first, sequence) = self.packed.take(self.rules.max_length);
            sequences.push(self.number(first, sequence));
        }
        sequences
    }

    /// The sequence that the last documents did not fill.
    pub(super) fn rest_of_packed(&mut self) -> Option<Sequence> {
        let length = self.packed.ids.len();
        if length == 0 {
            return None;
        }
        let (first, sequence) = self.packed.take(length);
        if length < self.rules.shortest_part {
            self.counts.dropped_windows += 1;
            return None;
        }
        Some(self.number(first, sequence))
    }

    fn is_too_short(&mut self, encoded: &Encoded) -> bool {
        let short = encoded.ids.is_empty() || encoded.ids.len() + self.frame.tokens() < self.rules.min_tokens;
        self.counts.dropped_short += u64::from(short);
        short
    }

    fn with_frame(&self, encoded: &Encoded) -> (Vec<u32>, Vec<u8>) {
        let frame = &self.frame;
        let segments = vec![frame.segment; encoded.ids.len()];
        (
            [&frame.prefix[..], &encoded.ids, &frame.suffix].concat(),
            [&frame.prefix_segments[..], &segments, &frame.suffix_segments].concat(),
        )
    }
}

impl Stream {
    /// Takes the first `length` tokens, and the document of the first of them. A text says nothing of the one after it, so the label of its last
    /// token is left out.
    fn take(&mut self, length: usize) -> (u64, Sequence) {
        let rest = (self.ids.split_off(length), self.segments.split_off(length));
        let (input_ids, token_type_ids) = (std::mem::replace(&mut self.ids, rest.0), std::mem::replace(&mut self.segments, rest.1));
        let mut labels = next_tokens(&input_ids);
        let first = self.first;
        for (start, document) in std::mem::take(&mut self.starts) {
            if start < length {
                if start > 0 {
                    labels[start - 1] = IGNORED_LABEL;
                }
                // The document that goes on, if any does.
                self.first = document;
            } else {
                self.starts.push((start - length, document));
            }
        }
        if let Some((0, document)) = self.starts.first() {
            self.first = *document;
        }
        (first, Sequence { input_ids, token_type_ids, labels, ..Sequence::default() })
    }
}

/// The token after each, none after the last.
fn next_tokens(ids: &[u32]) -> Vec<i32> {
    ids.iter().skip(1).map(|id| *id as i32).chain([IGNORED_LABEL]).take(ids.len()).collect()
}
