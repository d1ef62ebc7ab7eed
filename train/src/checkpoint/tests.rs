//! Runs that stop anywhere and go on, damaged checkpoints, and which of them stay.

use super::*;
use crate::metrics::METRICS_FILE;
use crate::small_cache::{SmallCache, arguments};
use crate::student::layout;
use crate::student::tensor_file::TensorFile;
use crate::student::tensor_source::TensorSource;
use crate::trainer::StopSignal;
use std::collections::BTreeSet;
use std::path::Path;
use tempfile::TempDir;

/// Three epochs of 5 steps with everything that could go out of step.
const RUN: &[&str] =
    &["--accumulate", "2", "--dropout", "0.1", "--epochs", "3", "--log-every", "3", "--eval-every", "4", "--loss", SCHEDULED];

const SCHEDULED: &str = "ce=5,mlm=2:schedule=wsd:warmup=0.2:decay=0.3,cos=1:schedule=linear";

/// The same with a student half as wide as its teacher, two of whose states it learns from through projections.
const NARROW: &[&str] = &[
    "--accumulate",
    "2",
    "--dropout",
    "0.1",
    "--epochs",
    "3",
    "--log-every",
    "3",
    "--eval-every",
    "4",
    "--layers",
    "2",
    "--hidden-size",
    "8",
    "--heads",
    "2",
    "--hidden-map",
    "1:1,2:2",
    "--loss",
    "ce=5,mlm=2,cos=1:schedule=linear,hidden-mse=1",
];

struct Place {
    folder: TempDir,
    cache: PathBuf,
    run: &'static [&'static str],
}

impl Place {
    fn new() -> Self {
        Self::with(&SmallCache::default(), RUN)
    }

    fn with(cache: &SmallCache, run: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache.write(folder.path(), "cache");
        Self { folder, cache, run }
    }

    fn config(&self, out: &str, extra: &[&str]) -> Config {
        let all = [self.run, &["--eval-fraction", "0.1"], extra].concat();
        Config::check(&arguments(&self.cache, &self.folder.path().join(out), &all)).unwrap()
    }

    fn run(&self, out: &str, extra: &[&str]) -> Result<String> {
        crate::run(&self.config(out, extra), &StopSignal::default())
    }

    /// A finished run with every checkpoint kept, as it would lie there had it been killed after `step`.
    fn killed_after(&self, step: u64, name: &str) {
        let (from, to) = (self.folder.path().join("whole"), self.folder.path().join(name));
        copy(&from, &to);
        for (other, path) in Checkpoints::new(&self.config(name, &[])).list().unwrap() {
            if other > step {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        let run = std::fs::read_to_string(to.join("run.json")).unwrap();
        std::fs::write(to.join("run.json"), run.replace("\"finished\": true", "\"finished\": false")).unwrap();
        std::fs::remove_file(to.join("model.safetensors")).unwrap();
    }

    fn steps(&self, out: &str) -> Vec<u64> {
        Checkpoints::new(&self.config(out, &[])).list().unwrap().into_iter().map(|(step, _)| step).collect()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().file_name());
        if path.is_dir() { copy(&path, &to.join(name)) } else { std::fs::copy(&path, to.join(name)).map(|_| ()).unwrap() }
    }
}

/// The log without what a clock says.
fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join(METRICS_FILE)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let clock = |key: &str| key.ends_with("_ms") || key.ends_with("_seconds") || key == "tokens_per_second";
    lines
        .map(|mut line| {
            line.as_object_mut().unwrap().retain(|key, _| !clock(key));
            line
        })
        .collect()
}

#[test]
fn a_run_that_stops_after_any_step_is_the_run_that_never_stopped() {
    let place = Place::new();
    place.run("whole", &["--checkpoint-every", "1", "--keep", "100"]).unwrap();
    let weights = |out: &str| std::fs::read(place.path(out).join("model.safetensors")).unwrap();
    let (expected, log) = (weights("whole"), metrics(&place.path("whole")));
    let steps = place.steps("whole");
    assert!(steps.len() >= 12 && log.len() >= 8, "{steps:?} and {log:?}");
    for step in steps {
        let name = format!("killed-{step}");
        place.killed_after(step, &name);
        place.run(&name, &["--checkpoint-every", "7", "--resume"]).unwrap();
        assert!(weights(&name) == expected, "after step {step}: other weights");
        assert_eq!(metrics(&place.path(&name)), log, "after step {step}");
    }
}

