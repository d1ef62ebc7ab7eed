//! Speed of writing a shard, on one thread and on all, and of reading it on one: `cargo bench -p logitcache --bench cache -- [CACHE]`.
//!
//! The records are those of CACHE's first shard, or made up (k = 64 of a vocabulary of 30,522, as in a BERT) where none is named. Each figure is
//! the median of the rounds, in seconds of the wall; a shard's checksum and its way to the disk are part of it.

use logitcache::cache::manifest::Fingerprints;
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::{IGNORED_LABEL, Record};
use logitcache::cache::writer::write_shard;
use logitcache::fingerprint::Fingerprint;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::{PositionRule, Precision, TargetSpec, Task, UncheckedTargetSpec};
use std::num::NonZero;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 5;
const TOP_K: u32 = 64;
const VOCABULARY: u32 = 30_522;

fn main() {
    let cache = named_cache();
    let (spec, records) = cache.as_ref().map_or_else(made_up, stored);
    let tokens: usize = records.iter().map(|record| record.input_ids.len()).sum();
    let values: usize = records.iter().map(|record| record.top_ids.len()).sum();
    let digest = Fingerprint::of_bytes(b"bench");
    let fingerprints = Fingerprints { teacher: digest, tokenizer: digest, corpus: digest, run: digest };
    let directory = tempfile::tempdir().expect("a directory for a shard");
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (mut writing, mut checking, mut reading, mut bytes) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        for (times, threads) in writing.iter_mut().zip([1, cores]) {
            times.push(seconds(|| {
                let entry = write_shard(directory.path(), 0, &spec, &fingerprints, &records, threads);
                bytes = entry.expect("records that are written").logits.bytes;
            }));
        }
        let file = directory.path().join("logits-00000.parquet");
        checking.push(seconds(|| drop(std::hint::black_box(Fingerprint::of_file(&file)))));
    }
    if let Some(cache) = cache {
        for _ in 0..ROUNDS {
            let shard = cache.shard(0).expect("a shard that opens");
            reading.push(seconds(|| {
                for group in 0..shard.row_groups() {
                    std::hint::black_box(shard.read(group, &Projection::default()).expect("a row group that decodes"));
                }
            }));
        }
    }
    println!("{} rows, {tokens} tokens, k = {}: {:.1} bytes per token", records.len(), spec.top_k(), bytes as f64 / tokens as f64);
    let uncompressed = (values * 8) as f64 / 1e6;
    let [on_one, on_all] = writing;
    let on_all_cores = format!("write on {cores} threads");
    let figures = [("write", on_one), (&on_all_cores, on_all), ("checksum", checking), ("read", reading)];
    for (what, times) in figures.into_iter().filter(|(_, times)| !times.is_empty()) {
        let seconds = median(times);
        println!(
            "{what}: {:.0} tokens/s, {:.0} MB/s of top-k uncompressed, {:.0} MB/s of the file",
            tokens as f64 / seconds,
            uncompressed / seconds,
            bytes as f64 / 1e6 / seconds
        );
    }
}

fn named_cache() -> Option<Cache> {
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with('-'))?;
    Some(Cache::open(Path::new(&named)).expect("a complete cache"))
}

/// The first shard of a cache, without hidden states.
fn stored(cache: &Cache) -> (TargetSpec, Vec<Record>) {
    let shard = cache.shard(0).expect("a shard that opens");
    let read = |group| shard.read(group, &Projection::default()).expect("a row group that decodes");
    (cache.spec().without_hidden(), (0..shard.row_groups()).flat_map(read).collect())
}

/// 512 rows of 128 tokens: ids drawn as in a vocabulary ordered by frequency, logits that fall steeply at first and then less.
fn made_up() -> (TargetSpec, Vec<Record>) {
    let unchecked = UncheckedTargetSpec {
        top_k: TOP_K,
        temperatures: vec![1.0],
        positions: PositionRule::Tokens,
        precision: Precision::Float16,
        ..UncheckedTargetSpec::new(Task::MaskedLm, VOCABULARY)
    };
    let spec = TargetSpec::try_from(unchecked).expect("a spec that holds");
    let record = |sequence_id: u64| {
        let mut draws = RandomStream::new(1, Purpose::Sampling, &[sequence_id]);
        let mut id = || (f64::from(VOCABULARY).powf(draws.uniform()) as u32).min(VOCABULARY) - 1;
        let input_ids: Vec<u32> = (0..128).map(|_| id()).collect();
        let top_ids: Vec<u32> = (0..128 * TOP_K).map(|_| id()).collect();
        let mut top_logits = Vec::new();
        for _ in 0..128 {
            let mut logit = 0.0;
            for rank in 0..TOP_K {
                top_logits.push(logit as f32);
                logit += (1.0 - draws.uniform()).ln() * 2.5 / f64::from(rank + 1);
            }
        }
        Record {
            sequence_id,
            document_id: sequence_id,
            labels: vec![IGNORED_LABEL; 128],
            positions: (0..128).collect(),
            top_ids,
            top_logits,
            max_logit: (0..128).map(|_| draws.normal() as f32).collect(),
            log_z: (0..128).map(|_| draws.normal() as f32).collect(),
            input_ids,
            ..Record::default()
        }
    };
    (spec, (0..512).map(record).collect())
}

fn seconds(run: impl FnOnce()) -> f64 {
    let started = Instant::now();
    run();
    started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
