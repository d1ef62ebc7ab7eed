//! What a person looks at after a training, and measuring a student again.

use crate::fixtures::{CACHES, copy_tree};
use e2e::{Program, data};
use serde_json::Value;
use std::path::Path;

fn train(out: &Path) -> Program {
    let program = Program::train().arg("--cache").arg(CACHES.train()).arg("--eval-cache").arg(CACHES.heldout()).arg("--out").arg(out);
    program.arg("--init-from").arg(data("teacher/model.onnx")).args("--log-every 1 --threads 2 --quiet --steps 4 --batch-tokens 1024")
}

fn evaluate(student: &Path, cache: &Path) -> Program {
    Program::train().arg("evaluate").arg("--student").arg(student).arg("--cache").arg(cache).args("--threads 2 --quiet")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_training_leaves_an_evaluation_that_can_be_made_again_and_a_page() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (student, again) = (folder.path().join("student"), folder.path().join("again.json"));
    let outcome = train(&student).run().success();
    let evaluation = json(&student.join("evaluation.json"));
    evaluate(&student, &CACHES.heldout()).arg("--out").arg(&again).run().success().says("perplexity, student");
    assert_eq!(json(&again), evaluation, "train evaluate finds other figures than the training did");
    let summary = json(&student.join("summary.json"));
    for (key, path) in
        [("top5_overlap", "/top5_overlap"), ("student_ece", "/student_calibration/ece"), ("student_perplexity", "/student_perplexity")]
    {
        assert_eq!(Some(&summary["quality"][key]), evaluation.pointer(path), "{key}");
    }
    outcome.says("overlap of the 5 best").says("calibration error (ECE), student").says("model.safetensors, bytes");

    let page = read(&student.join("report.html"));
    for text in ["<svg", "Calibration", "Where they disagree most", "<mark>", "mlm: original tokens, nats", "prefers-color-scheme:dark"] {
        assert!(page.contains(text), "the page lacks {text}");
    }
    for outside in ["http://", "https://", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }

    let time = |batch: u64, ms: f64| serde_json::json!({"batch": batch, "median_ms": ms, "min_ms": ms, "max_ms": ms});
    let model =
        |path: &Path, ms| serde_json::json!({"directory": path, "onnx_bytes": 1_000_000, "times": [time(1, ms), time(16, 4.0 * ms)]});
    let speed = serde_json::json!({"models": [model(&student, 2.0), model(&data("teacher"), 5.0)]});
    std::fs::write(student.join("speed.json"), speed.to_string()).expect("a temporary directory can be written");
    let hostile = read(&student.join("evaluation.json")).replacen("\"seen\": \"", "\"seen\": \"<script>alert(1)</script>", 1);
    std::fs::write(student.join("evaluation.json"), hostile).expect("a temporary directory can be written");
    let report = Program::train().arg("report").arg("--student").arg(&student).run().success();
    report.says("forward of batch 16, ms").says("teacher 20.00: 2.50 times the student's").says("overlap of the 5 best");
    assert_eq!(json(&student.join("summary.json"))["speed"]["times"][1]["teacher_ms"], 20.0);
    let page = read(&student.join("report.html"));
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"), "a token is not escaped");
    assert!(page.contains("forward, batch 16, ratio"), "the page lacks the forward times");
}

#[test]
fn a_cache_of_another_tokenizer_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (student, other) = (folder.path().join("student"), folder.path().join("cache"));
    train(&student).run().success();
    copy_tree(&CACHES.heldout(), &other);
    let tokenizer = other.join("teacher/tokenizer.json");
    std::fs::write(&tokenizer, read(&tokenizer).replacen("\"C\"", "\"D\"", 1) + "\n").expect("a temporary directory can be written");
    evaluate(&student, &other).run().refused(2, &["--cache", "tokenizer", &student.display().to_string(), &other.display().to_string()]);
    let config = student.join("config.json");
    let size = json(&config)["vocab_size"].as_u64().expect("a student has a vocabulary");
    std::fs::write(&config, read(&config).replacen(&size.to_string(), &(size + 1).to_string(), 1))
        .expect("a temporary directory can be written");
    evaluate(&student, &CACHES.heldout()).run().refused(1, &["model.safetensors"]);
}
