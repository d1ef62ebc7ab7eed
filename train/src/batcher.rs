//! Packed batches: the rows of several sequences laid end to end, without padding. Pure.
//!
//! Where steps end is a matter of arithmetic alone. Number the tokens of an epoch in training order and cut them into windows of
//! `batch_tokens`; a sequence belongs to the window that holds its LAST token, so it is never split, and a window takes `batch_tokens`
//! tokens on average. A micro-batch is a window, an optimiser step is `accumulate` windows, and an epoch has exactly
//! ceil(tokens / (batch_tokens * accumulate)) steps in whatever order its rows come, as long as no sequence is longer than a step. The
//! last step of an epoch holds what is left.

use crate::loss::Normalisers;
use logitcache::cache::record::{IGNORED_LABEL, Record};
use logitcache::error::{Error, Result};
use logitcache::target::TargetSpec;
use std::fmt;

/// One micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[sequence]`: ids of the sequences, in the order of their rows.
    pub sequence_ids: Vec<u64>,
    /// `[sequence]`: which masked copy each one is.
    pub passes: Vec<u16>,
    /// `[sequence + 1]`: sequence `i` owns the rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<usize>,
    /// `[token]`: input ids, as the teacher saw them.
    pub input_ids: Vec<u32>,
    /// `[token]`: token types, as the teacher saw them; empty where all are 0.
    pub token_type_ids: Vec<u32>,
    /// `[asked]`: the rows that carry targets, strictly ascending.
    pub asked: Vec<u32>,
    /// Stored ids per asked row.
    pub k: usize,
    /// `[asked, k]`: the teacher's most probable ids, descending.
    pub top_ids: Vec<u32>,
    /// `[asked, k]`: the teacher's log-probabilities of those ids at the training temperature.
    pub log_probabilities: Vec<f32>,
    /// `[asked]`: the teacher's largest logit, as it gave it.
    pub max_logit: Vec<f32>,
    /// `[asked]`: the original id where the row was masked, else -100.
    pub labels: Vec<i32>,
    /// The teacher's hidden states, `[token, hidden_size]` for each layer that was read, in that order; empty where no loss asks for any.
    pub hidden: Vec<Vec<f32>>,
}

/// What a batch takes from a record, and at which temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// Ids taken per position.
    k: usize,
    /// Ids stored per position.
    stored_k: usize,
    /// The temperature that divides the stored logits, over the one wanted.
    scale: f32,
    log_z_column: usize,
    log_z_columns: usize,
    masked_only: bool,
}

impl Targets {
    /// Targets at `temperature` for every asked position, or for the masked ones alone; of the stored ids the `top_k` most probable, or all.
    ///
    /// A cache that was written with this `top_k` would give the same numbers: ids are stored in descending order, and neither log Z nor the
    /// rounding of a logit depends on how many are stored. For the rows' order see
    /// `logitcache::cache::writer::GROUP_TOP_K`.
    ///
    /// # Errors
    /// [`Error::Usage`] where the cache holds no log Z at that temperature, saying which it holds, or fewer ids.
    pub fn new(spec: &TargetSpec, temperature: f32, masked_only: bool, top_k: Option<usize>) -> Result<Self> {
        let (stored_k, k) = (spec.top_k(), top_k.unwrap_or(spec.top_k()));
        if k == 0 || k > stored_k {
            let remedy = match k {
                0 => "leave it out to use all that are stored".to_owned(),
                _ => format!("ask for at most {stored_k}, or make the cache anew with precompute --top-k {k}"),
            };
            return Err(Error::usage(
                "--top-k",
                format!("1 to {stored_k} ids, which the cache stores per position"),
                k.to_string(),
                remedy,
            ));
        }
        let Some(log_z_column) = spec.temperature_index(temperature) else {
            let held = spec.temperatures().iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
            let possible = temperature.is_finite() && temperature > 0.0;
            let anew =
                if possible { format!(", or make the cache anew with precompute --temperature {temperature}") } else { String::new() };
            let remedy = format!("choose one of these{anew}");
            return Err(Error::usage("--temperature", format!("one that the cache holds ({held})"), temperature.to_string(), remedy));
        };
        Ok(Self {
            k,
            stored_k,
            scale: spec.logits_temperature() / temperature,
            log_z_column,
            log_z_columns: spec.temperatures().len(),
            masked_only,
        })
    }

