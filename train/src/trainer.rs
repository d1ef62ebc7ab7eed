//! The loop: batches in, a better student out. The one place where the stages meet.

mod engine;
mod nonfinite;
mod state;
mod steps;

pub use state::{RunState, Start, trainable};
pub use steps::{DataPosition, plan};

use crate::batcher::{Step, StepArithmetic};
use crate::checkpoint::{Checkpoints, Snapshot};
use crate::composed::Composed;
use crate::config::{Config, EvaluationSource};
use crate::device::Placement;
use crate::evaluate::pass::for_each_batch;
use crate::evaluate::{Evaluation, FullEvaluation, FullTally, NO_TOKENS, Subject, Tally, tokens};
use crate::loss::{PartValues, StepObjective};
use crate::metrics::{EvaluationMetrics, Line, MetricsLog, StepMetrics};
use crate::optim::Schedule;
use crate::progress::Progress;
use crate::stream::Selection;
use crate::student::{Answers, HiddenObjective, Student};
use engine::{Engine, Passes};
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use nonfinite::{NonFinite, explain_evaluation};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

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

fn held_out(config: &Config) -> Option<(&Cache, Selection)> {
    match &config.evaluation {
        EvaluationSource::Nothing => None,
        EvaluationSource::HeldOut(share) => Some((&config.cache, Selection::HeldOut(*share))),
        EvaluationSource::Cache(cache) => Some((cache, Selection::All)),
    }
}

/// Measures the student on what is held out in every way there is, where it was trained; nothing where nothing is.
///
/// # Errors
/// See [`evaluate`].
pub fn evaluate_fully(config: &Config, student: &Student, progress: &Progress) -> Result<Option<FullEvaluation>> {
    let Some((cache, selection)) = held_out(config) else { return Ok(None) };
    let tokens = tokens(cache)?;
    if tokens.is_empty() {
        progress.say(NO_TOKENS);
    }
    let composed;
    let student: &dyn Answers = match &config.placement {
        Placement::Kernels => student,
        Placement::Composed { device, .. } => {
            let hidden = HiddenObjective::last(config.student.num_hidden_layers);
            composed = Composed::new(student, &hidden, device, config.precision).map_err(failed("--device"))?;
            &composed
        }
    };
    let mut tally = FullTally::new(Subject::new(cache.spec(), &config.student.class_names));
    for_each_batch(cache, selection, student, |batch, logits| tally.add(batch, logits))?;
    Ok(tally.finish(&tokens))
}

/// Measures the student on what is held out; nothing where nothing is.
///
/// # Errors
/// A shard that cannot be read, or a student whose logits are not finite.
pub fn evaluate(config: &Config, student: &dyn Answers) -> Result<Option<Evaluation>> {
    let Some((cache, selection)) = held_out(config) else { return Ok(None) };
    let mut tally = Tally::new(&Subject::new(cache.spec(), &config.student.class_names));
    for_each_batch(cache, selection, student, |batch, logits| tally.add(batch, logits))?;
    Ok(tally.finish())
}

/// Trains `student` from `start` to the last step of `plan`, or until a signal arrives; the step that runs then is finished. Either way the
/// end is a checkpoint.
///
/// # Errors
/// A shard that cannot be read, more steps than allowed whose loss or gradient is not finite, a log or checkpoint that cannot be written.
pub fn train(
    config: &Config,
    student: &Student,
    plan: &StepArithmetic,
    start: Start,
    (log, checkpoints): (&mut MetricsLog, &Checkpoints),
    progress: &Progress,
    stop: &StopSignal,
) -> Result<Outcome> {
    let mut run = Run::new(config, student, plan, start, (log, checkpoints), progress)?;
    // The first rows are read while the student is first measured.
    let mut steps = steps::prefetched_steps(config, plan, run.state.step, run.state.position.as_ref());
    if !run.state.begun {
        run.evaluate()?;
        (run.state.begun, run.state.first_evaluation) = (true, run.state.evaluation);
    }
    progress.advance(run.state.step);
    let mut signal = None;
    while run.state.step < plan.steps {
        signal = stop.arrived();
        if signal.is_some() {
            break;
        }
        let asked_at = Instant::now();
        let Some(step) = steps.next() else {
            let found = format!("the end of the data after step {}", run.state.step);
            return Err(Error::invalid("rows", format!("enough for {} steps", plan.steps), found));
        };
        let ((step, next), data_wait_ms) = (step?, milliseconds(asked_at));
        // On one of the pool's own threads: each of the many parallel passes of a step would be handed over to the pool and waited for otherwise.
        rayon::scope(|_| run.step(&step, data_wait_ms))?;
        run.state.position = Some(next);
        let completed = run.state.step;
        let is_last = completed == plan.steps;
        progress.advance(completed);
        if is_last || completed.is_multiple_of(config.log_every) {
            run.log_steps()?;
        }
        if is_last || completed.is_multiple_of(config.eval_every.unwrap_or(plan.steps_per_epoch)) {
            run.evaluate()?;
        }
        if completed.is_multiple_of(config.checkpoint_every.unwrap_or(plan.steps_per_epoch)) {
            run.save()?;
        }
    }
    run.save()?;
    let state = run.state;
    Ok(Outcome {
        completed_steps: state.step,
        signal,
        first_evaluation: state.first_evaluation,
        evaluation: state.evaluation,
        seconds: state.seconds,
        tokens_per_second: state.tokens as f64 * 1000.0 / state.milliseconds.max(1e-9),
    })
}

/// What the steps of a run share.
struct Run<'a> {
    config: &'a Config,
    student: &'a Student,
    engine: Engine<'a>,
    plan: &'a StepArithmetic,
    log: &'a mut MetricsLog,
    checkpoints: &'a Checkpoints,
    progress: &'a Progress,
    schedule: Schedule,
    state: RunState,
    seconds_before: f64,
    started: Instant,
}

