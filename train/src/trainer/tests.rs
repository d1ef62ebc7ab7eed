//! Whole runs on a small cache, and the arithmetic of steps.

mod composed;

use super::engine::accumulate_gradients;
use super::*;
use crate::evaluate::Measures;
use crate::kernels::Precision;
use crate::loss::LossParts;
use crate::small_cache::{SmallCache, arguments};
use logitcache::cache::reader::Cache;
use logitcache::target::{Problem, Task};
use std::path::Path;

fn config(cache: &Path, out: &Path, extra: &[&str]) -> Config {
    Config::check(&arguments(cache, out, extra)).unwrap()
}

fn gradients(config: &Config, step: &Step, precision: Precision) -> (LossParts, Vec<(String, Vec<f32>)>) {
    let student = crate::initial_student(config).unwrap();
    student.set_precision(precision);
    let dropout = student.dropout_plan(config.seed, 0);
    let objective = StepObjective::new(&config.objective, (0, 1), f64::from(config.temperature), step.normalisers());
    let hidden = crate::hidden_objective(config).unwrap();
    let passes = accumulate_gradients((&student, &hidden), step, &objective, &dropout).unwrap();
    let gradient = |values: &mut [f32]| values.to_vec();
    let all = trainable(&student, &hidden).into_iter().map(|each| (each.name().to_owned(), each.with_gradient(gradient).unwrap()));
    (passes.parts, all.collect())
}

#[test]
fn splitting_a_step_does_not_change_it() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let first = |batch_tokens: &str, accumulate: &str| {
        let extra = ["--batch-tokens", batch_tokens, "--accumulate", accumulate, "--dropout", "0.2"];
        let config = config(&cache, Path::new("out"), &extra);
        let (step, _) = steps::EpochSteps::new(&config, 0).unwrap().next().unwrap().unwrap();
        (step.micro_batches.len(), gradients(&config, &step, Precision::Single))
    };
    let (one, (whole, whole_gradients)) = first("512", "1");
    let (eight, (split, split_gradients)) = first("64", "8");
    assert_eq!((one, eight), (1, 8));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
    assert!(whole.values.iter().zip(split.values).all(|(whole, split)| near(*whole, split)), "{whole:?} and {split:?}");
    for ((name, whole), (_, split)) in whole_gradients.iter().zip(&split_gradients) {
        let largest = whole.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = whole.iter().zip(split).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        // A key's bias shifts every score of a softmax alike: its gradient is zero but for rounding.
        assert!(largest > 0.0 && worst <= 2e-5 * largest.max(1e-3), "{name}: {worst} of {largest}");
    }
}

#[test]
fn bf16_is_near_single_precision_and_reaches_every_linear_map() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&SmallCache::default().write(directory.path(), "cache"), Path::new("out"), &["--dropout", "0"]);
    let (step, _) = steps::EpochSteps::new(&config, 0).unwrap().next().unwrap().unwrap();
    let (single, single_gradients) = gradients(&config, &step, Precision::Single);
    let (rounded, rounded_gradients) = gradients(&config, &step, Precision::Bf16);
    assert!((single.total - rounded.total).abs() <= 1e-2 * single.total.abs(), "{single:?} and {rounded:?}");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    for ((name, single), (_, rounded)) in single_gradients.iter().zip(&rounded_gradients) {
        let distance = norm(&mut single.iter().zip(rounded).map(|(a, b)| a - b));
        let length = norm(&mut single.iter().copied());
        // A key's bias has no gradient but rounding.
        assert!(distance > 0.0 && (distance <= 0.05 * length || name.contains("k_lin.bias")), "{name}: {distance} of {length}");
    }
}

