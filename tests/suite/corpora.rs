//! Corpora as people have them, through the whole program: every format and task, with the records that come of them.

use e2e::{Outcome, Program, contents, data};
use logitcache::cache::manifest::{CorpusCounts, Manifest};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::Record;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory with corpora, and caches made of them.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).expect("a temporary directory can be written");
        self.path(name)
    }

    /// `precompute` with the random teacher of `data/golden/teachers` over a file or folder of this place, into the cache `out`.
    fn ask(&self, teacher: &str, corpus: &str, out: &str, flags: &str) -> Outcome {
        let program = Program::precompute().arg("--teacher").arg(data("golden/teachers").join(teacher));
        let program = program.arg("--corpus").arg(self.path(corpus)).arg("--out").arg(self.path(out));
        let program = if flags.contains("--max-length") { program } else { program.args("--max-length 32") };
        program.args("--threads 1 --precision float32 --quiet").args(flags).run()
    }

    /// The records of a run that must succeed.
    fn records(&self, teacher: &str, corpus: &str, flags: &str) -> Vec<Record> {
        let out = format!("cache-{}", std::fs::read_dir(self.0.path()).expect("a temporary directory can be listed").count());
        self.ask(teacher, corpus, &out, flags).success();
        records(&self.path(&out))
    }

    fn counts(&self, out: &str) -> CorpusCounts {
        Manifest::read(&self.path(out)).expect("a manifest of ours").counts.expect("a complete cache has counts")
    }
}

fn records(cache: &Path) -> Vec<Record> {
    let cache = Cache::open(cache).expect("a cache of ours opens");
    let projection = Projection { hidden_layers: Vec::new() };
    let read = |shard: usize| {
        let reader = cache.shard(shard).expect("a shard of ours opens");
        let groups = 0..reader.row_groups();
        groups.flat_map(|group| reader.read(group, &projection).expect("a row group of ours reads")).collect::<Vec<_>>()
    };
    (0..cache.shards()).flat_map(read).collect()
}

fn gzip(path: &Path, content: &str) {
    let file = std::fs::File::create(path).expect("a temporary directory can be written");
    let mut child = std::process::Command::new("gzip").stdin(std::process::Stdio::piped()).stdout(file).spawn().expect("gzip runs");
    child.stdin.take().expect("a pipe").write_all(content.as_bytes()).expect("gzip reads");
    assert!(child.wait().expect("gzip ends").success());
}

/// Token ids of the fixtures' WordPiece tokenizer: `[CLS]` 2, `[SEP]` 3, a letter from 5 on.
fn letter(letter: char) -> u32 {
    5 + letter as u32 - 'a' as u32
}

const REVIEWS: [(&str, &str, usize); 5] =
    [("a good, b", "positive", 2), ("\"c\" d", "negative", 0), ("e", "neutral", 1), ("f\ng h", "positive", 2), ("i j k", "negative", 0)];

#[test]
fn one_corpus_in_every_format_gives_the_same_answers() {
    let place = Place::new();
    let line = |(text, label, id): &(&str, &str, usize)| format!("{}\n", serde_json::json!({ "id": id, "text": text, "label": label }));
    let json: String = REVIEWS.iter().map(line).collect();
    place.file("a.jsonl", &json);
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let table = |delimiter: char, id: bool| -> String {
        let rows = REVIEWS.iter().map(|(text, label, class)| {
            let label = if id { class.to_string() } else { (*label).to_owned() };
            format!("{label}{delimiter}{}\n", quoted(text))
        });
        format!("label{delimiter}text\n{}", rows.collect::<String>())
    };
    place.file("b.csv", &table(',', false));
    gzip(&place.path("c.tsv.gz"), &table('\t', true));
    place.file("d.csv", table(';', false).split_once('\n').expect("a header").1);
    let expected = place.records("bert-classifier", "a.jsonl", "--label-field label");
    assert_eq!(expected.iter().map(|record| record.labels[0]).collect::<Vec<_>>(), [2, 0, 1, 2, 0]);
    assert!(expected.iter().all(|record| record.positions == [0] && record.top_ids.len() == 3 && record.label_values.is_empty()));
    assert_eq!(expected[2].input_ids, [2, letter('e'), 3]);
    for (corpus, flags) in [
        ("b.csv", "--label-field label"),
        ("c.tsv.gz", "--label-field label"),
        ("d.csv", "--no-header --delimiter ; --text-field 2 --label-field 1"),
    ] {
        assert_eq!(place.records("bert-classifier", corpus, flags), expected, "{corpus}");
    }
    let unlabelled = place.records("bert-classifier", "a.jsonl", "");
    assert!(unlabelled.iter().zip(&expected).all(|(a, b)| a.labels == [-100] && a.top_logits == b.top_logits));
    Program::python("venv-readers", "write_parquet_corpus.py").arg(place.path("a.jsonl")).arg(place.path("parquet")).run().success();
    for codec in ["snappy", "large", "dictionary", "lz4"] {
        let corpus = format!("parquet/{codec}.parquet");
        assert_eq!(place.records("bert-classifier", &corpus, "--label-field label"), expected, "{corpus}");
    }
    // All of them in one run.
    let mixed = place.records("bert-classifier", "parquet", "--label-field label");
    assert_eq!(mixed.len(), 4 * expected.len());
    assert!(mixed.iter().enumerate().all(|(number, record)| record.document_id == number as u64));
}

