//! Sequences of encoders: stretches of a text, or a pair of texts, in the tokenizer's frame, with the gold answers they have.

use super::{Sequence, Windows};
use crate::corpus::Gold;
use crate::tokenize::{Encoded, NO_WORD};
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::target::{Problem, Task};

impl Windows {
    /// The stretches of one text, each in the frame.
    pub(super) fn framed(&mut self, encoded: &Encoded, gold: &Gold) -> Vec<Sequence> {
        let around = self.frame.tokens();
        if self.drops(encoded.ids.len() + around, &encoded.ids) {
            return Vec::new();
        }
        let tagged = (self.rules.task.task == Task::TokenClassification).then(|| token_classes(&encoded.words, gold));
        let mut sequences = Vec::new();
        for stretch in self.stretches(encoded.ids.len(), self.rules.max_length - around) {
            let (ids, words) = (&encoded.ids[stretch.clone()], &encoded.words[stretch.clone()]);
            if ids.len() + around < self.rules.shortest_part || self.half_unknown(ids) {
                self.counts.dropped_windows += 1;
                continue;
            }
            let mut sequence = self.in_frame(ids, words);
            match &tagged {
                Some(classes) => {
                    let (before, mut classes) = (self.frame.prefix.len(), classes[stretch.clone()].to_vec());
                    // What is repeated has its answer in the sequence before, so that each counts once.
                    let repeated = if stretch.start > 0 { self.rules.stride } else { 0 };
                    classes[..repeated.min(stretch.len())].fill(IGNORED_LABEL);
                    sequence.labels = vec![IGNORED_LABEL; sequence.input_ids.len()];
                    sequence.labels[before..before + classes.len()].copy_from_slice(&classes);
                }
                None => self.answer(&mut sequence, gold),
            }
            sequences.push(sequence);
        }
        sequences
    }

    /// Both texts of a pair in one sequence; where they are too long, the longer one loses tokens first, then both in turn.
    pub(super) fn pair(&mut self, first: &Encoded, second: &Encoded, gold: &Gold) -> Vec<Sequence> {
        let Some(frame) = self.pair_frame.clone() else { return Vec::new() };
        let ids = [&first.ids[..], &second.ids].concat();
        if self.drops(ids.len() + frame.tokens(), &ids) {
            return Vec::new();
        }
        let lengths = longest_first([first.ids.len(), second.ids.len()], self.rules.max_length.saturating_sub(frame.tokens()));
        self.counts.truncated += u64::from(lengths.iter().sum::<usize>() < ids.len());
        let (a, b) = (&first.ids[..lengths[0]], &second.ids[..lengths[1]]);
        let [before, between, after] = &frame.frame_segments;
        let [of_a, of_b] = [vec![frame.segments[0]; a.len()], vec![frame.segments[1]; b.len()]];
        // The second text's words are others than the first one's.
        let next = first.words.iter().rev().find(|word| **word != NO_WORD).map_or(0, |word| word + 1);
        let words_of_b: Vec<u32> =
            second.words[..b.len()].iter().map(|word| if *word == NO_WORD { NO_WORD } else { word + next }).collect();
        let none = |ids: &[u32]| vec![NO_WORD; ids.len()];
        let mut sequence = Sequence {
            input_ids: [&frame.prefix, a, &frame.middle, b, &frame.suffix].concat(),
            token_type_ids: [&before[..], &of_a, between, &of_b, after].concat(),
            words: [&none(&frame.prefix)[..], &first.words[..a.len()], &none(&frame.middle), &words_of_b, &none(&frame.suffix)].concat(),
            ..Sequence::default()
        };
        self.answer(&mut sequence, gold);
        vec![sequence]
    }

    /// The texts of a pair as two sequences side by side, each with the likeness of both.
    pub(super) fn two(&mut self, first: &Encoded, second: &Encoded, gold: &Gold) -> Vec<Sequence> {
        let around = self.frame.tokens();
        let shorter = if first.ids.len() <= second.ids.len() { first } else { second };
        if self.drops(shorter.ids.len() + around, &shorter.ids) {
            return Vec::new();
        }
        let room = self.rules.max_length - around;
        self.counts.truncated += u64::from(first.ids.len().max(second.ids.len()) > room);
        let sequence = |encoded: &Encoded| {
            let length = encoded.ids.len().min(room);
            let label_values = if let Gold::Values(values) = gold { values.clone() } else { Vec::new() };
            Sequence { label_values, ..self.in_frame(&encoded.ids[..length], &encoded.words[..length]) }
        };
        vec![sequence(first), sequence(second)]
    }

    /// Whether a document goes, and why is counted. `tokens` are those of its sequence, frame included.
    fn drops(&mut self, tokens: usize, ids: &[u32]) -> bool {
        if ids.is_empty() || tokens < self.rules.min_tokens {
            self.counts.dropped_short += 1;
            return true;
        }
        let unknown = self.half_unknown(ids);
        self.counts.dropped_unknown += u64::from(unknown);
        unknown
    }

    /// The answer for a sequence as a whole, where the task has one.
    fn answer(&self, sequence: &mut Sequence, gold: &Gold) {
        let task = &self.rules.task;
        if task.problem == Some(Problem::SingleLabel) {
            sequence.labels = vec![if let Gold::Class(class) = gold { *class as i32 } else { IGNORED_LABEL }];
        }
        if let Gold::Values(values) = gold
            && task.problem.is_some()
        {
            sequence.label_values.clone_from(values);
        }
    }

    fn in_frame(&self, ids: &[u32], words: &[u32]) -> Sequence {
        let frame = &self.frame;
        let (before, after) = (frame.prefix.len(), frame.suffix.len());
        Sequence {
            input_ids: [&frame.prefix, ids, &frame.suffix].concat(),
            token_type_ids: [&frame.prefix_segments[..], &vec![frame.segment; ids.len()], &frame.suffix_segments].concat(),
            words: [&vec![NO_WORD; before][..], words, &vec![NO_WORD; after]].concat(),
            ..Sequence::default()
        }
    }
}

/// The class of each word at its first token, [`IGNORED_LABEL`] at its others.
fn token_classes(words: &[u32], gold: &Gold) -> Vec<i32> {
    let Gold::Words(classes) = gold else { return vec![IGNORED_LABEL; words.len()] };
    let class = |token: usize| {
        let word = words[token];
        let first = token == 0 || words[token - 1] != word;
        if first { classes.get(word as usize).copied().unwrap_or(IGNORED_LABEL) } else { IGNORED_LABEL }
    };
    (0..words.len()).map(class).collect()
}

/// How much of two texts fits into `room` tokens: as much of the shorter one as can be, and at least half of the room for each that has as
/// much; the odd token is the longer one's.
pub(super) fn longest_first(lengths: [usize; 2], room: usize) -> [usize; 2] {
    let [a, b] = lengths;
    if a + b <= room {
        return lengths;
    }
    let shorter = a.min(b).min(room / 2);
    if a <= b { [shorter, room - shorter] } else { [room - shorter, shorter] }
}
