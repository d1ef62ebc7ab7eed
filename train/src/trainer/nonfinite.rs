//! A step whose loss or gradient is not finite, described for a person.

use crate::batcher::{Batch, Step};
use crate::loss::{LossParts, PartValues, Weights};
use logitcache::error::Error;
use std::path::Path;

/// Sequences named one by one.
const NAMED_SEQUENCES: usize = 8;

/// What such a step shows.
pub(super) struct NonFinite<'a> {
    /// From 1.
    pub(super) number: u64,
    pub(super) step: &'a Step,
    pub(super) weights: Weights,
    pub(super) parts: LossParts,
    pub(super) gradient_norm: f64,
    /// The first micro-batch whose own loss is not finite; none where only the gradient is not.
    pub(super) micro_batch: Option<usize>,
}

impl NonFinite<'_> {
    /// `loss NaN (ce_nats NaN, ...) and gradient norm NaN on 12 sequences: 5 (pass 0), ...`.
    pub(super) fn describe(&self) -> String {
        let batches = match self.micro_batch {
            Some(index) => &self.step.micro_batches[index..=index],
            None => &self.step.micro_batches[..],
        };
        let rows = |batch: &Batch| batch.sequence_ids.iter().copied().zip(batch.passes.iter().copied()).collect::<Vec<_>>();
        let all: Vec<(u64, u16)> = batches.iter().flat_map(rows).collect();
        let named = all.iter().take(NAMED_SEQUENCES).map(|(sequence, pass)| format!("{sequence} (pass {pass})")).collect::<Vec<_>>();
        let more = if all.len() > NAMED_SEQUENCES { format!(" and {} more", all.len() - NAMED_SEQUENCES) } else { String::new() };
        let computed = PartValues::new(&self.weights, &self.parts);
        let parts = computed.iter().map(|(part, value)| format!("{} {value}", part.key())).collect::<Vec<_>>().join(", ");
        let total = self.parts.total;
        let norm = self.gradient_norm;
        format!("loss {total} ({parts}) and gradient norm {norm} on {} sequences: {}{more}", all.len(), named.join(", "))
    }

    /// The refusal to go on. `skipped` steps were skipped before it; `cache` is where the sequences are, `last` the newest checkpoint.
    pub(super) fn refuse(&self, skipped: u64, cache: &Path, last: Option<&Path>) -> Error {
        let kept = match last {
            Some(path) => format!("the last checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_owned(),
        };
        let remedy = if skipped > 0 {
            format!(
                "{skipped} such steps were skipped before, all that --skip-nonfinite allows: lower --learning-rate in a new --out; {kept}"
            )
        } else {
            format!("lower --learning-rate in a new --out, or pass over such steps with --skip-nonfinite N; {kept}")
        };
        Error::data(cache, format!("step {}", self.number), "a finite loss and gradient", self.describe(), remedy)
    }
}
