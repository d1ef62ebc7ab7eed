//! The data of a run as optimiser steps: how many there are, and all of them from any one on.

use crate::batcher::{Step, StepArithmetic, Steps};
use crate::config::{Config, EvaluationSource};
use crate::loss::hidden_map::teacher_states;
use crate::stream::{Order, Prefetch, RowStream, Selection, StreamPosition};
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Threads of the kernels that one reader keeps supplied, with room to spare: on two threads a step waits for data under 1 % of its time.
const THREADS_A_READER: usize = 8;
/// Readers beside a GPU at most; each holds three row groups.
const MOST_READERS: usize = 16;

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
        let (mut masked, mut held_out) = (0, 0);
        for counted in held_out_counts(config, share) {
            let (counted_rows, counted_tokens, labelled) = counted?;
            (rows, tokens) = match (rows.checked_sub(counted_rows), tokens.checked_sub(counted_tokens)) {
                (Some(rows), Some(tokens)) => (rows, tokens),
                _ => {
                    let found = format!("{rows} rows and {tokens} tokens, of which {counted_rows} and {counted_tokens} would be held out");
                    let remedy = "let precompute write the cache again, or restore its manifest.json from a copy";
                    return Err(Error::data(config.cache.directory(), "manifest", "the rows and tokens of its shards", found, remedy));
                }
            };
            held_out += counted_rows;
            masked += labelled;
        }
        // A masked language model is measured where its input was masked, the others wherever there is an answer.
        let (measured, what) = match config.cache.spec().task() {
            Task::MaskedLm => (masked, "masked positions"),
            _ => (held_out, "sequences"),
        };
        if measured == 0 || rows == 0 {
            let found = format!("{share}, which leaves {measured} {what} held out and {rows} rows to train on");
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

/// Rows, tokens and gold answers that are held out, of each shard.
fn held_out_counts(config: &Config, share: f64) -> Vec<Result<(u64, u64, u64)>> {
    let of_shard = |shard| {
        let held_out = config.cache.row_counts(shard)?.into_iter().filter(|row| Selection::HeldOut(share).holds(row.document_id));
        Ok(held_out.fold((0, 0, 0), |(rows, tokens, labelled), row| (rows + 1, tokens + row.tokens as u64, labelled + row.labelled as u64)))
    };
    (0..config.cache.shards()).into_par_iter().map(of_shard).collect()
}

/// Threads that read the cache ahead of the steps. The kernels need the processors; a GPU leaves them idle and takes rows faster than one thread reads.
fn readers(config: &Config) -> usize {
    match config.placement.is_kernels() {
        true => config.threads / THREADS_A_READER,
        false => config.threads.min(MOST_READERS),
    }
}

/// A step must take the longest sequence. Where the cache says how long that may be, this is known before the first step.
fn check_longest(config: &Config) -> Result<()> {
    let longest = config.cache.manifest().settings.get("max-length").and_then(serde_json::Value::as_u64);
    let tokens = config.batch_tokens * config.accumulate;
    let Some(longest) = longest.filter(|longest| *longest > tokens) else { return Ok(()) };
    let expected = format!("steps of at least {longest} tokens, the cache's --max-length");
    Err(Error::usage("--batch-tokens", expected, format!("{tokens} tokens a step"), format!("use --batch-tokens {longest} or more")))
}

/// Where the next step of an epoch begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Tokens of its steps so far.
    pub tokens: u64,
    /// Its rows.
    pub rows: StreamPosition,
}

/// A step, and where the one after it begins.
pub(super) type PlacedStep = (Step, DataPosition);

/// The steps of one epoch, in the run's order.
pub(super) struct EpochSteps {
    epoch: u64,
    steps: Steps<RowStream>,
}

impl EpochSteps {
    /// All of them.
    pub(super) fn new(config: &Config, epoch: u64) -> Result<Self> {
        Self::from_position(config, &DataPosition { epoch, ..DataPosition::default() })
    }

    /// Those from `position` on.
    pub(super) fn from_position(config: &Config, position: &DataPosition) -> Result<Self> {
        let selection = match config.evaluation {
            EvaluationSource::HeldOut(share) => Selection::NotHeldOut(share),
            _ => Selection::All,
        };
        let order = Order::Shuffled { seed: config.seed, epoch: position.epoch };
        let layers = teacher_states(&config.hidden_pairs);
        let rows = RowStream::after(&config.cache, &layers, selection, order, &position.rows)?.read_ahead(readers(config));
        let steps = Steps::after(position.tokens, rows, config.targets, config.batch_tokens, config.accumulate);
        Ok(Self { epoch: position.epoch, steps })
    }

    /// Those after the first `skipped`, by reading all before them: a checkpoint of an earlier version does not say where its next step begins.
    fn after(config: &Config, epoch: u64, skipped: u64) -> Result<Self> {
        let mut steps = Self::new(config, epoch)?;
        for _ in 0..skipped {
            // An error among the dropped is an error of the run.
            if steps.next().transpose()?.is_none() {
                break;
            }
        }
        Ok(steps)
    }
}

impl Iterator for EpochSteps {
    type Item = Result<PlacedStep>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.steps.next()?;
        let (rows, waits) = self.steps.rows();
        let position = DataPosition { epoch: self.epoch, tokens: self.steps.tokens_taken(), rows: rows.position(waits) };
        Some(step.map(|step| (step, position)))
    }
}

/// The steps of the run after the first `done`, read and packed on a thread of their own; `position` is where the first of them begins, where
/// that is known.
pub(super) fn prefetched_steps(
    config: &Config,
    plan: &StepArithmetic,
    done: u64,
    position: Option<&DataPosition>,
) -> Prefetch<Result<PlacedStep>> {
    let config = config.clone();
    let (first_epoch, in_epoch) = (done / plan.steps_per_epoch.max(1), done % plan.steps_per_epoch.max(1));
    let position = position.filter(|position| position.epoch == first_epoch && in_epoch > 0).cloned();
    let steps = (first_epoch..).flat_map(move |epoch| -> Box<dyn Iterator<Item = Result<PlacedStep>> + Send> {
        let steps = match &position {
            Some(position) if epoch == first_epoch => EpochSteps::from_position(&config, position),
            _ => EpochSteps::after(&config, epoch, if epoch == first_epoch { in_epoch } else { 0 }),
        };
        match steps {
            Ok(steps) => Box::new(steps),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    });
    Prefetch::new(steps.take((plan.steps - done) as usize))
}