    /// Ids taken per position.
    pub fn k(&self) -> usize {
        self.k
    }
}

impl Batch {
    /// A batch without rows, for targets of `k` ids.
    pub fn empty(k: usize) -> Self {
        Self { offsets: vec![0], k, ..Self::default() }
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Asked rows whose token was masked.
    pub fn masked(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORED_LABEL).count()
    }

    /// Appends a validated record. Its hidden states go to the batch's buffers of the same layers.
    pub fn push(&mut self, record: &Record, targets: &Targets) {
        let first = self.tokens() as u32;
        self.sequence_ids.push(record.sequence_id);
        self.passes.push(record.pass);
        self.input_ids.extend(&record.input_ids);
        self.token_type_ids.extend(record.token_type_ids.iter().map(|kind| u32::from(*kind)));
        self.offsets.push(self.input_ids.len());
        self.hidden.resize_with(record.hidden_states.len(), Vec::new);
        self.hidden.iter_mut().zip(&record.hidden_states).for_each(|(layer, states)| layer.extend(states));
        for (index, position) in record.positions.iter().enumerate() {
            let label = record.labels[usize::from(*position)];
            if targets.masked_only && label == IGNORED_LABEL {
                continue;
            }
            let row = index * targets.stored_k..index * targets.stored_k + targets.k;
            let log_z = record.log_z[index * targets.log_z_columns + targets.log_z_column];
            self.asked.push(first + u32::from(*position));
            self.labels.push(label);
            self.max_logit.push(record.max_logit[index]);
            self.top_ids.extend(&record.top_ids[row.clone()]);
            // ln t = (z - z_max) / T - ln Z; what is stored is divided by the cache's first temperature.
            self.log_probabilities.extend(record.top_logits[row].iter().map(|logit| logit * targets.scale - log_z));
        }
    }
}

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
        Normalisers { asked: sum(|batch| batch.asked.len()), masked: sum(Batch::masked), tokens: sum(Batch::tokens) }
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
                step.micro_batches.push(Batch::empty(self.targets.k));
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
mod tests {
    use super::*;
    use logitcache::target::{PositionRule, Precision, Task, UncheckedTargetSpec};
    use proptest::prelude::*;

    fn spec(temperatures: &[f32]) -> TargetSpec {
        let unchecked = UncheckedTargetSpec {
            top_k: 2,
            temperatures: temperatures.to_vec(),
            positions: PositionRule::Tokens,
            hidden_layers: vec![],
            hidden_size: 0,
            token_type_ids: false,
            precision: Precision::Float32,
            ..UncheckedTargetSpec::new(Task::MaskedLm, 1000)
        };
        TargetSpec::try_from(unchecked).unwrap()
    }

    /// Sequence `id` of `length` tokens, whose positions 1.. are asked, the first of them masked; stored logits 0 and -1.
    fn record(id: u64, length: usize) -> Record {
        let positions: Vec<u16> = (1..length as u16).collect();
        let mut labels = vec![IGNORED_LABEL; length];
        labels.iter_mut().skip(1).take(1).for_each(|label| *label = 7);
        Record {
            sequence_id: id,
            input_ids: (0..length as u32).collect(),
            labels,
            top_ids: positions.iter().flat_map(|_| [5, 6]).collect(),
            top_logits: positions.iter().flat_map(|_| [0.0, -1.0]).collect(),
            max_logit: positions.iter().map(|_| 3.0).collect(),
            log_z: positions.iter().flat_map(|_| [0.5, 0.25]).collect(),
            positions,
            ..Record::default()
        }
    }

