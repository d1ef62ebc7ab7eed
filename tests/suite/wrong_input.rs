//! Every wrong input gets an error that names file, field, expected, found and remedy; usage leaves with 2, data with 1.

use crate::fixtures::{CACHES, copy_tree, precompute};
use e2e::{Program, data};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A tokenizer of nine words, for teachers with a vocabulary of 64.
const LETTERS_TOKENIZER: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
  "added_tokens": [
    {"id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 2, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 3, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 4, "content": "[MASK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
  ],
  "pre_tokenizer": {"type": "Whitespace"},
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
      "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
    }
  },
  "model": {
    "type": "WordLevel", "unk_token": "[UNK]",
    "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "b": 6, "c": 7, "d": 8}
  }
}"#;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("a temporary directory can be written");
        self.path(name)
    }

    /// A copy of the training cache to be spoilt.
    fn cache(&self) -> PathBuf {
        copy_tree(&CACHES.train(), &self.path("cache"));
        self.path("cache")
    }

    fn train(&self, cache: &Path) -> Program {
        let program = Program::train().arg("--cache").arg(cache).arg("--out").arg(self.path("student"));
        program.args("--steps 1 --quiet")
    }
}

#[test]
fn a_missing_corpus_flag_is_a_usage_error() {
    Program::precompute().arg("--teacher").arg(data("teacher")).args("--out nowhere").run().refused(2, &["--corpus"]);
    Program::precompute().args("--no-such-flag").run().refused(2, &["--no-such-flag"]);
}

#[test]
fn a_corpus_that_is_not_there_is_named() {
    let place = Place::new();
    precompute(&place.path("nothing.txt"), &place.path("out")).run().refused(2, &["--corpus", "nothing.txt"]);
}

#[test]
fn an_empty_corpus_is_refused() {
    let place = Place::new();
    let corpus = place.file("empty.txt", b"");
    precompute(&corpus, &place.path("out")).run().refused(1, &["empty.txt"]);
}

#[test]
fn a_corpus_that_is_not_utf8_is_named_with_its_line() {
    let place = Place::new();
    let corpus = place.file("latin.txt", b"CC(C)CC(=O)Cl.NCc1ccccc1>>CC(C)CC(=O)NCc1ccccc1\ncaf\xe9\n");
    precompute(&corpus, &place.path("out")).run().refused(1, &["latin.txt", "line 2", "UTF-8"]);
}

#[test]
fn a_teacher_without_logits_is_refused_listing_its_outputs() {
    let place = Place::new();
    let model = data("golden/onnx/bert/no-logits.onnx");
    let program = Program::precompute().arg("--teacher").arg(model).arg("--tokenizer").arg(data("teacher/tokenizer.json"));
    let program = program.arg("--corpus").arg(data("corpus/heldout.txt")).arg("--out").arg(place.path("out"));
    program.run().refused(1, &["logits", "last_hidden_state"]);
}

#[test]
fn a_tokenizer_larger_than_the_teachers_vocabulary_is_refused() {
    let place = Place::new();
    let program = Program::precompute().arg("--teacher").arg(data("golden/onnx/bert/torchscript-17.onnx")).arg("--tokenizer");
    let program = program.arg(data("teacher/tokenizer.json")).arg("--corpus").arg(data("corpus/heldout.txt"));
    program.arg("--out").arg(place.path("out")).run().refused(1, &["tokenizer.json", "591", "64"]);
}

#[test]
fn a_truncated_shard_is_named() {
    let place = Place::new();
    let shard = place.cache().join("logits-00001.parquet");
    let bytes = std::fs::read(&shard).expect("a shard");
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).expect("a temporary directory can be written");
    place.train(&place.path("cache")).run().refused(1, &["logits-00001.parquet", "bytes"]);
}

#[test]
fn a_shard_of_another_run_is_refused() {
    let place = Place::new();
    let cache = place.cache();
    let other = place.path("other");
    precompute(&CACHES.corpus(), &other).args("--seed 9").run().success();
    std::fs::copy(other.join("logits-00000.parquet"), cache.join("logits-00000.parquet")).expect("a copy");
    place.train(&cache).run().refused(1, &["logits-00000.parquet"]);
}

#[test]
fn a_shard_that_the_manifest_does_not_list_is_refused() {
    let place = Place::new();
    let cache = place.cache();
    std::fs::copy(cache.join("logits-00000.parquet"), cache.join("logits-00007.parquet")).expect("a copy");
    place.train(&cache).run().refused(1, &["logits-00007.parquet"]);
}

