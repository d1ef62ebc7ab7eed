//! A step whose loss or gradient is not finite, described for a person.

use crate::batcher::{Batch, Step};
use crate::evaluate::{STUDENT_LOGITS, STUDENT_VECTORS};
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
        let kept = kept(last);
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

/// What is left of the run: `last` is the newest checkpoint.
fn kept(last: Option<&Path>) -> String {
    match last {
        Some(path) => format!("the last checkpoint is {}", path.display()),
        None => "there is no checkpoint yet".to_owned(),
    }
}

/// A refusal of the evaluation after `step`; where the student's answers were not finite, with what to do about it. `cache` is where the
/// sequences are, `last` the newest checkpoint.
pub(super) fn explain_evaluation(error: Error, step: u64, cache: &Path, last: Option<&Path>) -> Error {
    let Error::Invalid { field, expected, found } = error else { return error };
    if field != STUDENT_LOGITS && field != STUDENT_VECTORS {
        return Error::Invalid { field, expected, found };
    }
    let remedy = match step {
        0 => "these are its first weights: start from another --init-from, or at random".to_owned(),
        _ => format!("the training has diverged: lower --learning-rate in a new --out; {}", kept(last)),
    };
    Error::data(cache, format!("evaluation after step {step}: {field}"), expected, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_that_is_not_finite_says_when_and_what_to_do() {
        let explained_of = |answers, step, last| {
            let error = Error::invalid(answers, "finite values", "another in asked row 0");
            explain_evaluation(error, step, Path::new("cache"), last).to_string()
        };
        assert!(explained_of(STUDENT_VECTORS, 7, None).contains("lower --learning-rate"));
        let explained = |step, last| explained_of(STUDENT_LOGITS, step, last);
        let later = explained(7, Some(Path::new("out/checkpoints/step-00000005")));
        for words in ["evaluation after step 7", "lower --learning-rate", "the last checkpoint is out/checkpoints/step-00000005"] {
            assert!(later.contains(words), "{later}");
        }
        assert!(explained(7, None).contains("no checkpoint yet"));
        assert!(explained(0, None).contains("--init-from"));
        let other = explain_evaluation(Error::invalid("rows", "some", "none"), 7, Path::new("cache"), None).to_string();
        assert_eq!(other, "rows: expected some, found none");
    }
}