#[test]
fn the_plan_counts_the_steps_that_the_stream_gives() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache { passes: 2, ..SmallCache::default() }.write(directory.path(), "cache");
    let cases: [&[&str]; 3] = [&["--eval-fraction", "0.1"], &["--eval-fraction", "0"], &["--eval-fraction", "0.1", "--accumulate", "3"]];
    for extra in cases {
        let config = config(&cache, Path::new("out"), extra);
        let plan = plan(&config).unwrap();
        for epoch in 0..3 {
            let steps: Vec<Step> = steps::EpochSteps::new(&config, epoch).unwrap().map(|step| step.unwrap().0).collect();
            assert_eq!(steps.len() as u64, plan.steps_per_epoch, "{extra:?}");
            assert_eq!(steps.iter().map(Step::sequences).sum::<usize>() as u64, plan.rows);
            assert_eq!(steps.iter().map(|step| step.normalisers().tokens).sum::<usize>() as u64, plan.tokens);
        }
    }
    let config = config(&cache, Path::new("out"), &["--eval-fraction", "0.000001"]);
    assert_eq!(super::plan(&config).unwrap_err().exit_code(), 2, "nothing held out");
}

#[test]
fn a_student_learns_is_reused_and_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache { rows_per_shard: 60, ..SmallCache::default() }.write(directory.path(), "cache");
    let out = directory.path().join("student");
    let extra = ["--steps", "150", "--learning-rate", "1e-2", "--dropout", "0", "--eval-fraction", "0.1", "--clip", "100"];
    let config = config(&cache, &out, &extra);
    let table = crate::run(&config, &StopSignal::default()).unwrap();
    assert!(table.contains("student-teacher top-1 agreement"), "{table}");
    let lines: Vec<Line> = std::fs::read_to_string(out.join(crate::metrics::METRICS_FILE))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let losses: Vec<f64> = lines.iter().filter_map(|line| if let Line::Step(step) = line { Some(step.loss) } else { None }).collect();
    assert_eq!(losses.len(), 15, "one line for ten steps");
    assert!(losses[14] < 0.5 * losses[0], "{losses:?}");
    let summary = crate::summary::Summary::read(&out).unwrap();
    let (first, last) = (summary.first_evaluation.unwrap(), summary.evaluation.unwrap());
    let (Measures::MaskedLm(first), Measures::MaskedLm(last)) = (first.measures, last.measures) else { panic!("{last:?}") };
    assert!(last.student_teacher_top1 > first.student_teacher_top1 + 0.2, "{first:?}, then {last:?}");
    assert!(last.kl_nats < 0.5 * first.kl_nats, "{first:?}, then {last:?}");
    assert_eq!(last.teacher_gold_top1, 1.0, "this teacher knows");
    assert!(out.join("model.safetensors").is_file() && out.join("tokenizer.json").is_file() && out.join("curves.svg").is_file());
    let again = crate::run(&config, &StopSignal::default()).unwrap();
    assert!(again.contains("already holds the finished student") && again.contains(&table), "{again}");
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    let error = crate::run(&config, &StopSignal::default()).unwrap_err().to_string();
    assert!(error.contains("found no such file; copy ") && error.contains("step-00000150/model.safetensors there"), "{error}");
    std::fs::copy(out.join("checkpoints/step-00000150/model.safetensors"), out.join("model.safetensors")).unwrap();
    crate::run(&config, &StopSignal::default()).unwrap();
    let other = super::tests::config(&cache, &out, &[&["--steps", "3"], &extra[2..]].concat());
    let error = crate::run(&other, &StopSignal::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--steps: expected at least the 150 steps") && error.to_string().contains("3 steps"), "{error}");
}

#[test]
fn a_signal_ends_the_run_with_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let out = directory.path().join("student");
    let config = config(&cache, &out, &["--steps", "2", "--eval-fraction", "0"]);
    let stop = StopSignal::default();
    stop.place().store(2, Ordering::Relaxed);
    let error = crate::run(&config, &stop).unwrap_err();
    assert_eq!(error.exit_code(), 130);
    assert!(error.to_string().contains("after step 0 of 2"), "{error}");
    assert!(out.join("checkpoints/step-00000000/model.safetensors").is_file());
    let table = crate::run(&config, &StopSignal::default()).unwrap();
    assert!(table.contains("nothing was held out"), "gone on, without evaluation: {table}");
}