    fn steps_of(lengths: &[usize], batch_tokens: u64, accumulate: u64) -> Vec<Step> {
        let targets = Targets::new(&spec(&[2.0, 1.0]), 2.0, false, None).unwrap();
        let rows = lengths.iter().enumerate().map(|(id, length)| Ok(record(id as u64, *length)));
        Steps::new(rows, targets, batch_tokens, accumulate).collect::<Result<Vec<_>>>().unwrap()
    }

    #[test]
    fn rows_are_laid_end_to_end() {
        let steps = steps_of(&[3, 2], 100, 1);
        let [batch] = &steps[0].micro_batches[..] else { panic!("one batch expected") };
        assert_eq!(batch.offsets, [0, 3, 5]);
        assert_eq!(batch.input_ids, [0, 1, 2, 0, 1]);
        assert_eq!(batch.asked, [1, 2, 4]);
        assert_eq!(batch.labels, [7, IGNORED_LABEL, 7]);
        assert_eq!(steps[0].normalisers(), Normalisers { asked: 3, masked: 2, tokens: 5 });
    }

    #[test]
    fn log_probabilities_are_rescaled_to_another_stored_temperature() {
        let spec = spec(&[2.0, 1.0]);
        let mut at_two = Batch::empty(2);
        at_two.push(&record(0, 2), &Targets::new(&spec, 2.0, false, None).unwrap());
        assert_eq!(at_two.log_probabilities, [-0.5, -1.5]);
        let mut at_one = Batch::empty(2);
        at_one.push(&record(0, 2), &Targets::new(&spec, 1.0, false, None).unwrap());
        assert_eq!(at_one.log_probabilities, [-0.25, -2.25], "(z - z_max) = 2 x stored, and log Z at 1");
        let error = Targets::new(&spec, 4.0, false, None).unwrap_err().to_string();
        assert!(error.contains("2, 1") && error.contains("precompute --temperature 4"), "{error}");
    }

    #[test]
    fn masked_rows_alone_are_taken_for_evaluation() {
        let mut batch = Batch::empty(2);
        batch.push(&record(0, 5), &Targets::new(&spec(&[2.0, 1.0]), 1.0, true, None).unwrap());
        assert_eq!((batch.tokens(), batch.asked, batch.labels), (5, vec![1], vec![7]));
    }

    #[test]
    fn more_epochs_than_can_be_counted_are_no_fewer_steps() {
        assert_eq!(StepArithmetic::new(10, 100, 10, Duration::Epochs(3)).steps, 30);
        assert_eq!(StepArithmetic::new(10, 100, 10, Duration::Epochs(u64::MAX)).steps, u64::MAX);
    }

    #[test]
    fn a_sequence_longer_than_a_step_is_refused() {
        let targets = Targets::new(&spec(&[1.0]), 1.0, false, None).unwrap();
        let mut steps = Steps::new([Ok(record(9, 11))].into_iter(), targets, 5, 2);
        let error = steps.next().unwrap().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("sequence 9"), "{error}");
    }

    proptest! {
        #[test]
        fn the_count_of_steps_is_exact_and_no_row_is_lost(
            lengths in prop::collection::vec(2usize..20, 0..80),
            batch_tokens in 8u64..40,
            accumulate in 3u64..5,
        ) {
            let steps = steps_of(&lengths, batch_tokens, accumulate);
            let tokens: usize = lengths.iter().sum();
            let plan = StepArithmetic::new(lengths.len() as u64, tokens as u64, batch_tokens * accumulate, Duration::Epochs(1));
            prop_assert_eq!(steps.len() as u64, plan.steps);
            let ids: Vec<u64> = steps.iter().flat_map(|step| &step.micro_batches).flat_map(|batch| batch.sequence_ids.clone()).collect();
            prop_assert_eq!(ids, (0..lengths.len() as u64).collect::<Vec<_>>());
            for step in &steps {
                prop_assert!(step.sequences() > 0 && step.micro_batches.iter().all(|batch| batch.tokens() > 0));
                prop_assert!((step.normalisers().tokens as u64) < batch_tokens * accumulate + 20);
            }
        }
    }
}
