//! Nothing computed is lost, and a run that was stopped cannot be told from one that was not.

use crate::fixtures::{CACHES, copy_tree, precompute};
use e2e::{contents, finish, signal};
use std::time::Duration;

/// The only file that holds clock times, and the lock of a running program.
const NOT_COMPARED: &[&str] = &["timing.json", ".lock"];

#[test]
fn a_second_run_reuses_the_cache_and_says_so() {
    let before = contents(&CACHES.train(), NOT_COMPARED);
    precompute(&CACHES.corpus(), &CACHES.train()).run().success().says("complete");
    assert!(before == contents(&CACHES.train(), NOT_COMPARED), "a rerun on a complete cache changed a file");
}

#[test]
fn a_run_killed_at_any_moment_continues_to_the_same_bytes() {
    let expected = contents(&CACHES.train(), NOT_COMPARED);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("cache");
    for milliseconds in [150, 900, 1700, 2600, 400, 1200] {
        let child = precompute(&CACHES.corpus(), &out).start();
        std::thread::sleep(Duration::from_millis(milliseconds));
        signal(&child, "KILL");
        finish(child);
    }
    precompute(&CACHES.corpus(), &out).run().success();
    compare(&expected, &contents(&out, NOT_COMPARED));
}

#[test]
fn an_interrupt_publishes_the_shard_and_says_how_to_continue() {
    let expected = contents(&CACHES.train(), NOT_COMPARED);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("cache");
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let child = precompute(&CACHES.corpus(), &out).start();
        std::thread::sleep(Duration::from_millis(1300));
        signal(&child, name);
        let outcome = finish(child);
        if outcome.code != Some(0) {
            outcome.refused(code, &["same"]);
        }
    }
    precompute(&CACHES.corpus(), &out).run().success();
    compare(&expected, &contents(&out, NOT_COMPARED));
}

#[test]
fn other_arguments_on_the_same_directory_are_refused_naming_both_values() {
    precompute(&CACHES.corpus(), &CACHES.train()).args("--top-k 8").run().refused(2, &["top-k", "64", "8"]);
    precompute(&CACHES.corpus(), &CACHES.train()).args("--seed 5").run().refused(2, &["seed", "0", "5"]);
}

#[test]
fn shards_that_are_gone_are_made_again_alone() {
    let expected = contents(&CACHES.train(), NOT_COMPARED);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("cache");
    copy_tree(&CACHES.train(), &out);
    std::fs::remove_file(out.join("logits-00000.parquet")).expect("a shard to remove");
    std::fs::write(out.join("hidden-00001.parquet"), b"cut short").expect("a shard to damage");
    let kept = out.join("logits-00002.parquet");
    let written = || kept.metadata().and_then(|found| found.modified()).expect("the third shard");
    let before = written();
    precompute(&CACHES.corpus(), &out).run().success();
    compare(&expected, &contents(&out, NOT_COMPARED));
    assert_eq!(written(), before, "a shard that was there is left alone");
}

fn compare(expected: &[(std::path::PathBuf, Vec<u8>)], found: &[(std::path::PathBuf, Vec<u8>)]) {
    let names = |files: &[(std::path::PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found));
    for ((name, expected), (_, found)) in expected.iter().zip(found) {
        assert!(expected == found, "{} differs from the uninterrupted run's", name.display());
    }
}
