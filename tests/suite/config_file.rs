//! `train --config` and the resolved configuration that every run leaves.

use crate::fixtures::CACHES;
use e2e::{Program, data};

#[test]
fn the_resolved_configuration_trains_the_same_student_again() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let program = Program::train().arg("--cache").arg(CACHES.heldout()).arg("--out").arg(&one);
    let program = program.arg("--init-from").arg(data("teacher/model.onnx"));
    program.args("--eval-fraction 0.2 --layers 2 --steps 3 --batch-tokens 512 --seed 4 --threads 2 --quiet").run().success();
    let again = || Program::train().arg("--config").arg(one.join("run.toml"));
    again().arg("--out").arg(&two).run().success();
    let weights = |out: &std::path::Path| std::fs::read(out.join("model.safetensors")).expect("a student has weights");
    assert!(weights(&one) == weights(&two), "the file gave other weights than the flags it stands for");
    again().run().success().says("already holds the finished student");
    again().args("--seed 5").run().refused(2, &["--seed was 4, now 5"]);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "steps = 4\nbatch_token = 512\n").expect("a temporary directory can be written");
    Program::train().arg("--config").arg(&path).run().refused(2, &["run.toml, line 2", "nearest is batch-tokens"]);
}
