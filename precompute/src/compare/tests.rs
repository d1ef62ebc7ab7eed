//! Whole comparisons: of caches made by hand, whose divergence is known, and of caches that do not belong together.

use super::*;
use logitcache::cache::manifest::{CorpusCounts, FORMAT_VERSION, Fingerprints, Manifest, TeacherSummary};
use logitcache::cache::writer::{write_shard, write_vocabulary};
use logitcache::fingerprint::Fingerprint;
use logitcache::oracle::stored_targets;
use logitcache::target::UncheckedTargetSpec;
use std::path::Path;

const TEMPERATURES: [f32; 2] = [2.0, 1.0];

fn spec(k: u32) -> TargetSpec {
    let unchecked = UncheckedTargetSpec { top_k: k, temperatures: TEMPERATURES.to_vec(), ..UncheckedTargetSpec::new(Task::CausalLm, 6) };
    TargetSpec::try_from(unchecked).unwrap()
}

/// Logits of position `position` of sequence `sequence`; the teacher called `noise` away from the first one differs at every other position.
fn logits(sequence: u64, position: u64, noise: f64) -> Vec<f64> {
    let shift = if position % 2 == 1 { noise } else { 0.0 };
    (0..6_u64).map(|id| ((sequence * 31 + position * 17 + id * 7) % 11) as f64 / 2.0 + shift * (id % 3) as f64).collect()
}

fn record(sequence: u64, spec: &TargetSpec, noise: f64) -> Record {
    let length = 3 + sequence % 2;
    let mut record = Record {
        sequence_id: sequence,
        input_ids: (0..length).map(|position| ((sequence + position) % 6) as u32).collect(),
        labels: vec![1; length as usize],
        positions: (0..length as u16).collect(),
        ..Record::default()
    };
    for position in 0..length {
        let stored = stored_targets(&logits(sequence, position, noise), spec.top_k(), &TEMPERATURES.map(f64::from));
        record.top_ids.extend(stored.top_ids.iter().map(|id| *id as u32));
        record.top_logits.extend(stored.top_logits.iter().map(|logit| *logit as f32));
        record.max_logit.push(stored.max_logit as f32);
        record.log_z.extend(stored.log_z.iter().map(|log_z| *log_z as f32));
    }
    record
}

/// A cache of these records, `shard_rows` to a shard.
fn write(directory: &Path, spec: &TargetSpec, records: &[Record], shard_rows: usize) {
    std::fs::create_dir_all(directory).unwrap();
    let digest = Fingerprint::of_bytes(b"");
    let fingerprints = Fingerprints { teacher: digest, tokenizer: digest, corpus: digest, run: digest };
    let write = |(index, records): (usize, &[Record])| write_shard(directory, index as u32, spec, &fingerprints, records, 1).unwrap();
    let shards = records.chunks(shard_rows).enumerate().map(write).collect();
    write_vocabulary(directory, &["a", "b", "c", "d", "e", "f"].map(str::to_owned)).unwrap();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        writer: "test".to_owned(),
        spec: spec.clone(),
        fingerprints,
        settings: std::collections::BTreeMap::new(),
        teacher: TeacherSummary::default(),
        counts: Some(CorpusCounts::default()),
        shards,
        complete: true,
    };
    manifest.write(directory).unwrap();
}

fn cache(directory: &Path, k: u32, noise: f64, shard_rows: usize) {
    let spec = spec(k);
    let records: Vec<Record> = (0..7).map(|sequence| record(sequence, &spec, noise)).collect();
    write(directory, &spec, &records, shard_rows);
}

fn compare(a: &Path, b: &Path) -> Result<Comparison> {
    run(&CompareArguments { caches: vec![a.to_owned(), b.to_owned()], temperature: 1.0, out: None })
}

#[test]
fn a_cache_is_no_distance_from_itself_however_it_is_cut_into_shards() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    cache(&a, 6, 0.0, 3);
    cache(&b, 6, 0.0, 5);
    let found = compare(&a, &b).unwrap();
    assert_eq!((found.rows, found.positions, found.top1_agreement), (7, 24, 1.0));
    assert!(found.kl_nats.largest < 1e-9 && found.mass_outside < 1e-3, "{found:?}");
}

#[test]
fn the_mean_is_that_of_the_whole_distributions() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    cache(&a, 6, 0.0, 3);
    cache(&b, 6, 0.7, 3);
    let out = folder.path().join("comparison.json");
    let arguments = CompareArguments { caches: vec![a, b], temperature: 2.0, out: Some(out.clone()) };
    let found = run(&arguments).unwrap();
    let exact = |sequence: u64, position: u64| -> f64 {
        let [p, q] = [0.0, 0.7].map(|noise| logitcache::oracle::log_softmax(&logits(sequence, position, noise), 2.0));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    let places = (0..7).flat_map(|sequence| (0..3 + sequence % 2).map(move |position| (sequence, position)));
    let mean = places.map(|(sequence, position)| exact(sequence, position)).sum::<f64>() / 24.0;
    // float16 values carry 11 bits.
    assert!((found.kl_nats.mean - mean).abs() < 1e-3 * mean + 2e-4, "{found:?}, not {mean}");
    let read: Comparison = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert_eq!((read.positions, &read.caches, read.temperature), (24, &found.caches, 2.0));
    assert!((read.kl_nats.mean - found.kl_nats.mean).abs() < 1e-12, "{read:?}");
    let said = found.to_string();
    assert!(said.contains("24 positions of 7 sequences, at T = 2") && said.contains("top-1"), "{said}");
}

#[test]
fn caches_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let spec = spec(4);
    cache(&a, 4, 0.0, 3);
    let refused = |change: &dyn Fn(&mut Vec<Record>), expected: &str| {
        let mut records: Vec<Record> = (0..7).map(|sequence| record(sequence, &spec, 0.0)).collect();
        change(&mut records);
        let _ = std::fs::remove_dir_all(&b);
        write(&b, &spec, &records, 4);
        let error = compare(&a, &b).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(expected), "{error}, not {expected}");
    };
    refused(&|records| drop(records.pop()), "no more rows");
    refused(&|records| records[5].input_ids[1] ^= 1, "the tokens of sequence 5 of pass 0");
    refused(
        &|records| {
            let record = &mut records[2];
            record.positions.pop();
            record.top_ids.truncate(2 * 4);
            record.top_logits.truncate(2 * 4);
            record.max_logit.truncate(2);
            record.log_z.truncate(2 * 2);
        },
        "3 positions of sequence 2",
    );
    cache(&folder.path().join("c"), 4, 0.0, 3);
    let arguments = CompareArguments { caches: vec![a, folder.path().join("c")], temperature: 3.0, out: None };
    assert!(run(&arguments).unwrap_err().to_string().starts_with("--temperature"));
}