#[test]
fn projections_go_on_with_the_student_and_are_no_part_of_it() {
    let place = Place::with(&SmallCache { hidden_layers: vec![1, 2], ..SmallCache::default() }, NARROW);
    place.run("whole", &["--checkpoint-every", "1", "--keep", "100"]).unwrap();
    let steps = place.steps("whole");
    let last = format!("checkpoints/step-{:08}", steps[steps.len() - 1]);
    let files = |out: &str| {
        let checkpoint = place.path(out).join(&last);
        [PROJECTIONS_FILE, OPTIMIZER_FILE, "model.safetensors"].map(|name| std::fs::read(checkpoint.join(name)).unwrap())
    };
    let (expected, log) = (files("whole"), metrics(&place.path("whole")));
    for step in steps {
        let name = format!("killed-{step}");
        place.killed_after(step, &name);
        place.run(&name, &["--checkpoint-every", "7", "--resume"]).unwrap();
        assert!(files(&name) == expected, "after step {step}: other weights, projections or moments");
        assert_eq!(metrics(&place.path(&name)), log, "after step {step}");
    }
    // What the projections are: in the checkpoint, moved from where the seed put them, and nowhere in the student.
    let config = place.config("whole", &[]);
    let drawn = crate::hidden_objective(&config).unwrap();
    let mut saved = TensorFile::open(&place.path("whole").join(&last).join(PROJECTIONS_FILE)).unwrap();
    assert_eq!(drawn.parameters().len(), 4);
    for projection in drawn.parameters() {
        let values = projection.with_value(|values: &[f32]| values.to_vec()).unwrap();
        assert_ne!(saved.read(projection.name(), projection.shape().dims()).unwrap(), values, "{} was not trained", projection.name());
    }
    let expected: Vec<String> = layout(&config.student).into_iter().map(|parameter| parameter.name).collect();
    for path in ["model.safetensors".to_owned(), format!("{last}/model.safetensors")] {
        let names = TensorFile::open(&place.path("whole").join(path)).unwrap().names();
        assert_eq!(names.iter().collect::<BTreeSet<_>>(), expected.iter().collect::<BTreeSet<_>>());
    }
    // Another map is another run.
    place.killed_after(4, "other");
    let mut all = [NARROW, &["--eval-fraction", "0.1"]].concat();
    *all.iter_mut().find(|word| **word == "1:1,2:2").unwrap() = "2:2";
    let other = Config::check(&arguments(&place.cache, &place.path("other"), &all)).unwrap();
    let error = crate::run(&other, &StopSignal::default()).unwrap_err().to_string();
    assert!(error.contains("--hidden-map was 1:1,2:2, now 2:2"), "{error}");
}

#[test]
fn the_last_checkpoints_and_the_best_stay() {
    let place = Place::new();
    // The learning rate ruins the student soon: the first evaluation stays the best.
    let ruin = ["--learning-rate", "3", "--checkpoint-every", "2", "--keep", "2", "--clip", "1000"];
    let all = [&RUN[..10], &["--eval-fraction", "0.1"], &ruin].concat();
    crate::run(&Config::check(&arguments(&place.cache, &place.path("ruined"), &all)).unwrap(), &StopSignal::default()).unwrap();
    let steps = place.steps("ruined");
    let best = steps[0];
    assert_eq!((steps.len(), best % 4), (3, 0), "{steps:?}: two and the best of those evaluated");
}