#[test]
fn words_carry_their_class_at_the_first_piece() {
    let place = Place::new();
    place.file("a.conll", "-DOCSTART- O\n\nanna NNP B-PER\nb X I-PER\nin IN O\n\nx X B-LOC\n");
    place.file("a.jsonl", "{\"words\":[\"anna\",\"b\",\"in\"],\"tags\":[\"B-PER\",\"I-PER\",\"O\"]}\n{\"words\":[\"x\"],\"tags\":[3]}\n");
    let found = place.records("bert-tagger", "a.conll", "--label-field last");
    let labels: Vec<&[i32]> = found.iter().map(|record| record.labels.as_slice()).collect();
    assert_eq!(labels, [&[-100, 1, -100, -100, -100, 2, 0, -100, -100][..], &[-100, 3, -100]]);
    assert_eq!(found[0].positions, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(found[0].top_ids.len(), 7 * 5);
    assert_eq!(place.records("bert-tagger", "a.jsonl", "--words-field words --label-field tags"), found);
    std::fs::copy(place.path("a.conll"), place.path("train.txt")).expect("a copy");
    assert_eq!(place.records("bert-tagger", "train.txt", "--format conll --words-field 1 --label-field 3"), found);
    place.file(
        "b.jsonl",
        "{\"words\":[\"anna\",\"b\",\"in\"],\"tags\":[\"B-PER\",\"I-PER\",\"O\"]}\n{\"words\":[\"x\"],\"tags\":[\"B-LOC\"]}\n",
    );
    Program::python("venv-readers", "write_parquet_corpus.py").arg(place.path("b.jsonl")).arg(place.path("parquet")).run().success();
    for codec in ["snappy", "large", "dictionary", "lz4"] {
        let corpus = format!("parquet/{codec}.parquet");
        assert_eq!(place.records("bert-tagger", &corpus, "--words-field words --label-field tags"), found, "{corpus}");
    }
    place.file("text.txt", "anna b in\n");
    let text = place.records("bert-tagger", "text.txt", "");
    assert_eq!((&text[0].top_ids, &text[0].input_ids), (&found[0].top_ids, &found[0].input_ids));
    assert!(text[0].labels.iter().all(|label| *label == -100));
}

#[test]
fn long_sentences_are_cut_and_each_tag_counts_once() {
    let place = Place::new();
    let words: String = (0..20).map(|_| "a O\n").collect();
    place.file("a.conll", &words);
    let found = place.records("bert-tagger", "a.conll", "--label-field 2 --max-length 10 --stride 3");
    assert_eq!(found.iter().map(|record| record.input_ids.len()).collect::<Vec<_>>(), [10, 10, 10, 7]);
    assert_eq!(found.iter().flat_map(|record| &record.labels).filter(|label| **label == 0).count(), 20);
    assert_eq!(found.iter().map(|record| record.positions.len()).sum::<usize>(), 8 + 8 + 8 + 5, "the repeated ones are asked again");
}

#[test]
fn a_pair_has_two_segments_for_a_classifier_and_two_rows_for_an_encoder_of_sentences() {
    let place = Place::new();
    place.file("a.tsv", "one\ttwo\tlabel\tscore\na b\tc\tneutral\t0.5\nd\te f\t\t\n");
    let found = place.records("bert-classifier", "a.tsv", "--text-field one --text-pair-field two --label-field label");
    assert_eq!(found[0].input_ids, [2, letter('a'), letter('b'), 3, letter('c'), 3]);
    assert_eq!(found[0].token_type_ids, [0, 0, 0, 0, 1, 1]);
    assert_eq!([&found[0].labels, &found[1].labels], [&[1], &[-100]]);
    let found = place.records("bert-sentence", "a.tsv", "--text-field one --text-pair-field two --label-field score");
    let rows: Vec<_> = found.iter().map(|record| (record.document_id, record.input_ids.len(), record.label_values.clone())).collect();
    assert_eq!(rows, [(0, 4, vec![0.5]), (0, 3, vec![0.5]), (1, 3, vec![]), (1, 4, vec![])]);
    assert!(found.iter().all(|record| record.embedding.len() == 16 && record.positions.is_empty() && record.labels.is_empty()));
}

#[test]
fn numbers_go_with_a_regression() {
    let place = Place::new();
    place.file("a.csv", "text,score\na b,2.5\nc,\n");
    let found = place.records("distilbert-regression", "a.csv", "--label-field score");
    assert_eq!(found.iter().map(|record| record.label_values.clone()).collect::<Vec<_>>(), [vec![2.5], vec![]]);
}

#[test]
fn a_causal_model_foretells_the_next_token_packed_or_not() {
    let place = Place::new();
    place.file("a.txt", "a b c d e f\ng h\n");
    let found = place.records("gpt2", "a.txt", "");
    for record in &found {
        let next: Vec<i32> = record.input_ids[1..].iter().map(|id| *id as i32).chain([-100]).collect();
        assert_eq!(record.labels, next);
        assert_eq!(record.positions.len(), record.input_ids.len() - 1, "the last token has none to foretell");
    }
    let packed = place.records("gpt2", "a.txt", "--pack --max-length 6");
    let lengths: usize = found.iter().map(|record| record.input_ids.len() + 1).sum();
    assert_eq!(packed.iter().map(|record| record.input_ids.len()).sum::<usize>(), lengths, "each document ends in an end token");
    assert!(packed[..packed.len() - 1].iter().all(|record| record.input_ids.len() == 6));
}

#[test]
fn malformed_records_end_the_run_or_are_counted() {
    let place = Place::new();
    place.file(
        "a.jsonl",
        "{\"text\":\"a b\",\"label\":\"positive\"}\n{\"text\":\"c\",\"label\":\"good\"}\n{\"text\":\n{\"text\":\"d\",\"label\":0}\n",
    );
    let flags = "--label-field label";
    let classes = ["a.jsonl", "line 2", "\"label\"", "0 \"negative\", 1 \"neutral\", 2 \"positive\"", "\"good\"", "--skip-bad"];
    place.ask("bert-classifier", "a.jsonl", "out", flags).refused(1, &classes);
    place.ask("bert-classifier", "a.jsonl", "out", &format!("{flags} --skip-bad 1")).refused(1, &["line 3", "--skip-bad allows: 1"]);
    // The run goes on where it was ended.
    place.ask("bert-classifier", "a.jsonl", "out", &format!("{flags} --skip-bad 2")).success().says("malformed   2 records");
    assert_eq!((place.counts("out").malformed, place.counts("out").documents), (2, 2));
    assert_eq!(records(&place.path("out")).iter().map(|record| record.document_id).collect::<Vec<_>>(), [0, 3]);
}

#[test]
fn a_part_of_a_shuffled_corpus_is_the_same_every_time() {
    let place = Place::new();
    let content: String = ('a'..='z').map(|letter| format!("{letter} {letter}\n")).collect();
    place.file("a.txt", &content);
    let flags = "--shuffle-seed 5 --skip 4 --limit 9";
    let first: Vec<u64> = place.records("bert-classifier", "a.txt", flags).iter().map(|record| record.document_id).collect();
    assert_eq!(first.len(), 9);
    assert!(!first.is_sorted());
    place.ask("bert-classifier", "a.txt", "one", flags).success();
    place.ask("bert-classifier", "a.txt", "two", flags).success();
    let except = ["timing.json"];
    assert_eq!(contents(&place.path("one"), &except), contents(&place.path("two"), &except));
    place.ask("bert-classifier", "a.txt", "one", "--shuffle-seed 6 --skip 4 --limit 9").refused(2, &["shuffle-seed 5", "shuffle-seed 6"]);
}

#[test]
fn flags_that_do_not_go_with_corpus_or_task_are_refused() {
    let place = Place::new();
    place.file("a.csv", "id,content\n1,a b\n");
    place.file("a.txt", "a b\n");
    // What is found out only while reading leaves a cache that is begun, so each run has its own.
    let mut runs = 0;
    let mut refused = |teacher: &str, corpus: &str, flags: &str, code: i32, words: &[&str]| {
        runs += 1;
        place.ask(teacher, corpus, &format!("out-{runs}"), flags).refused(code, words);
    };
    refused("bert-classifier", "a.csv", "", 1, &["a.csv", "\"text\"", "\"id\", \"content\"", "--text-field"]);
    refused("bert-classifier", "a.txt", "--skip 7", 2, &["--skip", "a corpus of 1"]);
    refused("bert-sentence", "a.csv", "--text-field content --label-field id", 2, &["--label-field", "--text-pair-field"]);
    refused("bert-sentence", "a.txt", "--long-documents cut", 2, &["--long-documents", "pair"]);
    refused("bert-tagger", "a.csv", "--text-field content --text-pair-field id", 2, &["--text-pair-field", "token-classification"]);
    refused("gpt2", "a.csv", "--text-field content --label-field id", 2, &["--label-field", "causal-lm"]);
    refused("bert-classifier", "a.txt", "--pack", 2, &["--pack", "causal-lm"]);
    refused("bert-classifier", "a.txt", "--format parquet", 1, &["a.txt", "Parquet"]);
}
