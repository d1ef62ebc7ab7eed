//! Valid records of any shape, drawn from a seed: what the cache's tests write and expect back.
#![allow(dead_code, reason = "each test target uses its own part")]

use half::f16;
use logitcache::cache::manifest::{CorpusCounts, FORMAT_VERSION, Fingerprints, Manifest, ShardEntry, TeacherSummary};
use logitcache::cache::record::{IGNORED_LABEL, Record};
use logitcache::cache::writer::{write_shard, write_vocabulary};
use logitcache::fingerprint::Fingerprint;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::{PositionRule, Precision, TargetSpec, Task, UncheckedTargetSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How many tokens and asked positions a record has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) longest: usize,
    pub(crate) share_asked: f64,
}

pub(crate) fn unchecked() -> UncheckedTargetSpec {
    UncheckedTargetSpec {
        top_k: 4,
        temperatures: vec![2.0, 1.0],
        positions: PositionRule::Tokens,
        hidden_layers: vec![6, 12],
        hidden_size: 3,
        token_type_ids: true,
        precision: Precision::Float16,
        ..UncheckedTargetSpec::new(Task::MaskedLm, 591)
    }
}

pub(crate) fn spec() -> TargetSpec {
    TargetSpec::try_from(unchecked()).unwrap()
}

pub(crate) fn fingerprints(run: &str) -> Fingerprints {
    let of = |part: &str| Fingerprint::of_bytes(format!("{part} of {run}").as_bytes());
    Fingerprints { teacher: of("teacher"), tokenizer: of("tokenizer"), corpus: of("corpus"), run: of("everything") }
}

/// Records of the sequences from `first`, their logits falling off as the largest of many draws do: steep at first, then flat.
pub(crate) fn records(spec: &TargetSpec, shape: Shape, pass: u16, first: u64, count: usize, seed: u64) -> Vec<Record> {
    (0..count as u64).map(|i| record(spec, shape, pass, first + i, seed)).collect()
}

fn record(spec: &TargetSpec, shape: Shape, pass: u16, sequence_id: u64, seed: u64) -> Record {
    let mut stream = RandomStream::new(seed, Purpose::Masking, &[u64::from(pass), sequence_id]);
    let length = 1 + stream.below(shape.longest);
    let positions: Vec<u16> = match spec.task() {
        Task::SequenceClassification => vec![0],
        Task::SentenceEmbedding => vec![],
        _ => (0..length as u16).filter(|_| stream.uniform() < shape.share_asked).collect(),
    };
    let mut record = Record { sequence_id, document_id: sequence_id / 2, pass, positions, ..Record::default() };
    record.input_ids = (0..length).map(|_| zipf(&mut stream, spec.vocabulary_size())).collect();
    for _ in 0..spec.labels_of(length) {
        let labelled = stream.uniform() < 0.15;
        record.labels.push(if labelled { zipf(&mut stream, spec.classes()) as i32 } else { IGNORED_LABEL });
    }
    if spec.has_label_values() && stream.uniform() < 0.5 {
        let values = if spec.embedding_size() > 0 { 1 } else { spec.classes() };
        record.label_values = (0..values).map(|_| stream.normal() as f32).collect();
    }
    record.embedding = (0..spec.embedding_size()).map(|_| stream.normal() as f32).collect();
    if spec.token_type_ids() {
        record.token_type_ids = (0..length).map(|token| u8::from(2 * token > length)).collect();
    }
    for _ in 0..record.positions.len() {
        ask(spec, &mut stream, &mut record);
    }
    let states = |stream: &mut RandomStream| (0..length * spec.hidden_size()).map(|_| stream.normal() as f32).collect();
    record.hidden_states = spec.hidden_layers().iter().map(|_| states(&mut stream)).collect();
    record
}

fn ask(spec: &TargetSpec, stream: &mut RandomStream, record: &mut Record) {
    let mut ids = BTreeSet::new();
    while ids.len() < spec.top_k() {
        // Where nearly all ids are wanted, a draw that mostly repeats itself would take long.
        let id = if spec.top_k() * 4 > spec.classes() { ids.len() as u32 } else { zipf(stream, spec.classes()) };
        if ids.insert(id) {
            record.top_ids.push(id);
        }
    }
    let confidence = 8.0 * stream.uniform();
    let mut logit = 0.0_f64;
    for rank in 0..spec.top_k() {
        record.top_logits.push(logit as f32);
        let gap = -(1.0 - stream.uniform()).ln() * 2.5 / (rank as f64 + 1.0);
        logit -= (gap + if rank == 0 { confidence } else { 0.0 }) / f64::from(spec.logits_temperature());
    }
    record.max_logit.push((10.0 + 3.0 * stream.normal()) as f32);
    record.log_z.extend(spec.temperatures().iter().map(|_| (4.0 * stream.uniform()) as f32 + 0.5));
}

/// Small ids more often, as in a vocabulary ordered by frequency.
fn zipf(stream: &mut RandomStream, vocabulary_size: usize) -> u32 {
    let id = (vocabulary_size as f64).powf(stream.uniform()) as usize - 1;
    id.min(vocabulary_size - 1) as u32
}

/// What a reader gives for a written record.
pub(crate) fn as_stored(spec: &TargetSpec, record: &Record) -> Record {
    let mut stored = record.clone();
    if spec.precision() == Precision::Float16 {
        let round = |value: &mut f32| *value = f16::from_f32(*value).to_f32();
        stored.top_logits.iter_mut().for_each(round);
        stored.hidden_states.iter_mut().flatten().chain(&mut stored.embedding).for_each(round);
    }
    stored
}

pub(crate) fn manifest(spec: &TargetSpec, run: &str, shards: Vec<ShardEntry>) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        writer: "a test".to_string(),
        spec: spec.clone(),
        fingerprints: fingerprints(run),
        settings: BTreeMap::from([("--top-k".to_string(), spec.top_k().into())]),
        teacher: TeacherSummary {
            parameters: 1,
            layers: 12,
            hidden_size: spec.hidden_size() as u32,
            provider: "cpu".to_string(),
            logits_output: "logits".to_string(),
            hidden_tensors: spec.hidden_layers().iter().map(|layer| (*layer, format!("tensor {layer}"))).collect(),
            ..TeacherSummary::default()
        },
        counts: Some(CorpusCounts::default()),
        shards,
        complete: true,
    }
}

/// A complete cache with one shard per list of records.
pub(crate) fn write_cache(directory: &Path, spec: &TargetSpec, run: &str, shards: &[Vec<Record>]) -> Manifest {
    let entry =
        |(index, records): (usize, &Vec<Record>)| write_shard(directory, index as u32, spec, &fingerprints(run), records, 1).unwrap();
    let manifest = manifest(spec, run, shards.iter().enumerate().map(entry).collect());
    let tokens: Vec<String> = (0..spec.vocabulary_size()).map(|id| format!("token {id}")).collect();
    write_vocabulary(directory, &tokens).unwrap();
    manifest.write(directory).unwrap();
    manifest
}