#[test]
fn the_same_seed_gives_the_same_student() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let weights = |name: &str, seed: &str| {
        let out = directory.path().join(name);
        crate::run(&config(&cache, &out, &["--steps", "3", "--eval-fraction", "0.1", "--seed", seed]), &StopSignal::default()).unwrap();
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let first = weights("a", "7");
    assert!(first == weights("b", "7"), "byte for byte");
    assert!(first != weights("c", "8"));
}

#[test]
fn a_cache_without_tokens_trains_and_shows_ids() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    std::fs::remove_file(cache.join("vocabulary.parquet")).unwrap();
    let out = directory.path().join("student");
    crate::run(&config(&cache, &out, &["--steps", "2", "--eval-fraction", "0.1"]), &StopSignal::default()).unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let found: serde_json::Value = serde_json::from_str(&read(crate::evaluate_student::EVALUATION_FILE)).unwrap();
    assert_eq!(found["disagreements"][0]["seen"], "#1", "the mask's id");
    assert!(read(crate::report::REPORT_FILE).contains("<mark>#1</mark>"));
}

#[test]
fn an_evaluation_cache_is_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let other = SmallCache { corpus: "held out", hidden_layers: vec![], ..SmallCache::default() }.write(directory.path(), "evaluation");
    let config = config(&cache, Path::new("out"), &["--eval-cache", &other.display().to_string()]);
    let found = evaluate(&config, &crate::initial_student(&config).unwrap()).unwrap().unwrap();
    let masked: u64 = Cache::open(&other).unwrap().manifest().shards.iter().map(|shard| shard.masked).sum();
    assert_eq!((found.sequences, found.count()), (100, (masked, "masked positions")));
}

#[test]
fn a_step_too_short_for_the_caches_sequences_is_refused_before_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let mut manifest = Cache::open(&cache).unwrap().manifest().clone();
    manifest.settings.insert("max-length".into(), 300.into());
    manifest.write(&cache).unwrap();
    let plan = |accumulate: &str| super::plan(&config(&cache, Path::new("out"), &["--accumulate", accumulate, "--eval-fraction", "0"]));
    let error = plan("2").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("at least 300 tokens") && error.to_string().contains("found 256"), "{error}");
    assert!(plan("3").is_ok());
}

#[test]
fn a_step_that_is_not_finite_is_skipped_as_often_as_allowed_and_then_named() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let config = config(&cache, &directory.path().join("out"), &["--steps", "5", "--eval-fraction", "0", "--skip-nonfinite", "1"]);
    let (student, plan) = (crate::initial_student(&config).unwrap(), plan(&config).unwrap());
    std::fs::create_dir_all(&config.out).unwrap();
    let (mut log, checkpoints, progress) = (MetricsLog::create(&config.out).unwrap(), Checkpoints::new(&config), Progress::new(true));
    let hidden = crate::hidden_objective(&config).unwrap();
    let start = Start { state: RunState::default(), hidden, moments: crate::optim::Moments::zeros(student.parameters()) };
    let mut run = Run::new(&config, &student, &plan, start, (&mut log, &checkpoints), &progress).unwrap();
    let steps: Vec<Step> = steps::EpochSteps::new(&config, 0).unwrap().map(|step| step.unwrap().0).collect();
    let values = || student.parameters().iter().map(|each| each.with_value(|values: &[f32]| values.to_vec()).unwrap()).collect::<Vec<_>>();
    let poison = || student.parameters()[3].with_gradient(|gradient: &mut [f32]| gradient[0] = f32::NAN).unwrap();
    run.step(&steps[0], 0.0).unwrap();
    let before = values();
    poison();
    run.step(&steps[1], 0.0).unwrap();
    assert_eq!((run.state.step, run.state.skipped_steps, run.state.sums.steps, run.engine.moments().step), (2, 1, 1, 1));
    assert_eq!(values(), before, "nothing is updated");
    run.step(&steps[2], 0.0).unwrap();
    assert!(values() != before, "the gradient was cleared");
    run.save().unwrap();
    poison();
    let error = run.step(&steps[3], 0.0).unwrap_err().to_string();
    let first = format!("{} sequences: {} (pass 0)", steps[3].sequences(), steps[3].micro_batches[0].sequence_ids[0]);
    for part in ["step 4: expected a finite loss and gradient", "ce_nats", "gradient norm NaN", &first, "--skip-nonfinite", "step-00000003"]
    {
        assert!(error.contains(part), "no {part} in {error}");
    }
    let stored = checkpoints.newest().unwrap().unwrap();
    assert_eq!((stored.state().run.skipped_steps, stored.state().optimizer_steps), (1, 2), "a run that goes on counts on");
}

