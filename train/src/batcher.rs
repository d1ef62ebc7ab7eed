//! Packed batches: the rows of several sequences laid end to end, without padding. Pure.
//!
//! Where steps end is a matter of arithmetic alone. Number the tokens of an epoch in training order and cut them into windows of
//! `batch_tokens`; a sequence belongs to the window that holds its LAST token, so it is never split, and a window takes `batch_tokens`
//! tokens on average. A micro-batch is a window, an optimiser step is `accumulate` windows, and an epoch has exactly
//! ceil(tokens / (batch_tokens * accumulate)) steps in whatever order its rows come, as long as no sequence is longer than a step. The
//! last step of an epoch holds what is left.

mod batch;

pub use batch::{Batch, Targets};

use crate::loss::Normalisers;
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use std::fmt;

/// The micro-batches of one optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// In training order; none is empty.
    pub micro_batches: Vec<Batch>,
}

impl Step {
    /// Rows of the cache taken by this step.
    pub fn sequences(&self) -> usize {
        self.micro_batches.iter().map(|batch| batch.sequence_ids.len()).sum()
    }

    /// What the loss of each micro-batch is divided by: counts of the WHOLE step, so that the way it was split leaves no trace.
    pub fn normalisers(&self) -> Normalisers {
        let sum = |count: fn(&Batch) -> usize| self.micro_batches.iter().map(count).sum();
        Normalisers {
            asked: sum(|batch| batch.asked.len()),
            labelled: sum(Batch::labelled),
            tokens: sum(Batch::tokens),
            sequences: sum(|batch| batch.sequence_ids.len()),
        }
    }
}

/// Groups the rows of one epoch into steps.
pub struct Steps<I> {
    rows: I,
    targets: Targets,
    batch_tokens: u64,
    accumulate: u64,
    tokens_taken: u64,
    waiting: Option<Record>,
}

impl<I: Iterator<Item = Result<Record>>> Steps<I> {
    /// Steps of `accumulate` micro-batches of `batch_tokens` tokens, as the module's heading says.
    pub fn new(rows: I, targets: Targets, batch_tokens: u64, accumulate: u64) -> Self {
        Self { rows, targets, batch_tokens, accumulate, tokens_taken: 0, waiting: None }
    }

    /// Steps of the rows that come after `tokens` tokens of the epoch, the first of which begins a step.
    pub fn after(tokens: u64, rows: I, targets: Targets, batch_tokens: u64, accumulate: u64) -> Self {
        Self { tokens_taken: tokens, ..Self::new(rows, targets, batch_tokens, accumulate) }
    }

    /// Tokens of the epoch in the steps given so far.
    pub fn tokens_taken(&self) -> u64 {
        self.tokens_taken
    }

    /// The rows, and whether the last of them has been taken and belongs to the next step.
    pub fn rows(&self) -> (&I, bool) {
        (&self.rows, self.waiting.is_some())
    }

    fn next_step(&mut self) -> Result<Option<Step>> {
        let mut step = Step::default();
        let (mut step_number, mut window) = (None, None);
        while let Some(record) = self.waiting.take().map(Ok).or_else(|| self.rows.next()).transpose()? {
            let length = record.input_ids.len() as u64;
            let row_window = (self.tokens_taken + length - 1) / self.batch_tokens;
            let row_step = row_window / self.accumulate;
            if step_number.is_some_and(|number| number != row_step) {
                self.waiting = Some(record);
                break;
            }
            self.check_length(&record)?;
            step_number = Some(row_step);
            if window != Some(row_window) {
                window = Some(row_window);
                step.micro_batches.push(Batch::empty(self.targets.k()));
            }
            let batch = step.micro_batches.last_mut().expect("a batch was pushed for this window");
            batch.push(&record, &self.targets);
            self.tokens_taken += length;
        }
        Ok(step_number.map(|_| step))
    }

    /// A longer sequence could leave a step without any, and the count of steps would no longer hold.
    fn check_length(&self, record: &Record) -> Result<()> {
        let (length, limit) = (record.input_ids.len() as u64, self.batch_tokens * self.accumulate);
        if length <= limit {
            return Ok(());
        }
        let expected = format!("steps of at least {length} tokens, the length of sequence {}", record.sequence_id);
        Err(Error::usage("--batch-tokens", expected, format!("{limit} tokens a step"), format!("use --batch-tokens {length} or more")))
    }
}

impl<I: Iterator<Item = Result<Record>>> Iterator for Steps<I> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_step().transpose()
    }
}

/// How much work a run is, derived once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StepArithmetic {
    /// Rows of an epoch: sequences times passes, without those held out.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Tokens of an optimiser step, on average.
    pub tokens_per_step: u64,
    /// Exact.
    pub steps_per_epoch: u64,
    /// Steps of the run, exact: the end of the learning-rate schedule.
    pub steps: u64,
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// So many times over every row.
    Epochs(u64),
    /// So many optimiser steps; the last epoch may end early.
    Steps(u64),
}

impl StepArithmetic {
    /// The arithmetic of `rows` rows with `tokens` tokens in all.
    pub fn new(rows: u64, tokens: u64, tokens_per_step: u64, duration: Duration) -> Self {
        let steps_per_epoch = tokens.div_ceil(tokens_per_step);
        let steps = match duration {
            Duration::Epochs(epochs) => epochs.saturating_mul(steps_per_epoch),
            Duration::Steps(steps) => steps,
        };
        Self { rows, tokens, tokens_per_step, steps_per_epoch, steps }
    }
}

impl fmt::Display for StepArithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, tokens, tokens_per_step, steps_per_epoch, steps } = self;
        let epochs = *steps as f64 / (*steps_per_epoch).max(1) as f64;
        write!(f, "{rows} rows of {tokens} tokens / {tokens_per_step} tokens a step = {steps_per_epoch} steps an epoch; ")?;
        write!(f, "{steps} steps = {epochs:.2} epochs")
    }
}

#[cfg(test)]
mod tests;
