//! The data of a run as optimiser steps: how many there are, and all of them from any one on.

use crate::batcher::{Step, StepArithmetic, Steps};
use crate::config::{Config, EvaluationSource};
use crate::loss::hidden_map::teacher_states;
use crate::stream::{Order, Prefetch, RowStream, Selection};
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::error::{Error, Result};
use logitcache::target::Task;

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
        for row in RowStream::new(&config.cache, &[], Selection::HeldOut(share), Order::Stored)? {
            let row = row?;
            (rows, tokens) = (rows - 1, tokens - row.input_ids.len() as u64);
            held_out += 1;
            masked += row.labels.iter().filter(|label| **label != IGNORED_LABEL).count();
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

/// A step must take the longest sequence. Where the cache says how long that may be, this is known before the first step.
fn check_longest(config: &Config) -> Result<()> {
    let longest = config.cache.manifest().settings.get("max-length").and_then(serde_json::Value::as_u64);
    let tokens = config.batch_tokens * config.accumulate;
    let Some(longest) = longest.filter(|longest| *longest > tokens) else { return Ok(()) };
    let expected = format!("steps of at least {longest} tokens, the cache's --max-length");
    Err(Error::usage("--batch-tokens", expected, format!("{tokens} tokens a step"), format!("use --batch-tokens {longest} or more")))
}

/// The rows of one epoch as steps, in the run's order.
pub(super) fn epoch_steps(config: &Config, epoch: u64) -> Result<Steps<RowStream>> {
    let selection = match config.evaluation {
        EvaluationSource::HeldOut(share) => Selection::NotHeldOut(share),
        _ => Selection::All,
    };
    let order = Order::Shuffled { seed: config.seed, epoch };
    let rows = RowStream::new(&config.cache, &teacher_states(&config.hidden_pairs), selection, order)?;
    Ok(Steps::new(rows, config.targets, config.batch_tokens, config.accumulate))
}

/// The steps of the run after the first `done`, read and packed on a thread of their own. Those of the epoch begun are read again and dropped,
/// since the order of its rows is made by reading them.
pub(super) fn prefetched_steps(config: &Config, plan: &StepArithmetic, done: u64) -> Prefetch<Result<Step>> {
    let config = config.clone();
    let (first_epoch, in_epoch) = (done / plan.steps_per_epoch.max(1), done % plan.steps_per_epoch.max(1));
    let steps = (first_epoch..).flat_map(move |epoch| -> Box<dyn Iterator<Item = Result<Step>> + Send> {
        let skipped = if epoch == first_epoch { in_epoch } else { 0 };
        match epoch_steps_after(&config, epoch, skipped) {
            Ok(steps) => Box::new(steps),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    });
    Prefetch::new(steps.take((plan.steps - done) as usize))
}

fn epoch_steps_after(config: &Config, epoch: u64, skipped: u64) -> Result<Steps<RowStream>> {
    let mut steps = epoch_steps(config, epoch)?;
    for _ in 0..skipped {
        // An error among the dropped is an error of the run.
        if steps.next().transpose()?.is_none() {
            break;
        }
    }
    Ok(steps)
}