#[test]
fn a_run_that_diverges_stops_with_its_last_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let out = directory.path().join("out");
    let extra = ["--steps", "9", "--eval-fraction", "0", "--checkpoint-every", "1", "--learning-rate", "1e30", "--warmup", "0"];
    let error = crate::run(&config(&cache, &out, &extra), &StopSignal::default()).unwrap_err().to_string();
    assert!(error.contains("a finite loss and gradient") && error.contains("checkpoints/step-0000"), "{error}");
    assert!(!out.join("model.safetensors").exists());
}

#[test]
fn students_of_the_other_tasks_learn_and_load() {
    let sequence = |problem| SmallCache { problem, rows_per_shard: 60, ..SmallCache::of(Task::SequenceClassification) };
    let of = |task| SmallCache { rows_per_shard: 60, ..SmallCache::of(task) };
    let caches = [
        (sequence(Problem::SingleLabel), "ce_nats"),
        (sequence(Problem::MultiLabel), "ce_nats"),
        (sequence(Problem::Regression), "logit_mse"),
        (of(Task::TokenClassification), "ce_nats"),
        (of(Task::SentenceEmbedding), "embedding_cos_distance"),
        (SmallCache { embedding_size: 24, ..of(Task::SentenceEmbedding) }, "embedding_cos_distance"),
    ];
    for (cache, key) in caches {
        let directory = tempfile::tempdir().unwrap();
        let (task, cache) = (cache.task, cache.write(directory.path(), "cache"));
        let out = directory.path().join("student");
        let extra = ["--steps", "60", "--learning-rate", "1e-2", "--dropout", "0", "--eval-fraction", "0", "--log-every", "10"];
        let config = config(&cache, &out, &extra);
        crate::run(&config, &StopSignal::default()).unwrap();
        let log = std::fs::read_to_string(out.join(crate::metrics::METRICS_FILE)).unwrap();
        let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[key].as_f64();
        let values: Vec<f64> = log.lines().filter_map(value).collect();
        let (first, last) = (values[0], values[values.len() - 1]);
        assert!(last < 0.5 * first, "{task}: {key} goes from {first} to {last}");
        let loaded = crate::export::load(&out).unwrap();
        assert_eq!(loaded.config(), &config.student, "{task}");
        // Found finished, not trained again.
        assert!(crate::run(&config, &StopSignal::default()).unwrap().contains("nothing was trained"));
    }
}

#[test]
fn steps_after_any_step_are_the_same_with_and_without_a_position() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache { passes: 2, ..SmallCache::default() }.write(directory.path(), "cache");
    let config = config(&cache, Path::new("out"), &["--eval-fraction", "0.1", "--epochs", "2", "--accumulate", "2"]);
    let plan = plan(&config).unwrap();
    let all: Vec<_> = steps::prefetched_steps(&config, &plan, 0, None).map(|step| step.unwrap()).collect();
    assert_eq!(all.len() as u64, plan.steps);
    for (done, (_, position)) in (1..).zip(&all) {
        for position in [None, Some(position)] {
            let rest: Vec<_> = steps::prefetched_steps(&config, &plan, done as u64, position).map(|step| step.unwrap()).collect();
            assert!(rest == all[done..], "after step {done}");
        }
    }
}
