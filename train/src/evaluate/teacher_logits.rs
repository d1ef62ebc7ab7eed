//! The teacher's logits as it gave them, of a row of which all classes are stored.

use crate::batcher::Batch;

/// `[classes]` of asked row `row`, by class.
///
/// Stored are the largest logit and, by class in descending order, ln t = z - z_max - ln Z at temperature 1, so that
/// z = z_max + ln t - ln t(first).
pub(super) fn teacher_logits(batch: &Batch, row: usize) -> Vec<f32> {
    let targets = row * batch.k..(row + 1) * batch.k;
    let (ids, logs) = (&batch.top_ids[targets.clone()], &batch.log_probabilities[targets]);
    let mut logits = vec![0.0; batch.k];
    for (id, log) in ids.iter().zip(logs) {
        logits[*id as usize] = batch.max_logit[row] + (log - logs[0]);
    }
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_come_back_in_the_order_of_the_classes() {
        let batch = Batch {
            max_logit: vec![7.0, 2.0],
            top_ids: vec![1, 0, 2, 2, 1, 0],
            log_probabilities: vec![-0.25, -1.25, -2.25, -0.5, -0.5, -4.5],
            ..Batch::empty(3)
        };
        assert_eq!((teacher_logits(&batch, 0), teacher_logits(&batch, 1)), (vec![6.0, 7.0, 5.0], vec![-2.0, 2.0, 2.0]));
    }
}
