//! Windows of every task over documents in which token i has id 10 + i: any slip shows itself.

use super::*;
use crate::task::TeacherTask;
use crate::tokenize::{Encoded, NO_WORD};
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::target::Problem;
use proptest::prelude::*;

const UNKNOWN: u32 = 1;

fn frame() -> Frame {
    Frame { prefix: vec![2], suffix: vec![3], prefix_segments: vec![0], suffix_segments: vec![1], segment: 1 }
}

fn pair_frame() -> PairFrame {
    let (prefix, middle, suffix) = (vec![2], vec![3, 3], vec![3]);
    PairFrame { prefix, middle, suffix, frame_segments: [vec![0], vec![0, 0], vec![1]], segments: [0, 1] }
}

fn special() -> SpecialTokens {
    SpecialTokens { mask: Some(4), pad: Some(0), end: Some(5), unknown: Some(UNKNOWN), all: vec![0, 1, 2, 3, 4, 5], beside: vec![] }
}

fn classifier(task: Task, problem: Option<Problem>) -> TeacherTask {
    TeacherTask { problem, class_names: vec!["a".to_owned(), "b".to_owned()], ..TeacherTask::of(task) }
}

fn windows_for(task: &TeacherTask, options: WindowOptions) -> Windows {
    Windows::new(WindowRules::new(task, &options, &frame()).unwrap(), &frame(), Some(&pair_frame()), &special())
}

fn options(max_length: usize) -> WindowOptions {
    WindowOptions { max_length, ..WindowOptions::default() }
}

fn windows(max_length: usize, min_tokens: usize) -> Windows {
    windows_for(&TeacherTask::of(Task::MaskedLm), WindowOptions { min_tokens: Some(min_tokens), ..options(max_length) })
}

/// The sequences of a text without a pair or an answer.
fn cut(windows: &mut Windows, document_id: u64, text: Encoded) -> Vec<Sequence> {
    windows.cut(document_id, &EncodedDocument { text, pair: None }, &Gold::Unknown)
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
        ..Sequence::default()
    };
    assert_eq!(cut(&mut windows, 7, document(3)), [expected]);
}

#[test]
fn a_tail_is_kept_from_the_minimum_on() {
    let mut windows = windows(8, 5);
    let lengths = |sequences: Vec<Sequence>| sequences.iter().map(|s| (s.sequence_id, s.input_ids.len())).collect::<Vec<_>>();
    assert_eq!(lengths(cut(&mut windows, 0, document(6 + 3))), [(0, 8), (1, 5)]);
    assert_eq!(lengths(cut(&mut windows, 1, document(6 + 2))), [(2, 8)]);
    assert_eq!(lengths(cut(&mut windows, 2, document(12))), [(3, 8), (4, 8)]);
    let expected = WindowCounts { documents: 3, dropped_windows: 1, sequences: 5, tokens: 37, ..WindowCounts::default() };
    assert_eq!(windows.counts(), expected);
}

#[test]
fn short_and_unknown_documents_are_counted_apart() {
    let mut windows = windows(32, 12);
    assert_eq!(cut(&mut windows, 0, document(9)).len(), 0);
    assert_eq!(cut(&mut windows, 1, document(10)).len(), 1);
    assert_eq!(cut(&mut windows, 2, Encoded::default()).len(), 0);
    for (id, unknown, kept) in [(3, 5, 0), (4, 4, 1)] {
        let mut encoded = document(10);
        encoded.ids[..unknown].fill(UNKNOWN);
        assert_eq!(cut(&mut windows, id, encoded).len(), kept);
    }
    let counts = windows.counts();
    assert_eq!((counts.documents, counts.dropped_short, counts.dropped_unknown, counts.sequences), (5, 2, 1, 2));
}

#[test]
fn a_stretch_without_known_tokens_is_no_sequence() {
    let mut windows = windows(8, 3);
    let mut encoded = document(18);
    encoded.ids[6..12].fill(UNKNOWN);
    let ids: Vec<_> = cut(&mut windows, 0, encoded.clone()).iter().map(|s| (s.sequence_id, s.input_ids[1])).collect();
    assert_eq!(ids, [(0, 10), (1, 22)]);
    assert_eq!(windows.counts().dropped_windows, 1);
}

#[test]
fn impossible_lengths_are_refused() {
    for (max_length, min_tokens, flag) in [(2, 1, "--max-length"), (70_000, 12, "--max-length"), (10, 12, "--min-tokens")] {
        let error = WindowRules::new(
            &TeacherTask::of(Task::MaskedLm),
            &WindowOptions { min_tokens: Some(min_tokens), ..options(max_length) },
            &frame(),
        )
        .unwrap_err();
        assert!(error.to_string().contains(flag) && error.exit_code() == 2, "{error}");
    }
    // A sequence has at least one token of its own, whatever the minimum says.
    assert_eq!(cut(&mut windows(3, 0), 0, Encoded::default()), []);
}

