//! Any valid records written are read back the same: whatever the spec, and across the borders of shards and row groups.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod synthetic;

use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::Record;
use logitcache::target::{Precision, Problem, TargetSpec, Task, UncheckedTargetSpec};
use proptest::prelude::*;
use synthetic::{Shape, as_stored, records, unchecked, write_cache};

/// Specs whose records are small, so that many can be tried.
fn small_spec() -> impl Strategy<Value = TargetSpec> {
    let vocabulary = prop::sample::select(vec![1_u32, 5, 591, 65_535, 65_536, 65_537, 250_002]);
    let temperatures = prop::sample::select(vec![vec![1.0], vec![2.0, 1.0], vec![1.0, 4.0], vec![0.5, 1.0, 2.0, 4.0]]);
    let hidden = prop::sample::select(vec![vec![], vec![0], vec![12], vec![0, 6, 12]]);
    (vocabulary, 1_u32..9, temperatures, hidden, 1_u32..6, any::<bool>(), any::<bool>()).prop_map(
        |(vocabulary_size, top_k, temperatures, hidden_layers, hidden_size, token_type_ids, float16)| {
            TargetSpec::try_from(UncheckedTargetSpec {
                vocabulary_size,
                top_k: top_k.min(vocabulary_size),
                temperatures,
                hidden_size: if hidden_layers.is_empty() { 0 } else { hidden_size },
                hidden_layers,
                token_type_ids,
                precision: if float16 { Precision::Float16 } else { Precision::Float32 },
                ..unchecked()
            })
            .unwrap()
        },
    )
}

fn shape() -> impl Strategy<Value = Shape> {
    (1_usize..40, prop::sample::select(vec![0.0, 0.1, 0.9, 1.0])).prop_map(|(longest, share_asked)| Shape { longest, share_asked })
}

/// Shards of `pass` 0, then of pass 1, with the given rows each.
fn shards(spec: &TargetSpec, shape: Shape, rows: &[usize], seed: u64) -> Vec<Vec<Record>> {
    let mut shards = Vec::new();
    for pass in 0..2 {
        let mut first = 0;
        for count in rows {
            shards.push(records(spec, shape, pass, first, *count, seed));
            first += *count as u64;
        }
    }
    shards
}

fn read_all(cache: &Cache, projection: &Projection) -> Vec<Vec<Record>> {
    let read = |index: usize| {
        let shard = cache.shard(index).unwrap();
        let group = |group: usize| {
            let records = shard.read(group, projection).unwrap();
            assert_eq!(records.len(), shard.rows(group), "rows of group {group}");
            records
        };
        (0..shard.row_groups()).flat_map(group).collect()
    };
    (0..cache.shards()).map(read).collect()
}

fn assert_round_trip(spec: &TargetSpec, written: &[Vec<Record>]) {
    let directory = tempfile::tempdir().unwrap();
    let manifest = write_cache(directory.path(), spec, "run", written);
    let cache = Cache::open(directory.path()).unwrap();
    assert_eq!(cache.manifest(), &manifest);
    cache.verify().unwrap();

    let stored: Vec<Vec<Record>> = written.iter().map(|shard| shard.iter().map(|record| as_stored(spec, record)).collect()).collect();
    let everything = Projection { hidden_layers: spec.hidden_layers().to_vec() };
    assert_eq!(read_all(&cache, &everything), stored);

    let mut projected = stored;
    projected.iter_mut().flatten().for_each(|record| record.hidden_states.reverse());
    let backwards = Projection { hidden_layers: spec.hidden_layers().iter().rev().copied().collect() };
    assert_eq!(read_all(&cache, &backwards), projected, "layers in the order asked for");

    projected.iter_mut().flatten().for_each(|record| record.hidden_states.clear());
    assert_eq!(read_all(&cache, &Projection::default()), projected, "no hidden states");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back(spec in small_spec(), shape in shape(), rows in prop::collection::vec(1_usize..8, 1..4), seed: u64) {
        assert_round_trip(&spec, &shards(&spec, shape, &rows, seed));
    }
}

proptest! {
    // Rows of about half a megabyte: the borders of row groups fall within a shard.
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_across_row_groups(logits_are_large: bool, vocabulary_size in 60_000_u32..70_000, rows in 10_usize..40, seed: u64) {
        let spec = TargetSpec::try_from(UncheckedTargetSpec {
            vocabulary_size,
            top_k: if logits_are_large { 512 } else { 2 },
            hidden_size: if logits_are_large { 2 } else { 1024 },
            ..unchecked()
        }).unwrap();
        let written = records(&spec, Shape { longest: 200, share_asked: 0.8 }, 0, 7, rows, seed);
        assert_round_trip(&spec, &[written]);
    }
}

#[test]
fn records_of_every_task_come_back() {
    let of = |task, classes: Option<u32>, problem, embedding_size| UncheckedTargetSpec {
        classes,
        problem,
        embedding_size,
        hidden_layers: vec![2],
        hidden_size: 3,
        token_type_ids: true,
        top_k: if task == Task::CausalLm { 4 } else { classes.unwrap_or(0) },
        temperatures: vec![2.0, 1.0],
        ..UncheckedTargetSpec::new(task, 591)
    };
    let cases = [
        of(Task::CausalLm, None, None, None),
        of(Task::TokenClassification, Some(9), None, None),
        of(Task::SequenceClassification, Some(3), Some(Problem::SingleLabel), None),
        of(Task::SequenceClassification, Some(28), Some(Problem::MultiLabel), None),
        of(Task::SequenceClassification, Some(1), Some(Problem::Regression), None),
        of(Task::SentenceEmbedding, None, None, Some(5)),
    ];
    for case in cases {
        for precision in [Precision::Float16, Precision::Float32] {
            let spec = TargetSpec::try_from(UncheckedTargetSpec { precision, ..case.clone() }).unwrap();
            assert_round_trip(&spec, &shards(&spec, Shape { longest: 9, share_asked: 0.7 }, &[5, 1, 3], 4));
        }
    }
}

#[test]
fn a_logit_below_float16_becomes_its_lowest_value() {
    let spec = TargetSpec::try_from(unchecked()).unwrap();
    let mut written = records(&spec, Shape { longest: 4, share_asked: 1.0 }, 0, 0, 2, 3);
    written[1].top_logits[2..4].copy_from_slice(&[-70_000.0, f32::MIN]);
    let directory = tempfile::tempdir().unwrap();
    write_cache(directory.path(), &spec, "run", &[written]);
    let read = read_all(&Cache::open(directory.path()).unwrap(), &Projection::default());
    assert_eq!(read[0][1].top_logits[2..4], [-65_504.0; 2]);
}