impl<'a> Run<'a> {
    fn new(
        config: &'a Config,
        student: &'a Student,
        plan: &'a StepArithmetic,
        start: Start,
        (log, checkpoints): (&'a mut MetricsLog, &'a Checkpoints),
        progress: &'a Progress,
    ) -> Result<Self> {
        let Start { state, hidden, moments } = start;
        let engine = Engine::new(config, student, hidden, moments)?;
        let schedule = Schedule::new(config.learning_rate, Schedule::warmup_steps(config.warmup, plan.steps)?, plan.steps)?;
        let (seconds_before, started) = (state.seconds, Instant::now());
        Ok(Self { config, student, engine, plan, log, checkpoints, progress, schedule, state, seconds_before, started })
    }

    fn epoch(&self) -> f64 {
        self.state.step as f64 / self.plan.steps_per_epoch.max(1) as f64
    }

    fn elapsed_seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// One optimiser step.
    fn step(&mut self, step: &Step, data_wait_ms: f64) -> Result<()> {
        let number = self.state.step;
        let dropout = self.student.dropout_plan(self.config.seed, number);
        let temperature = f64::from(self.config.temperature);
        let objective = StepObjective::new(&self.config.objective, (number, self.plan.steps), temperature, step.normalisers());
        // The last step of each turn is the exact one.
        let objective = objective.with_few_ids(!(number + 1).is_multiple_of(self.config.full_vocabulary_every));
        let passes = self.engine.gradients(step, &objective, &dropout)?;
        let update_at = Instant::now();
        let clipped = self.engine.measure(self.config.clip)?;
        if !passes.parts.total.is_finite() || !clipped.norm.is_finite() {
            return self.skip(step, &objective, &passes, clipped.norm);
        }
        let learning_rate = self.schedule.learning_rate(number);
        self.engine.update(learning_rate, clipped.scale)?;
        let tokens = step.normalisers().tokens as u64;
        let metrics = StepMetrics {
            loss: passes.parts.total,
            parts: PartValues::new(&objective.weights, &passes.parts),
            learning_rate,
            gradient_norm: clipped.norm,
            data_wait_ms,
            forward_ms: passes.forward_ms,
            backward_ms: passes.backward_ms,
            update_ms: milliseconds(update_at),
            ..StepMetrics::default()
        };
        self.state.tokens += tokens;
        self.state.milliseconds += data_wait_ms + metrics.forward_ms + metrics.backward_ms + metrics.update_ms;
        self.state.sums.add(tokens, &metrics);
        self.state.step += 1;
        Ok(())
    }

    /// Passes over a step whose loss or gradient is not finite, while that is allowed: nothing is updated.
    fn skip(&mut self, step: &Step, objective: &StepObjective, passes: &Passes, gradient_norm: f64) -> Result<()> {
        let (number, micro_batch) = (self.state.step + 1, passes.first_nonfinite);
        let described = NonFinite { number, step, weights: objective.weights, parts: passes.parts, gradient_norm, micro_batch };
        if self.state.skipped_steps >= self.config.skip_nonfinite {
            let last = self.checkpoints.list()?.pop().map(|(_, path)| path);
            return Err(described.refuse(self.state.skipped_steps, self.config.cache.directory(), last.as_deref()));
        }
        self.engine.forget();
        self.state.step += 1;
        self.state.skipped_steps += 1;
        let (skipped, allowed) = (self.state.skipped_steps, self.config.skip_nonfinite);
        self.progress.say(&format!("step {number} is skipped ({skipped} of at most {allowed}): {}", described.describe()));
        Ok(())
    }

    /// The line of the steps since the one before; none where all of them were skipped.
    fn log_steps(&mut self) -> Result<()> {
        if self.state.sums.steps == 0 {
            return Ok(());
        }
        let (epoch, elapsed) = (self.epoch(), self.elapsed_seconds());
        let line = StepMetrics { skipped_steps: self.state.skipped_steps, ..self.state.sums.take(self.state.step, epoch, elapsed) };
        self.progress.step(&line);
        self.log.write(Line::Step(line))
    }

    fn evaluate(&mut self) -> Result<()> {
        let began = Instant::now();
        let step = self.state.step;
        let evaluated = evaluate(self.config, self.engine.student()).map_err(|error| {
            let last = self.checkpoints.list().ok().and_then(|mut all| all.pop()).map(|(_, path)| path);
            explain_evaluation(error, step, self.config.cache.directory(), last.as_deref())
        });
        let Some(evaluation) = evaluated? else { return Ok(()) };
        let line = EvaluationMetrics {
            step: self.state.step,
            epoch: self.epoch(),
            evaluation,
            evaluation_seconds: began.elapsed().as_secs_f64(),
            elapsed_seconds: self.elapsed_seconds(),
        };
        self.progress.evaluation(&line);
        self.log.write(Line::Evaluation(line))?;
        (self.state.evaluation, self.state.evaluated_step) = (Some(evaluation), self.state.step);
        Ok(())
    }

    /// A checkpoint of this moment.
    fn save(&mut self) -> Result<()> {
        self.state.seconds = self.elapsed_seconds();
        self.engine.bring_back()?;
        let snapshot = Snapshot {
            student: self.student,
            trainable: self.engine.trainable(),
            moments: self.engine.moments(),
            run: &self.state,
            steps_per_epoch: self.plan.steps_per_epoch,
            metrics_bytes: self.log.sync()?,
        };
        self.checkpoints.save(&snapshot).map(|_| ())
    }
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