fn stream(max_length: usize, stride: usize) -> Windows {
    windows_for(&TeacherTask::of(Task::CausalLm), WindowOptions { stride, ..options(max_length) })
}

#[test]
fn a_causal_model_is_asked_for_the_next_token() {
    let mut windows = stream(8, 0);
    let found = cut(&mut windows, 4, document(3));
    let no = IGNORED_LABEL;
    let expected = Sequence {
        document_id: 4,
        input_ids: vec![2, 10, 11, 12, 3],
        token_type_ids: vec![0, 1, 1, 1, 1],
        labels: vec![10, 11, 12, 3, no],
        ..Sequence::default()
    };
    assert_eq!(found, [expected]);
    // The frame stands around the document, not around each part of it.
    let parts = cut(&mut windows, 5, document(9));
    assert_eq!(parts.iter().map(|part| part.input_ids.clone()).collect::<Vec<_>>(), [vec![2, 10, 11, 12, 13, 14, 15, 16], vec![17, 18, 3]]);
    assert_eq!(parts[1].labels, [18, 3, no]);
    assert_eq!(cut(&mut windows, 6, Encoded::default()), []);
    assert_eq!((windows.counts().documents, windows.counts().dropped_short, windows.counts().truncated), (3, 1, 0));
    let mut windows = windows_for(&TeacherTask::of(Task::CausalLm), WindowOptions { truncate: Some(true), ..options(4) });
    assert_eq!(cut(&mut windows, 0, document(9))[0].input_ids, [2, 10, 11, 12]);
    assert_eq!((windows.counts().sequences, windows.counts().truncated), (1, 1));
}

#[test]
fn repeated_tokens_are_looked_back_at_and_foretold_once() {
    let mut windows = stream(6, 3);
    let parts = cut(&mut windows, 0, document(9));
    let no = IGNORED_LABEL;
    let expected = [
        (vec![2, 10, 11, 12, 13, 14], vec![10, 11, 12, 13, 14, no]),
        (vec![12, 13, 14, 15, 16, 17], vec![no, no, 15, 16, 17, no]),
        (vec![15, 16, 17, 18, 3], vec![no, no, 18, 3, no]),
    ];
    assert_eq!(parts.into_iter().map(|part| (part.input_ids, part.labels)).collect::<Vec<_>>(), expected);
}

#[test]
fn packed_documents_fill_sequences_and_foretell_no_other_document() {
    let mut windows = windows_for(&TeacherTask::of(Task::CausalLm), WindowOptions { pack: true, ..options(6) });
    let no = IGNORED_LABEL;
    assert_eq!(cut(&mut windows, 0, document(2)), []);
    let found = cut(&mut windows, 1, document(5));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].input_ids, [2, 10, 11, 3, 2, 10]);
    assert_eq!(found[0].labels, [10, 11, 3, no, 10, no]);
    assert_eq!((found[0].document_id, found[0].sequence_id), (0, 0));
    assert_eq!(cut(&mut windows, 2, Encoded::default()), []);
    let rest = windows.finish().unwrap();
    assert_eq!((rest.document_id, rest.input_ids, rest.labels), (1, vec![11, 12, 13, 14, 3], vec![12, 13, 14, 3, no]));
    assert_eq!(windows.finish(), None);
    assert_eq!((windows.counts().sequences, windows.counts().tokens), (2, 11));
}

#[test]
fn a_border_that_no_frame_marks_is_marked_by_the_end_token() {
    let bare = Frame { prefix: vec![], suffix: vec![], prefix_segments: vec![], suffix_segments: vec![], segment: 0 };
    let rules = WindowRules::new(&TeacherTask::of(Task::CausalLm), &WindowOptions { pack: true, ..options(4) }, &bare).unwrap();
    let mut windows = Windows::new(rules, &bare, None, &special());
    assert_eq!(cut(&mut windows, 0, document(1)), []);
    let found = cut(&mut windows, 1, document(3));
    assert_eq!(
        (found[0].input_ids.as_slice(), found[0].labels.as_slice()),
        (&[10, 5, 10, 11][..], &[5, IGNORED_LABEL, 11, IGNORED_LABEL][..])
    );
}

