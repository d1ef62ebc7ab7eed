//! The producer on real reactions and the demo teacher's tokenizer: every shard, and any tail of them.

use super::*;
use crate::cli::Arguments;
use crate::corpus::{Corpus, CorpusOptions};
use crate::task::TeacherTask;
use crate::tokenize::DocumentTokenizer;
use clap::Parser;
use logitcache::cache::manifest::{FileEntry, MassSummary, ShardEntry};
use logitcache::fingerprint::Fingerprint;
use logitcache::target::Task;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data")
}

fn config(line: &str) -> Config {
    let line = format!("precompute --teacher t --dry-run --corpus c --max-length 64 --shard-sequences 16 {line}");
    Config::check(Arguments::try_parse_from(line.split_whitespace()).expect("a line"), 2).expect("it runs")
}

/// The first 30 held-out reactions: about three shards of 16 sequences.
fn source(directory: &Path) -> Source {
    let text = std::fs::read_to_string(data().join("corpus/heldout.txt")).expect("the demo's corpus");
    let path = directory.join("reactions.txt");
    std::fs::write(&path, text.lines().take(30).collect::<Vec<_>>().join("\n")).expect("a writable directory");
    let corpus = Corpus::open(&[path], CorpusOptions::default()).expect("a corpus");
    let tokenizer = DocumentTokenizer::open(&data().join("teacher/tokenizer.json"), Task::MaskedLm).expect("the demo's tokenizer");
    Source { corpus, tokenizer, task: TeacherTask::of(Task::MaskedLm) }
}

fn produce_all(config: &Config, source: &Source, done: &Listed) -> (Vec<ShardWork>, Option<PassCounts>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || produce(config, source, 512, done, &pool, &Stop::default(), &sender));
        let (mut shards, mut end) = (Vec::new(), None);
        for produced in receiver {
            match produced.expect("a corpus without errors") {
                Produced::Shard(shard) => shards.push(shard),
                Produced::End(counts) => end = Some(counts),
            }
        }
        (shards, end)
    })
}

fn entry(shard: &ShardWork) -> ShardEntry {
    let logits = FileEntry { name: String::new(), rows: shard.questions.len() as u64, bytes: 0, sha256: Fingerprint::of_bytes(b"") };
    ShardEntry {
        index: shard.index,
        pass: shard.pass,
        first_sequence: shard.questions[0].sequence.sequence_id,
        tokens: 0,
        padded_tokens: 0,
        positions: 0,
        masked: 0,
        logits,
        hidden: None,
        minus_log_stored_mass: MassSummary::default(),
    }
}

/// All that the teacher and the record see of a shard.
fn content(shard: &ShardWork) -> String {
    format!("{shard:?}")
}

#[test]
fn shards_cover_every_pass_in_order_and_without_gaps() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (shards, end) = produce_all(&config("--passes 2"), &source(directory.path()), &Listed::default());
    let counts = end.expect("the corpus ends").windows;
    assert!(counts.sequences > 32, "more than two shards: {counts:?}");
    let order: Vec<(u16, u64)> =
        shards.iter().flat_map(|shard| shard.questions.iter().map(|question| (shard.pass, question.sequence.sequence_id))).collect();
    let expected: Vec<(u16, u64)> = (0..2).flat_map(|pass| (0..counts.sequences).map(move |sequence| (pass, sequence))).collect();
    assert_eq!(order, expected);
    assert!(shards.iter().enumerate().all(|(number, shard)| shard.index as usize == number && shard.questions.len() <= 16));
    assert!(shards.windows(2).all(|pair| pair[0].share[1] <= pair[1].share[0] + 1e-9 && pair[0].share[0] <= pair[0].share[1]));
    let (first, second) = (&shards[0].questions[0], &shards[shards.len() / 2].questions[0]);
    assert_eq!(first.sequence, second.sequence, "the same sequence in both passes");
    assert_ne!(first.masked, second.masked, "each pass has its own mask");
}

#[test]
fn a_batch_holds_the_masked_rows_of_its_plan() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (shards, _) = produce_all(&config(""), &source(directory.path()), &Listed::default());
    for shard in &shards {
        let mut rows: Vec<usize> = shard.batches.iter().flat_map(|(plan, _)| plan.rows.clone()).collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..shard.questions.len()).collect::<Vec<_>>(), "each row in one batch");
        for (plan, batch) in &shard.batches {
            assert!(batch.rows * batch.length <= 512);
            for (row, ids) in plan.rows.iter().zip(batch.input_ids.chunks_exact(batch.length)) {
                let masked = &shard.questions[*row].masked.input_ids;
                assert!(ids.iter().zip(masked).all(|(fed, masked)| *fed == i64::from(*masked)));
            }
        }
    }
}

#[test]
fn whatever_is_done_the_rest_is_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (config, source) = (config("--passes 2 --mask-smoothing 0.7 --positions 0.3"), source(directory.path()));
    let (shards, end) = produce_all(&config, &source, &Listed::default());
    let last = shards.len() as u32 - 1;
    let all_to = |done: u32| (0..done).collect::<Vec<u32>>();
    // Listed, and missing among them: none, the first, one in the middle, several in both passes.
    let prefixes = (0..=last + 1).map(|done| (done, vec![]));
    let gaps = [(last + 1, vec![0]), (last + 1, vec![last / 2]), (last, vec![1, last - 1]), (last + 1, all_to(last + 1))];
    for (done, missing) in prefixes.chain(gaps) {
        let listed = Listed { shards: shards[..done as usize].iter().map(entry).collect(), missing: missing.iter().copied().collect() };
        let (rest, rest_end) = produce_all(&config, &source, &listed);
        let expected = shards.iter().filter(|shard| shard.index >= done || missing.contains(&shard.index));
        assert_eq!(rest.iter().map(content).collect::<Vec<_>>(), expected.map(content).collect::<Vec<_>>());
        assert_eq!(rest_end, end, "after {done} shards without {missing:?}");
    }
}

#[test]
fn a_corpus_that_is_dropped_whole_is_an_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads");
    let config = config("--min-tokens 64");
    let path = directory.path().join("short.txt");
    std::fs::write(&path, "CCO\nCCN\n").expect("a writable directory");
    let corpus = Corpus::open(&[path], CorpusOptions::default()).expect("a corpus");
    let source = Source { corpus, ..source(directory.path()) };
    let error = read_pass(&config, &source, &pool, &Stop::default(), |_, _| true).expect_err("nothing is left");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("2 documents") && error.to_string().contains("--min-tokens"), "{error}");
}

#[test]
fn a_request_to_stop_ends_the_reading() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads");
    let stop = Stop::default();
    let mut taken = 0;
    let (_, ended) = read_pass(&config(""), &source(directory.path()), &pool, &stop, |_, _| {
        taken += 1;
        stop.cell().store(2, std::sync::atomic::Ordering::Relaxed);
        true
    })
    .expect("no error");
    assert_eq!((taken, ended), (1, false));
}
