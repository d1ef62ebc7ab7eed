//! A training run that was killed, interrupted or refused by the disk cannot be told from one that was not.

use crate::fixtures::CACHES;
use e2e::{Outcome, Program, data, finish, signal};
use logitcache::seed::{Purpose, RandomStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Kills in all, at least.
const KILLS: usize = 16;

/// Kills of one run after which it may end.
const KILLS_OF_A_RUN: usize = 12;

/// Three epochs with accumulation, dropout, steps of few ids, evaluations and a checkpoint after every step.
fn train(out: &Path) -> Program {
    train_with(out, "3")
}

/// The same with another share of exact steps. Of eight ids a position the micro-batches name less than three quarters of the vocabulary.
fn train_with(out: &Path, full_vocabulary_every: &str) -> Program {
    let program = Program::train().arg("--cache").arg(CACHES.train()).arg("--eval-cache").arg(CACHES.heldout()).arg("--out").arg(out);
    let program = program.arg("--init-from").arg(data("teacher/model.onnx")).args("--layers 1 --init-layers 0 --threads 2 --quiet");
    let program = program.args("--epochs 3 --batch-tokens 256 --accumulate 4 --dropout 0.1 --top-k 8");
    let program = program.arg("--full-vocabulary-every").arg(full_vocabulary_every);
    program.args("--log-every 3 --eval-every 7 --checkpoint-every 1")
}

/// The run that is never stopped.
static WHOLE: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary directory");
    train(&folder.path().join("student")).run().success();
    folder
});

fn whole() -> PathBuf {
    WHOLE.path().join("student")
}

/// The log without what a clock says.
fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).expect("train writes metrics.jsonl");
    let clock = |key: &str| key.ends_with("_ms") || key.ends_with("_seconds") || key.ends_with("_per_second");
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("every line is JSON"));
    lines
        .map(|mut line| {
            line.as_object_mut().expect("a line is an object").retain(|key, _| !clock(key));
            line
        })
        .collect()
}

fn assert_is_the_whole_run(out: &Path) {
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a student has weights");
    assert!(weights(out) == weights(&whole()), "other weights than the uninterrupted run's");
    assert_eq!(metrics(out), metrics(&whole()));
    let names = |out: &Path| e2e::contents(out, &[]).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(out), names(&whole()), "the same files, and no leftovers");
}

/// The directories of a checkpoint being written or removed.
fn partial(out: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(out.join("checkpoints")) else { return 0 };
    entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))).count()
}

fn checkpoints(out: &Path) -> usize {
    std::fs::read_dir(out.join("checkpoints")).map_or(0, |entries| entries.count() - partial(out))
}

/// Waits until `holds`, or the program ends, or for a minute.
fn wait(child: &mut Child, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() && child.try_wait().expect("a child of ours").is_none() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Ends the program without a warning; whether it was still running.
fn kill(mut child: Child) -> bool {
    let running = child.try_wait().expect("a child of ours").is_none();
    if running {
        signal(&child, "KILL");
    }
    finish(child).code.is_none()
}

#[test]
fn a_run_killed_at_any_moment_continues_to_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut draws = RandomStream::new(9, Purpose::Shuffling, &[0]);
    let (mut kills, mut inside, mut runs) = (0, 0, 0);
    while kills < KILLS {
        runs += 1;
        assert!(runs < 20, "{kills} kills in {runs} runs: they end too soon");
        let out = folder.path().join(format!("student-{runs}"));
        for attempt in 0..KILLS_OF_A_RUN {
            let mut child = train(&out).start();
            if attempt % 2 == 0 {
                // Any moment, from before the first file on.
                std::thread::sleep(Duration::from_micros(draws.below(700_000) as u64));
            } else {
                // Inside a checkpoint, some way into the run.
                let before = checkpoints(&out);
                wait(&mut child, || checkpoints(&out) > before || before >= 3);
                std::thread::sleep(Duration::from_micros(draws.below(300_000) as u64));
                wait(&mut child, || partial(&out) > 0);
                std::thread::sleep(Duration::from_micros(draws.below(3_000) as u64));
            }
            if !kill(child) {
                break;
            }
            kills += 1;
            inside += partial(&out);
        }
        train(&out).run().success();
        assert_is_the_whole_run(&out);
    }
    eprintln!("{kills} kills in {runs} runs, {inside} of them inside a checkpoint");
    assert!(inside > 0, "no kill fell into a checkpoint");
}

#[test]
fn the_runs_stopped_here_have_steps_of_few_ids() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    train_with(folder.path(), "1").run().success();
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a student has weights");
    assert!(weights(folder.path()) != weights(&whole()), "no step counted few ids");
}

#[test]
fn the_command_printed_on_a_signal_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let out = folder.path().join(format!("the {name} student"));
        let mut child = train(&out).start();
        wait(&mut child, || checkpoints(&out) >= 3);
        signal(&child, name);
        let stopped = finish(child).refused(code, &["the state after step", "the same command goes on"]);
        assert!(!out.join("model.safetensors").exists(), "the run is not finished");
        let command = stopped.stderr.lines().last().expect("a last line").to_owned();
        let shell = std::process::Command::new("sh").arg("-c").arg(&command).output().expect("a shell");
        assert!(shell.status.success(), "{command}: {}", String::from_utf8_lossy(&shell.stderr));
        assert_is_the_whole_run(&out);
    }
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("student");
    let program = Program::train().arg("--cache").arg(CACHES.train()).arg("--out").arg(&out);
    // Steps of seconds.
    let mut child = program.args("--layers 12 --steps 3 --batch-tokens 16384 --threads 1 --quiet --eval-fraction 0").start();
    wait(&mut child, || out.join("run.json").exists());
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(20));
    signal(&child, "TERM");
    let ended: Outcome = finish(child);
    assert_eq!(ended.code, None, "ended by the signal itself\n{ended}");
    assert_eq!(checkpoints(&out), 0, "no step was waited for");
}

#[test]
fn a_disk_without_room_leaves_the_checkpoints_usable() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("student");
    let mut child = train(&out).start();
    wait(&mut child, || checkpoints(&out) >= 2);
    signal(&child, "TERM");
    finish(child).refused(143, &["the same command goes on"]);
    let before = e2e::contents(&out.join("checkpoints"), &[]);
    // Room for less than the model, or for less than the moments.
    let model = std::fs::metadata(whole().join("model.safetensors")).expect("a student has weights").len();
    train(&out).with_file_limit(model * 6 / 10 / 512).run().refused(1, &["expected room", "the same command", "checkpoints/step-"]);
    assert!(before == e2e::contents(&out.join("checkpoints"), &[]), "the checkpoints are as they were");
    train(&out).run().success();
    assert_is_the_whole_run(&out);
}

#[test]
fn two_runs_never_share_a_directory() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("student");
    let mut child = train(&out).start();
    wait(&mut child, || out.join("run.json").exists());
    train(&out).run().refused(2, &["--out", "another run"]);
    kill(child);
}

#[test]
fn a_place_that_cannot_be_written_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("a temporary directory can be written");
    for out in [file.join("student"), file] {
        train(&out).run().refused(2, &["--out: expected", "choose another --out"]);
    }
    // Not even the superuser writes there.
    if Path::new("/proc/self").exists() {
        train(Path::new("/proc/student")).run().refused(2, &["--out: expected", "choose another --out"]);
    }
}