#[test]
fn a_words_class_stands_at_its_first_token() {
    let mut windows = windows_for(&classifier(Task::TokenClassification, None), WindowOptions { stride: 1, ..options(5) });
    let encoded = EncodedDocument { text: document(5), pair: None };
    let found = windows.cut(0, &encoded, &Gold::Words(vec![1, 0, 1]));
    let no = IGNORED_LABEL;
    let expected = [(vec![2, 10, 11, 12, 3], vec![no, 1, no, 0, no]), (vec![2, 12, 13, 14, 3], vec![no, no, no, 1, no])];
    assert_eq!(found.into_iter().map(|sequence| (sequence.input_ids, sequence.labels)).collect::<Vec<_>>(), expected);
    let unknown = windows.cut(1, &encoded, &Gold::Unknown);
    assert!(unknown.iter().all(|sequence| sequence.labels == [no; 5]));
}

#[test]
fn a_class_goes_with_the_whole_which_is_truncated() {
    let mut windows = windows_for(&classifier(Task::SequenceClassification, Some(Problem::SingleLabel)), options(5));
    let encoded = EncodedDocument { text: document(9), pair: None };
    let found = windows.cut(0, &encoded, &Gold::Class(1));
    assert_eq!((found.len(), found[0].input_ids.as_slice(), found[0].labels.as_slice()), (1, &[2, 10, 11, 12, 3][..], &[1][..]));
    assert_eq!(windows.cut(1, &encoded, &Gold::Unknown)[0].labels, [IGNORED_LABEL]);
    assert_eq!(windows.counts().truncated, 2);
    let task = classifier(Task::SequenceClassification, Some(Problem::MultiLabel));
    let mut windows = windows_for(&task, WindowOptions { truncate: Some(false), ..options(5) });
    let found = windows.cut(0, &encoded, &Gold::Values(vec![0.0, 1.0]));
    assert_eq!(found.len(), 3, "cut where that was asked for");
    assert!(found.iter().all(|sequence| sequence.label_values == [0.0, 1.0] && sequence.labels.is_empty()));
    assert!(windows.cut(0, &encoded, &Gold::Unknown)[0].label_values.is_empty());
}

#[test]
fn a_pair_is_one_sequence_in_the_frame_of_pairs() {
    let mut windows = windows_for(&classifier(Task::SequenceClassification, Some(Problem::SingleLabel)), options(9));
    let pair = |a, b| EncodedDocument { text: document(a), pair: Some(document(b)) };
    let found = windows.cut(3, &pair(3, 2), &Gold::Class(0)).remove(0);
    assert_eq!(found.input_ids, [2, 10, 11, 12, 3, 3, 10, 11, 3]);
    assert_eq!(found.token_type_ids, [0, 0, 0, 0, 0, 0, 1, 1, 1]);
    assert_eq!(found.words, [NO_WORD, 0, 0, 1, NO_WORD, NO_WORD, 2, 2, NO_WORD]);
    assert_eq!((found.document_id, found.labels), (3, vec![0]));
    assert_eq!(windows.counts().truncated, 0);
    let found = windows.cut(4, &pair(9, 2), &Gold::Unknown).remove(0);
    assert_eq!(found.input_ids, [2, 10, 11, 12, 3, 3, 10, 11, 3]);
    assert_eq!(windows.counts().truncated, 1);
}

#[test]
fn a_pair_of_sentences_is_two_sequences_side_by_side() {
    let mut windows = windows_for(&classifier(Task::SentenceEmbedding, None), options(5));
    let pair = |a, b| EncodedDocument { text: document(a), pair: Some(document(b)) };
    let found = windows.cut(3, &pair(1, 9), &Gold::Values(vec![0.5]));
    let seen: Vec<_> = found.iter().map(|s| (s.sequence_id, s.document_id, s.input_ids.as_slice(), s.label_values.as_slice())).collect();
    assert_eq!(seen, [(0, 3, &[2, 10, 3][..], &[0.5][..]), (1, 3, &[2, 10, 11, 12, 3], &[0.5])]);
    assert_eq!(windows.cut(4, &pair(0, 2), &Gold::Unknown), []);
    let alone = EncodedDocument { text: document(1), pair: None };
    assert!(windows.cut(5, &alone, &Gold::Values(vec![0.5]))[0].label_values.is_empty(), "what stands alone is like nothing");
    let counts = windows.counts();
    assert_eq!((counts.documents, counts.dropped_short, counts.truncated, counts.sequences), (3, 1, 1, 3));
}