#[test]
fn a_missing_manifest_is_named_with_the_remedy() {
    let place = Place::new();
    let cache = place.cache();
    std::fs::remove_file(cache.join("manifest.json")).expect("a manifest to remove");
    place.train(&cache).run().refused(1, &["manifest.json", "precompute"]);
}

#[test]
fn an_initial_file_with_other_shapes_is_refused_naming_the_tensor() {
    let place = Place::new();
    let other = data("golden/student-small/model.safetensors");
    assert!(other.exists(), "the fixture's weights belong to the repository");
    place
        .train(&CACHES.train())
        .arg("--init-from")
        .arg(other)
        .args("--init-layers 0,1,0,1,0,1")
        .run()
        .refused(1, &["model.safetensors", "591"]);
}

#[test]
fn an_evaluation_cache_of_another_teacher_is_refused() {
    let place = Place::new();
    let heldout = place.path("heldout");
    copy_tree(&CACHES.heldout(), &heldout);
    let manifest = std::fs::read_to_string(heldout.join("manifest.json")).expect("a manifest");
    let parsed: serde_json::Value = serde_json::from_str(&manifest).expect("a manifest is JSON");
    let teacher = parsed["fingerprints"]["teacher"].as_str().expect("a fingerprint is text");
    std::fs::write(heldout.join("manifest.json"), manifest.replace(teacher, &"0".repeat(64)))
        .expect("a temporary directory can be written");
    place.train(&CACHES.train()).arg("--eval-cache").arg(heldout).run().refused(1, &["teacher"]);
}

#[test]
fn a_temperature_that_the_cache_does_not_hold_is_refused_listing_those_it_holds() {
    let place = Place::new();
    place.train(&CACHES.train()).args("--temperature 3").run().refused(2, &["--temperature", "2", "4", "1", "3"]);
}

#[test]
fn hidden_states_that_are_not_there_are_refused() {
    let place = Place::new();
    let refused = |flags: &str, words: &[&str]| place.train(&CACHES.train()).args(flags).run().refused(2, words);
    refused("--hidden-map 7:12", &["--hidden-map", "the student's states", "7:12"]);
    refused("--hidden-map 6:13", &["--hidden-map", "the teacher's states", "6:13"]);
    refused("--hidden-map even", &["--hidden-map", "precompute --hidden-layers 2,4,6,8,10,12"]);
    refused("--hidden-map last --loss ce=1", &["--hidden-map", "cos or hidden-mse"]);
}

#[test]
fn a_runtime_that_is_none_is_refused_without_an_abort() {
    let place = Place::new();
    let fake = place.file("libonnxruntime.so", b"not a library");
    let program = precompute(&CACHES.corpus(), &place.path("out")).arg("--onnxruntime").arg(fake);
    program.run().refused(2, &["--onnxruntime", "libonnxruntime.so"]);
    // A sound library that is no ONNX Runtime.
    let other = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/aarch64-linux-gnu/libm.so.6"];
    if let Some(other) = other.iter().find(|path| Path::new(path).exists()) {
        let program = precompute(&CACHES.corpus(), &place.path("out")).arg("--onnxruntime").arg(other);
        program.run().refused(2, &["--onnxruntime", "libm.so.6"]);
    }
}

#[test]
fn a_teacher_that_answers_nan_stops_the_run_naming_the_sequence() {
    let place = Place::new();
    let corpus = place.file("corpus.txt", "a b c d ".repeat(8).as_bytes());
    let tokenizer = place.file("tokenizer.json", LETTERS_TOKENIZER.as_bytes());
    let program = Program::precompute().arg("--teacher").arg(data("golden/onnx/bert/nan.onnx")).arg("--tokenizer").arg(tokenizer);
    let program = program.arg("--corpus").arg(corpus).arg("--out").arg(place.path("out")).args("--max-length 16");
    program.run().refused(1, &["sequence 0"]);
}

#[test]
fn whole_words_need_a_tokenizer_that_splits_words() {
    let place = Place::new();
    let corpus = place.file("corpus.txt", b"a\n");
    let tokenizer = LETTERS_TOKENIZER.replace(r#"{"type": "Whitespace"}"#, "null");
    let tokenizer = place.file("tokenizer.json", tokenizer.as_bytes());
    let program =
        Program::precompute().arg("--teacher").arg(data("golden/onnx/bert/torchscript-17.onnx")).arg("--tokenizer").arg(tokenizer);
    let program = program.arg("--corpus").arg(corpus).arg("--out").arg(place.path("out")).args("--max-length 16 --whole-word");
    program.run().refused(2, &["--whole-word", "tokenizer.json"]);
}