#[test]
fn damage_is_named_with_the_sound_one_before_it() {
    let place = Place::new();
    place.run("whole", &["--checkpoint-every", "2", "--keep", "100"]).unwrap();
    for (file, word) in
        [("optimizer.safetensors", "SHA-256"), ("model.safetensors", "SHA-256"), ("state.json", "state.json"), ("config.json", "length")]
    {
        let name = format!("damaged-{file}");
        place.killed_after(6, &name);
        let path = place.path(&name).join("checkpoints/step-00000006").join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        if file == "config.json" {
            bytes.pop();
        }
        std::fs::write(&path, bytes).unwrap();
        let error = place.run(&name, &[]).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(word), "{error}");
        assert!(error.contains("goes on from") && error.contains("step-00000004"), "{error}");
        // The advice works.
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        place.run(&name, &["--resume"]).unwrap();
        assert!(
            std::fs::read(place.path(&name).join("model.safetensors")).unwrap()
                == std::fs::read(place.path("whole/model.safetensors")).unwrap()
        );
    }
}

#[test]
fn leftovers_are_cleared_and_nothing_else_is_a_checkpoint() {
    let place = Place::new();
    place.run("whole", &["--checkpoint-every", "2", "--keep", "100"]).unwrap();
    place.killed_after(4, "left");
    let checkpoints = place.path("left/checkpoints");
    copy(&checkpoints.join("step-00000004"), &checkpoints.join(".step-00000006.partial"));
    std::fs::remove_file(checkpoints.join(".step-00000006.partial/state.json")).unwrap();
    place.run("left", &[]).unwrap();
    assert!(!checkpoints.join(".step-00000006.partial").exists());
    assert!(std::fs::read(place.path("left/model.safetensors")).unwrap() == std::fs::read(place.path("whole/model.safetensors")).unwrap());
}

#[test]
fn another_run_is_refused_and_what_may_change_is_not() {
    let place = Place::new();
    place.run("whole", &["--checkpoint-every", "2", "--keep", "100"]).unwrap();
    place.killed_after(4, "other");
    for (extra, words) in [
        (&["--seed", "9"][..], ["--seed was 0, now 9", "choose another --out"]),
        (&["--layers", "2"], ["--layers was 1, now 2", "choose another --out"]),
        (&["--batch-tokens", "64"], ["--batch-tokens was 128, now 64", "choose another --out"]),
        (&["--learning-rate", "1e-4"], ["--learning-rate was 0.0005, now 0.0001", "choose another --out"]),
        (&["--full-vocabulary-every", "8"], ["--full-vocabulary-every was not given, now 8", "choose another --out"]),
    ] {
        let error = place.run("other", extra).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    let another = SmallCache { teacher: "another", ..SmallCache::default() }.write(place.folder.path(), "another");
    let config = Config::check(&arguments(&another, &place.path("other"), &[RUN, &["--eval-fraction", "0.1"]].concat())).unwrap();
    let error = crate::run(&config, &StopSignal::default()).unwrap_err().to_string();
    assert!(error.contains("--cache was") && error.contains("the cache's teacher was"), "{error}");
    // The log, the evaluations, the checkpoints and the threads may change.
    place.run("other", &["--keep", "1", "--checkpoint-every", "3", "--threads", "1", "--skip-nonfinite", "2"]).unwrap();
    let error = place.run("none", &["--resume"]).unwrap_err().to_string();
    assert!(error.contains("--resume: expected a checkpoint"), "{error}");
}

#[test]
fn a_finished_run_may_be_made_longer_and_not_shorter() {
    let place = Place::new();
    place.run("whole", &[]).unwrap();
    let log = metrics(&place.path("whole"));
    let longer = |out: &str, epochs: &'static str| {
        let mut all = [RUN, &["--eval-fraction", "0.1"]].concat();
        all[5] = epochs;
        crate::run(&Config::check(&arguments(&place.cache, &place.path(out), &all)).unwrap(), &StopSignal::default())
    };
    let error = longer("whole", "1").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--epochs: expected at least the"), "{error}");
    longer("whole", "4").unwrap();
    let all = metrics(&place.path("whole"));
    assert!(all.len() > log.len() && all[..log.len()] == log[..], "the log goes on");
}