#[test]
fn what_a_task_does_not_have_is_refused() {
    let refused = |task, options: WindowOptions, flag: &str| {
        let error = WindowRules::new(&TeacherTask::of(task), &options, &frame()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().starts_with(flag), "{error}");
    };
    refused(Task::MaskedLm, WindowOptions { pack: true, min_tokens: Some(3), ..options(8) }, "--pack");
    refused(Task::CausalLm, WindowOptions { pack: true, stride: 2, ..options(8) }, "--pack");
    refused(Task::CausalLm, WindowOptions { pack: true, truncate: Some(true), ..options(8) }, "--pack");
    refused(Task::CausalLm, WindowOptions { stride: 7, ..options(8) }, "--stride");
    refused(Task::TokenClassification, WindowOptions { stride: 6, ..options(8) }, "--stride");
    refused(Task::SequenceClassification, WindowOptions { stride: 1, ..options(8) }, "--stride");
    refused(Task::SentenceEmbedding, WindowOptions { truncate: Some(false), ..options(8) }, "--long-documents");
}

/// What the tokenizers library keeps of two texts that are too long for it.
fn kept_by_the_library(lengths: [usize; 2], room: usize) -> [usize; 2] {
    use tokenizers::utils::truncation::{TruncationParams, TruncationStrategy, truncate_encodings};
    let encoding = |length: usize| tokenizers::Encoding::from_tokens(vec![tokenizers::Token::new(1, "a".to_owned(), (0, 1)); length], 0);
    let params = TruncationParams { max_length: room, strategy: TruncationStrategy::LongestFirst, ..TruncationParams::default() };
    let (a, b) = truncate_encodings(encoding(lengths[0]), Some(encoding(lengths[1])), &params).unwrap();
    [a.len(), b.unwrap().len()]
}

proptest! {
    #[test]
    fn nothing_is_lost_or_repeated(length in 0_usize..200, max_length in 3_usize..40, min_tokens in 0_usize..40) {
        let min_tokens = min_tokens.min(max_length);
        let mut windows = windows(max_length, min_tokens);
        let encoded = document(length);
        let sequences = cut(&mut windows, 0, encoded.clone());
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

    #[test]
    fn pairs_are_truncated_as_the_tokenizers_library_does(a in 0_usize..30, b in 0_usize..30, room in 1_usize..40) {
        prop_assert_eq!(framed::longest_first([a, b], room), kept_by_the_library([a, b], room));
    }

    #[test]
    fn every_next_token_is_asked_once(length in 0_usize..60, max_length in 3_usize..12, stride in 0_usize..8) {
        let stride = stride.min(max_length - 2);
        let parts = cut(&mut stream(max_length, stride), 0, document(length));
        let asked: Vec<i32> = parts.iter().flat_map(|part| &part.labels).copied().filter(|label| *label != IGNORED_LABEL).collect();
        let mut expected: Vec<i32> = (10..10 + length as i32).chain([3]).collect();
        if stride == 0 {
            // Nothing is before the first token of a part that repeats nothing.
            expected = expected.into_iter().enumerate().filter(|(place, _)| (place + 1) % max_length != 0).map(|(_, id)| id).collect();
        }
        prop_assert_eq!(asked, if length == 0 { Vec::new() } else { expected });
    }

    #[test]
    fn packing_loses_no_token_and_crosses_no_border(lengths in prop::collection::vec(0_usize..9, 1..12), max_length in 3_usize..12) {
        let mut windows = windows_for(&TeacherTask::of(Task::CausalLm), WindowOptions { pack: true, ..options(max_length) });
        let mut sequences: Vec<Sequence> =
            lengths.iter().zip(0..).flat_map(|(length, id)| cut(&mut windows, id, document(*length))).collect();
        prop_assert!(sequences.iter().all(|sequence| sequence.input_ids.len() == max_length));
        sequences.extend(windows.finish());
        let found: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.input_ids.clone()).collect();
        let written: Vec<u32> = lengths.iter().filter(|length| **length > 0)
            .flat_map(|length| [vec![2], document(*length).ids, vec![3]].concat()).collect();
        prop_assert!(written.len() - found.len() <= 2);
        prop_assert_eq!(&found[..], &written[..found.len()]);
        for sequence in &sequences {
            for (place, label) in sequence.labels.iter().enumerate() {
                let border = sequence.input_ids[place] == 3 || place + 1 == sequence.input_ids.len();
                let expected = if border { IGNORED_LABEL } else { sequence.input_ids[place + 1] as i32 };
                prop_assert_eq!(*label, expected);
            }
        }
        let order: Vec<u64> = sequences.iter().map(|sequence| sequence.sequence_id).collect();
        prop_assert_eq!(order, (0..sequences.len() as u64).collect::<Vec<_>>());
    }
}
