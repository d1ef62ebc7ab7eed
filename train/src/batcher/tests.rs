//! Steps of records that say where they are, and what a batch takes from them.

use super::*;
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::target::{PositionRule, Precision, TargetSpec, Task, UncheckedTargetSpec};
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
    assert_eq!(steps[0].normalisers(), Normalisers { asked: 3, labelled: 2, tokens: 5, sequences: 2 });
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
