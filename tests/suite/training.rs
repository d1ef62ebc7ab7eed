//! A student learns from a cache, the same way every time.

use crate::fixtures::{CACHES, precompute};
use e2e::{Program, data};
use std::path::Path;

fn train(out: &Path) -> Program {
    let program = Program::train().arg("--cache").arg(CACHES.train()).arg("--eval-cache").arg(CACHES.heldout()).arg("--out").arg(out);
    let program = program.arg("--init-from").arg(data("teacher/model.onnx"));
    program.args("--log-every 1 --threads 2 --quiet")
}

fn evaluations(out: &Path) -> Vec<serde_json::Value> {
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("train writes metrics.jsonl");
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("every line is JSON"));
    lines.filter(|line| line["kind"] == "evaluation").collect()
}

#[test]
fn training_brings_the_student_nearer_to_the_teacher() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    train(folder.path()).args("--steps 40 --batch-tokens 1024 --dropout 0").run().success();
    let evaluations = evaluations(folder.path());
    let (first, last) = (evaluations.first().expect("one before the first step"), evaluations.last().expect("one at the end"));
    let read = |line: &serde_json::Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{line} lacks {key}"));
    assert!(read(last, "student_teacher_top1") > read(first, "student_teacher_top1") + 0.02, "from {first} to {last}");
    assert!(read(last, "kl_nats") < 0.8 * read(first, "kl_nats"), "from {first} to {last}");
    for name in ["model.safetensors", "config.json", "tokenizer.json", "summary.json"] {
        assert!(folder.path().join(name).exists(), "the student directory lacks {name}");
    }
}

#[test]
fn the_same_command_gives_the_same_weights() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let weights = ["one", "two"].map(|name| {
        let out = folder.path().join(name);
        train(&out).args("--steps 4 --batch-tokens 1024 --dropout 0.1 --seed 3").run().success();
        std::fs::read(out.join("model.safetensors")).expect("a student has weights")
    });
    assert!(weights[0] == weights[1], "two runs of one command gave different weights");
}

#[test]
fn accumulation_changes_nothing_but_rounding() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let keys = ["loss", "ce_nats", "mlm_nats", "cos_distance", "gradient_norm"];
    // Windows of 1,024 tokens are pairs of windows of 512: every step takes the same rows.
    let steps = [("whole", "--batch-tokens 1024"), ("split", "--batch-tokens 512 --accumulate 2")].map(|(name, arguments)| {
        let out = folder.path().join(name);
        train(&out).args("--steps 3 --dropout 0").args(arguments).run().success();
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("train writes metrics.jsonl");
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("every line is JSON"));
        let steps = lines.filter(|line| line["kind"] == "step");
        steps.map(|line| keys.map(|key| line[key].as_f64().unwrap_or_else(|| panic!("{line} lacks {key}")))).collect::<Vec<_>>()
    });
    assert_eq!(steps.each_ref().map(Vec::len), [3, 3]);
    for (step, (whole, split)) in steps[0].iter().zip(&steps[1]).enumerate() {
        for (key, (whole, split)) in keys.iter().zip(whole.iter().zip(split)) {
            let difference = (whole - split).abs() / whole;
            eprintln!("step {step}: {key} {whole} against {split}: {difference:.1e}");
            assert!(difference < 1e-5, "step {step}: {key} is {whole} in one piece and {split} in two");
        }
    }
}

#[test]
fn a_finished_student_is_reused_and_another_configuration_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    train(folder.path()).args("--steps 2").run().success();
    train(folder.path()).args("--steps 2").run().success().says("already holds the finished student");
    train(folder.path()).args("--steps 2 --learning-rate 1e-4").run().refused(2, &["learning-rate", "0.0005", "0.0001"]);
}

#[test]
fn fewer_ids_than_are_stored_train_as_a_cache_that_stores_fewer() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let small = folder.path().join("sixteen");
    precompute(&CACHES.corpus(), &small).args("--top-k 16").run().success();
    let flags = "--steps 3 --batch-tokens 1024 --threads 2 --layers 2 --log-every 1 --loss \
                 ce=5:tail=renormalised-teacher,reverse-kl=1,jsd=1:schedule=linear,tvd=1:tail=zero,logit-mse=0.01,mlm=2,cos=1";
    let run = |cache: &Path, name: &str, extra: &str| {
        let out = folder.path().join(name);
        let program = Program::train().arg("--cache").arg(cache).arg("--eval-cache").arg(CACHES.heldout()).arg("--out").arg(&out);
        let outcome = program.arg("--init-from").arg(data("teacher/model.onnx")).args(flags).args(extra).run();
        (outcome, out.join("model.safetensors"))
    };
    let weights = |cache: &Path, name: &str, extra: &str| {
        let (outcome, file) = run(cache, name, extra);
        for note in ["ce with tail renormalised-teacher is biased", "tvd with tail zero is biased", "logit-mse is biased"] {
            assert_eq!(outcome.stderr.matches(note).count(), 1, "{note}: {}", outcome.stderr);
        }
        outcome.success();
        std::fs::read(file).expect("a student has weights")
    };
    let asked = weights(&CACHES.train(), "asked", "--top-k 16");
    assert!(asked == weights(&small, "stored", ""), "--top-k 16 of 64 ids is not what a cache of 16 gives");
    assert!(asked != weights(&CACHES.train(), "all", ""), "all 64 ids teach the same as 16");
    run(&small, "more", "--top-k 17").0.refused(2, &["--top-k", "1 to 16 ids", "17", "precompute --top-k 17"]);
}
