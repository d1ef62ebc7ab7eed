//! The loop: batches in, a better student out. The one place where the stages meet.

use crate::batcher::{Step, StepArithmetic, Steps, Targets};
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
use logitcache::cache::record::IGNORED_LABEL;
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
/// [`Error::Usage`] where nothing is left to train or to measure on, or a step may be too short for a sequence; a shard that cannot be read.
pub fn plan(config: &Config) -> Result<StepArithmetic> {
    check_longest(config)?;
    let shards = &config.cache.manifest().shards;
    let mut rows: u64 = shards.iter().map(|shard| shard.logits.rows).sum();
    let mut tokens: u64 = shards.iter().map(|shard| shard.tokens).sum();
    if let EvaluationSource::HeldOut(share) = config.evaluation {
        let mut masked = 0;
        for row in RowStream::new(&config.cache, &[], Selection::HeldOut(share), Order::Stored)? {
            let row = row?;
            (rows, tokens) = (rows - 1, tokens - row.input_ids.len() as u64);
            masked += row.labels.iter().filter(|label| **label != IGNORED_LABEL).count();
        }
        if masked == 0 || rows == 0 {
            let found = format!("{share}, which leaves {masked} masked positions held out and {rows} rows to train on");
            let remedy = "hold out another share, or 0 to measure nothing";
            return Err(Error::usage("--eval-fraction", "a share that leaves something to train and to measure on", found, remedy));
        }
    }
    if rows == 0 {
        return Err(Error::data(
            config.cache.directory(),
            "rows",
            "at least 1",
            "an empty cache",
            "give precompute a corpus with documents",
        ));
    }
    Ok(StepArithmetic::new(rows, tokens, config.batch_tokens * config.accumulate, config.duration))
}

/// A step must take the longest sequence. Where the cache says how long that may be, this is known before the first step.
fn check_longest(config: &Config) -> Result<()> {
    let longest = config.cache.manifest().settings.get("max-length").and_then(serde_json::Value::as_u64);
    let tokens = config.batch_tokens * config.accumulate;
    let Some(longest) = longest.filter(|longest| *longest > tokens) else { return Ok(()) };
    let expected = format!("steps of at least {longest} tokens, the cache's --max-length");
    Err(Error::usage("--batch-tokens", expected, format!("{tokens} tokens a step"), format!("use --batch-tokens {longest} or more")))
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
        if completed.is_multiple_of(config.log_every) || is_last || stop.arrived().is_some() {
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
fn accumulate_gradients(student: &Student, step: &Step, temperature: f32, weights: &LossWeights, dropout: &DropoutPlan) -> Result<Passes> {
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
mod tests;
