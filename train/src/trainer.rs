//! The loop: batches in, a better student out. The one place where the stages meet.

use crate::batcher::{Batch, Step, StepArithmetic, Steps, Targets};
use crate::config::{Config, EvaluationSource};
use crate::evaluate::{Evaluation, Tally};
use crate::kernels::DropoutPlan;
use crate::loss::{LossParts, LossWeights};
use crate::metrics::{EvaluationMetrics, Line, MetricsLog, StepMetrics, StepSums};
use crate::optim::{AdamW, AdamWSettings, Moments, Schedule, measure};
use crate::progress::Progress;
use crate::stream::{Order, Prefetch, RowStream, Selection};
use crate::student::Student;
use candle_core::DType;
use logitcache::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Tokens of a batch in an evaluation.
const EVALUATION_TOKENS: u64 = 2048;

/// Batches that are read at once in an evaluation; together they take the longest sequence that a record can hold.
const EVALUATION_BATCHES: u64 = 32;

/// Where a signal's number is left for the loop to find; 0 for none.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<AtomicUsize>);

impl StopSignal {
    /// The number's place, for a signal handler to write to.
    pub fn place(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }

    /// The signal that has arrived.
    pub fn arrived(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Optimiser steps made.
    pub completed_steps: u64,
    /// The signal that ended it early.
    pub signal: Option<i32>,
    /// Of the student before the first step.
    pub first_evaluation: Option<Evaluation>,
    /// Of the student after the last step; after a signal, the last one made.
    pub evaluation: Option<Evaluation>,
    /// From the first evaluation to the last.
    pub seconds: f64,
    /// Training tokens over the time spent in steps.
    pub tokens_per_second: f64,
}

/// Rows, tokens and steps of the run, exact. Where sequences are held out, the cache is read once to count them.
///
/// # Errors
/// [`Error::Usage`] where nothing is left to train or to measure on; a shard that cannot be read.
pub fn plan(config: &Config) -> Result<StepArithmetic> {
    let shards = &config.cache.manifest().shards;
    let mut rows: u64 = shards.iter().map(|shard| shard.logits.rows).sum();
    let mut tokens: u64 = shards.iter().map(|shard| shard.tokens).sum();
    if let EvaluationSource::HeldOut(share) = config.evaluation {
        let mut masked = 0;
        for row in RowStream::new(&config.cache, &[], Selection::HeldOut(share), Order::Stored)? {
            let mut batch = Batch::empty(config.cache.spec().top_k());
            let row = row?;
            batch.push(&row, &config.targets);
            (rows, tokens, masked) = (rows - 1, tokens - row.input_ids.len() as u64, masked + batch.masked());
        }
        if masked == 0 || rows == 0 {
            let found = format!("{share}, which leaves {masked} masked positions held out and {rows} rows to train on");
            let remedy = "hold out another share, or 0 to measure nothing";
            return Err(Error::usage("--eval-fraction", "a share that leaves something to train and to measure on", found, remedy));
        }
    }
    if rows == 0 {
        return Err(Error::data(config.cache.directory(), "rows", "at least 1", "an empty cache", "give precompute a corpus with documents"));
    }
    Ok(StepArithmetic::new(rows, tokens, config.batch_tokens * config.accumulate, config.duration))
}

/// The rows of one epoch as steps, in the run's order.
fn epoch_steps(config: &Config, epoch: u64) -> Result<Steps<RowStream>> {
    let selection = match config.evaluation {
        EvaluationSource::HeldOut(share) => Selection::NotHeldOut(share),
        _ => Selection::All,
    };
    let order = Order::Shuffled { seed: config.seed, epoch };
    let rows = RowStream::new(&config.cache, &config.hidden_layers, selection, order)?;
    Ok(Steps::new(rows, config.targets, config.batch_tokens, config.accumulate))
}

/// All steps of the run, read and packed on a thread of their own.
fn prefetched_steps(config: &Config, total: u64) -> Prefetch<Result<Step>> {
    let config = config.clone();
    let steps = (0..).flat_map(move |epoch| -> Box<dyn Iterator<Item = Result<Step>> + Send> {
        match epoch_steps(&config, epoch) {
            Ok(steps) => Box::new(steps),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    });
    Prefetch::new(steps.take(total as usize))
}

/// Measures the student on what is held out; nothing where nothing is.
///
/// # Errors
/// A shard that cannot be read, or a student whose logits are not finite.
pub fn evaluate(config: &Config, student: &Student) -> Result<Option<Evaluation>> {
    let (cache, selection) = match &config.evaluation {
        EvaluationSource::Nothing => return Ok(None),
        EvaluationSource::HeldOut(share) => (&config.cache, Selection::HeldOut(*share)),
        EvaluationSource::Cache(cache) => (cache, Selection::All),
    };
    let targets = Targets::new(cache.spec(), 1.0, true)?;
    let rows = RowStream::new(cache, &[], selection, Order::Stored)?;
    let mut tally = Tally::default();
    for step in Prefetch::new(Steps::new(rows, targets, EVALUATION_TOKENS, EVALUATION_BATCHES)) {
        for batch in step?.micro_batches {
            let mut logits = Vec::new();
            if !batch.asked.is_empty() {
                let computed = student.logits(&batch).and_then(|logits| logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
                logits = computed.map_err(failed("evaluation"))?;
            }
            tally.add(&batch, &logits)?;
        }
    }
    Ok(tally.finish())
}

/// Trains `student` for the steps of `plan`, or until a signal arrives; the step that runs then is finished.
///
/// # Errors
/// A shard that cannot be read, a loss or gradient that is not finite, a log that cannot be written.
pub fn train(
    config: &Config,
    student: &Student,
    plan: &StepArithmetic,
    log: &mut MetricsLog,
    progress: &Progress,
    stop: &StopSignal,
) -> Result<Outcome> {
    let mut run = Run::new(config, student, plan, log, progress)?;
    let first_evaluation = run.evaluate(0)?;
    let mut last = (0, first_evaluation);
    let mut steps = prefetched_steps(config, plan.steps);
    let mut completed = 0;
    while completed < plan.steps && stop.arrived().is_none() {
        let asked_at = Instant::now();
        let Some(step) = steps.next() else {
            let found = format!("the end of the data after step {completed}");
            return Err(Error::invalid("rows", format!("enough for {} steps", plan.steps), found));
        };
        run.step(&step?, completed, milliseconds(asked_at))?;
        completed += 1;
        progress.advance(completed);
        let is_last = completed == plan.steps;
        if completed.is_multiple_of(config.log_every) || is_last {
            run.log_steps(completed)?;
        }
        if is_last || completed.is_multiple_of(config.eval_every.unwrap_or(plan.steps_per_epoch)) {
            last = (completed, run.evaluate(completed)?);
        }
    }
    Ok(Outcome {
        completed_steps: completed,
        signal: if completed < plan.steps { stop.arrived() } else { None },
        first_evaluation,
        evaluation: last.1,
        seconds: run.started.elapsed().as_secs_f64(),
        tokens_per_second: run.tokens as f64 * 1000.0 / run.milliseconds.max(1e-9),
    })
}

/// What the steps of a run share.
struct Run<'a> {
    config: &'a Config,
    student: &'a Student,
    plan: &'a StepArithmetic,
    log: &'a mut MetricsLog,
    progress: &'a Progress,
    optimiser: AdamW,
    schedule: Schedule,
    sums: StepSums,
    started: Instant,
    tokens: u64,
    milliseconds: f64,
}

impl<'a> Run<'a> {
    fn new(
        config: &'a Config,
        student: &'a Student,
        plan: &'a StepArithmetic,
        log: &'a mut MetricsLog,
        progress: &'a Progress,
    ) -> Result<Self> {
        let settings = AdamWSettings { weight_decay: config.weight_decay, ..AdamWSettings::default() };
        let optimiser = AdamW::new(settings, Moments::zeros(student.parameters()), student.parameters())?;
        let schedule = Schedule::new(config.learning_rate, Schedule::warmup_steps(config.warmup, plan.steps)?, plan.steps)?;
        let (sums, started) = (StepSums::default(), Instant::now());
        Ok(Self { config, student, plan, log, progress, optimiser, schedule, sums, started, tokens: 0, milliseconds: 0.0 })
    }

    fn epoch(&self, completed: u64) -> f64 {
        completed as f64 / self.plan.steps_per_epoch.max(1) as f64
    }

    /// One optimiser step; `number` steps came before it.
    fn step(&mut self, step: &Step, number: u64, data_wait_ms: f64) -> Result<()> {
        let Config { seed, weights, temperature, .. } = *self.config;
        let dropout = self.student.dropout_plan(seed, number);
        let passes = accumulate_gradients(self.student, step, temperature, &weights, &dropout)?;
        let update_at = Instant::now();
        let clipped = measure(self.student.parameters(), self.config.clip).map_err(failed("gradient norm"))?;
        if !passes.parts.total.is_finite() || !clipped.norm.is_finite() {
            let found = format!("loss {} and gradient norm {} in step {}", passes.parts.total, clipped.norm, number + 1);
            return Err(Error::invalid("training", "finite numbers; lower --learning-rate", found));
        }
        let learning_rate = self.schedule.learning_rate(number);
        self.optimiser.update(self.student.parameters(), learning_rate, clipped.scale).map_err(failed("update"))?;
        let tokens = step.normalisers().tokens as u64;
        let metrics = StepMetrics {
            loss: passes.parts.total,
            ce_nats: passes.parts.ce,
            mlm_nats: passes.parts.mlm,
            cos_distance: passes.parts.cos,
            learning_rate,
            gradient_norm: clipped.norm,
            data_wait_ms,
            forward_ms: passes.forward_ms,
            backward_ms: passes.backward_ms,
            update_ms: milliseconds(update_at),
            ..StepMetrics::default()
        };
        self.tokens += tokens;
        self.milliseconds += data_wait_ms + metrics.forward_ms + metrics.backward_ms + metrics.update_ms;
        self.sums.add(tokens, &metrics);
        Ok(())
    }

    fn log_steps(&mut self, completed: u64) -> Result<()> {
        let line = self.sums.take(completed, self.epoch(completed), self.started.elapsed().as_secs_f64());
        self.progress.step(&line);
        self.log.write(Line::Step(line))
    }

    fn evaluate(&mut self, completed: u64) -> Result<Option<Evaluation>> {
        let began = Instant::now();
        let Some(evaluation) = evaluate(self.config, self.student)? else { return Ok(None) };
        let line = EvaluationMetrics {
            step: completed,
            epoch: self.epoch(completed),
            evaluation,
            evaluation_seconds: began.elapsed().as_secs_f64(),
            elapsed_seconds: self.started.elapsed().as_secs_f64(),
        };
        self.progress.evaluation(&line);
        self.log.write(Line::Evaluation(line))?;
        Ok(Some(evaluation))
    }
}

/// What the passes of a step gave and took.
struct Passes {
    parts: LossParts,
    forward_ms: f64,
    backward_ms: f64,
}

/// Forward and backward for each micro-batch. The gradients add up in the parameters; since every part is divided by the counts of the whole
/// step, the sum does not depend on how the step was split.
fn accumulate_gradients(
    student: &Student,
    step: &Step,
    temperature: f32,
    weights: &LossWeights,
    dropout: &DropoutPlan,
) -> Result<Passes> {
    let normalisers = step.normalisers();
    let mut passes = Passes { parts: LossParts::default(), forward_ms: 0.0, backward_ms: 0.0 };
    for batch in &step.micro_batches {
        let forward_at = Instant::now();
        let (loss, parts) = student.loss(batch, f64::from(temperature), weights, &normalisers, dropout).map_err(failed("forward pass"))?;
        passes.parts += parts;
        passes.forward_ms += milliseconds(forward_at);
        let backward_at = Instant::now();
        loss.backward().map_err(failed("backward pass"))?;
        passes.backward_ms += milliseconds(backward_at);
    }
    Ok(passes)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// For `map_err`: a computation that refused its inputs.
fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::invalid(what, "a result", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_cache::{SmallCache, arguments};
    use logitcache::cache::reader::Cache;
    use std::path::Path;

    fn config(cache: &Path, out: &Path, extra: &[&str]) -> Config {
        Config::check(&arguments(cache, out, extra)).unwrap()
    }

    fn gradients(config: &Config, step: &Step) -> (LossParts, Vec<(String, Vec<f32>)>) {
        let student = crate::initial_student(config).unwrap();
        let dropout = student.dropout_plan(config.seed, 0);
        let passes = accumulate_gradients(&student, step, config.temperature, &config.weights, &dropout).unwrap();
        let gradient = |values: &mut [f32]| values.to_vec();
        let all = student.parameters().iter().map(|each| (each.name().to_owned(), each.with_gradient(gradient).unwrap()));
        (passes.parts, all.collect())
    }

    #[test]
    fn splitting_a_step_does_not_change_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache::default().write(directory.path(), "cache");
        let first = |batch_tokens: &str, accumulate: &str| {
            let extra = ["--batch-tokens", batch_tokens, "--accumulate", accumulate, "--dropout", "0.2"];
            let config = config(&cache, Path::new("out"), &extra);
            let step = epoch_steps(&config, 0).unwrap().next().unwrap().unwrap();
            (step.micro_batches.len(), gradients(&config, &step))
        };
        let (one, (whole, whole_gradients)) = first("512", "1");
        let (eight, (split, split_gradients)) = first("64", "8");
        assert_eq!((one, eight), (1, 8));
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
        assert!(near(whole.ce, split.ce) && near(whole.mlm, split.mlm) && near(whole.cos, split.cos), "{whole:?} and {split:?}");
        for ((name, whole), (_, split)) in whole_gradients.iter().zip(&split_gradients) {
            let largest = whole.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let worst = whole.iter().zip(split).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
            // A key's bias shifts every score of a softmax alike: its gradient is zero but for rounding.
            assert!(largest > 0.0 && worst <= 2e-5 * largest.max(1e-3), "{name}: {worst} of {largest}");
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
                let steps: Vec<Step> = epoch_steps(&config, epoch).unwrap().map(|step| step.unwrap()).collect();
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
        assert!(last.student_teacher_top1 > first.student_teacher_top1 + 0.2, "{first:?}, then {last:?}");
        assert!(last.kl_nats < 0.5 * first.kl_nats, "{first:?}, then {last:?}");
        assert_eq!(last.teacher_gold_top1, 1.0, "this teacher knows");
        assert!(out.join("model.safetensors").is_file() && out.join("tokenizer.json").is_file() && out.join("curves.svg").is_file());
        let again = crate::run(&config, &StopSignal::default()).unwrap();
        assert!(again.contains("already holds the finished student") && again.contains(&table), "{again}");
        let other = super::tests::config(&cache, &out, &["--steps", "3"]);
        let error = crate::run(&other, &StopSignal::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--steps was 150, now 3"), "{error}");
    }

    #[test]
    fn a_signal_ends_the_run_with_the_student_so_far() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache::default().write(directory.path(), "cache");
        let out = directory.path().join("student");
        let config = config(&cache, &out, &["--steps", "2", "--eval-fraction", "0"]);
        let stop = StopSignal::default();
        stop.place().store(2, Ordering::Relaxed);
        let error = crate::run(&config, &stop).unwrap_err();
        assert_eq!(error.exit_code(), 130);
        assert!(error.to_string().contains("after step 0 of 2"), "{error}");
        assert!(out.join("model.safetensors").is_file());
        let table = crate::run(&config, &StopSignal::default()).unwrap();
        assert!(table.contains("nothing was held out"), "trained from the start, without evaluation: {table}");
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
    fn an_evaluation_cache_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache::default().write(directory.path(), "cache");
        let other = SmallCache { corpus: "held out", hidden_layers: vec![], ..SmallCache::default() }.write(directory.path(), "evaluation");
        let config = config(&cache, Path::new("out"), &["--eval-cache", &other.display().to_string()]);
        let found = evaluate(&config, &crate::initial_student(&config).unwrap()).unwrap().unwrap();
        let masked: u64 = Cache::open(&other).unwrap().manifest().shards.iter().map(|shard| shard.masked).sum();
        assert_eq!((found.sequences, found.masked_positions), (100, masked));
    }
}
