//! Whole caches of every task, made of the small random teachers: each row against its teacher asked about that row alone.

mod left_head;

use super::*;
use crate::cli::{Request, parse};
use crate::teacher::{HiddenLayers, Teacher, TeacherBatch, locate, prepare, runtime};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::Record;
use logitcache::oracle::{log_z, top_k};
use logitcache::target::{Pooling, Problem, TargetSpec, Task};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Sentences of one-letter words, which every tokenizer of the fixtures knows, of different lengths.
const SENTENCES: [&str; 7] = ["a b c d e f", "g h", "i j k l m n o p q r s t", "u v w x", "y", "a a b b c c d d e e f f g g", "z y x"];

fn teacher(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/teachers").join(name)
}

fn config(name: &str, directory: &Path, more: &str) -> Config {
    let corpus = directory.join("corpus.txt");
    std::fs::write(&corpus, SENTENCES.join("\n")).unwrap();
    let paths = ["--teacher".into(), teacher(name).into_os_string(), "--corpus".into(), corpus.into(), "--out".into()];
    let flags = "--max-length 12 --batch-tokens 40 --shard-sequences 3 --min-tokens 1 --precision float32 --quiet";
    let typed = [OsString::from("precompute")].into_iter().chain(paths).chain([directory.join("cache").into()]);
    let typed = typed.chain(flags.split_whitespace().chain(more.split_whitespace()).map(OsString::from));
    let Ok(Request::Precompute(arguments)) = parse(typed) else { panic!("a line of the right form") };
    Config::check(*arguments, 2).unwrap()
}

fn make(config: &Config) -> Result<Summary> {
    run(config, config.out.as_deref().unwrap(), &Stop::default(), &mut Progress::new(true))
}

fn records(directory: &Path) -> Vec<Record> {
    let cache = Cache::open(directory).unwrap();
    cache.verify().unwrap();
    let projection = Projection { hidden_layers: cache.spec().hidden_layers().to_vec() };
    let mut records = Vec::new();
    for index in 0..cache.shards() {
        let shard = cache.shard(index).unwrap();
        (0..shard.row_groups()).for_each(|group| records.extend(shard.read(group, &projection).unwrap()));
    }
    records
}

/// What the teacher says of one row alone: every row of values, and the last hidden state.
fn alone(teacher: &mut Teacher, record: &Record) -> (Vec<Vec<f32>>, Vec<f32>) {
    let length = record.input_ids.len();
    let batch = TeacherBatch {
        rows: 1,
        length,
        input_ids: record.input_ids.iter().map(|id| i64::from(*id)).collect(),
        attention_mask: vec![1; length],
        token_type_ids: vec![0; length],
    };
    let read = |answer: &crate::teacher::Answer<'_>| {
        Ok((answer.states(0).chunks(answer.width()).map(<[f32]>::to_vec).collect(), answer.hidden(0, 0).to_vec()))
    };
    teacher.run(&batch, read).unwrap()
}

fn close(place: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{place}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 2e-5, "{place}: {found}, not {expected}");
    }
}

/// A vector by the definition, in float64.
fn vector(states: &[Vec<f32>], pooling: Pooling, normalized: bool) -> Vec<f64> {
    let column = |dimension: usize| states.iter().map(move |state| f64::from(state[dimension]));
    let vector: Vec<f64> = (0..states[0].len())
        .map(|dimension| match pooling {
            Pooling::Mean => column(dimension).sum::<f64>() / states.len() as f64,
            Pooling::Cls => f64::from(states[0][dimension]),
            Pooling::Max => column(dimension).fold(f64::NEG_INFINITY, f64::max),
        })
        .collect();
    let length = if normalized { vector.iter().map(|value| value * value).sum::<f64>().sqrt() } else { 1.0 };
    vector.into_iter().map(|value| value / length).collect()
}

fn check(place: &str, record: &Record, spec: &TargetSpec, manifest: &Manifest, teacher: &mut Teacher) {
    let (rows, state) = alone(teacher, record);
    close(place, &record.hidden_states[0], &state.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
    if spec.task() == Task::SentenceEmbedding {
        let pooling = manifest.teacher.pooling.unwrap();
        let rows = if rows.len() == 1 { rows } else { rows[..record.input_ids.len()].to_vec() };
        return close(place, &record.embedding, &vector(&rows, pooling, manifest.teacher.normalized));
    }
    assert!(!record.positions.is_empty(), "{place}");
    check_targets(place, record, spec, &rows);
}

/// Against the logits of every position.
fn check_targets(place: &str, record: &Record, spec: &TargetSpec, rows: &[Vec<f32>]) {
    let (k, temperatures) = (spec.top_k(), spec.temperatures());
    for (index, position) in record.positions.iter().enumerate() {
        let logits: Vec<f64> = rows[usize::from(*position)].iter().map(|logit| f64::from(*logit)).collect();
        let best = top_k(&logits, k);
        let (maximum, first) = (logits[best[0]], f64::from(temperatures[0]));
        let relative: Vec<f64> = best.iter().map(|id| (logits[*id] - maximum) / first).collect();
        close(place, &record.top_logits[index * k..(index + 1) * k], &relative);
        close(place, &record.max_logit[index..=index], &[maximum]);
        let log_z: Vec<f64> = temperatures.iter().map(|t| log_z(&logits, f64::from(*t))).collect();
        close(place, &record.log_z[index * log_z.len()..(index + 1) * log_z.len()], &log_z);
        let found = &record.top_ids[index * k..(index + 1) * k];
        let nearby = |(found, best): (&u32, &usize)| (logits[*found as usize] - logits[*best]).abs() < 1e-5;
        assert!(found.iter().zip(&best).all(nearby), "{place}: {found:?}, not {best:?}");
    }
}

#[test]
fn only_a_session_elsewhere_leaves_all_processors_to_the_encoding() {
    let directory = tempfile::tempdir().unwrap();
    let here = config("bert", directory.path(), "");
    let threads = |provider: &str, threads| publish::encoding_threads(&Config { provider: provider.into(), threads, ..here.clone() });
    assert_eq!([1, 2, 7, 16].map(|typed| threads("cpu", typed)), [1, 1, 1, 4]);
    assert_eq!([1, 2, 16].map(|typed| threads("cuda", typed)), [1, 2, 16]);
}

#[test]
fn every_task_makes_a_cache_of_what_its_teacher_says_of_each_sequence_alone() {
    let tasks = [
        ("bert-classifier", Task::SequenceClassification, 3),
        ("roberta-multilabel", Task::SequenceClassification, 4),
        ("distilbert-regression", Task::SequenceClassification, 1),
        ("albert-tagger", Task::TokenClassification, 5),
        ("bert-sentence", Task::SentenceEmbedding, 0),
        ("distilbert-sentence", Task::SentenceEmbedding, 0),
        ("mpnet-sentence", Task::SentenceEmbedding, 0),
        ("gpt2", Task::CausalLm, 8),
        ("llama", Task::CausalLm, 8),
        ("xlm-roberta", Task::MaskedLm, 8),
    ];
    for (name, task, k) in tasks {
        let directory = tempfile::tempdir().unwrap();
        let more = if task.is_language_model() { "--top-k 8 --hidden-layers last" } else { "--hidden-layers last" };
        let config = config(name, directory.path(), more);
        let summary = make(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let manifest = &summary.manifest;
        let spec = &manifest.spec;
        assert_eq!((spec.task(), spec.top_k(), spec.vocabulary_size()), (task, k, 64), "{name}");
        let regression = spec.problem() == Some(Problem::Regression) || task == Task::SentenceEmbedding;
        assert_eq!(spec.temperatures(), if regression { &[1.0][..] } else { &[2.0, 1.0] }, "{name}");
        let files = locate(&teacher(name), None).unwrap();
        let prepared = prepare(&files, &HiddenLayers::Last, &BTreeMap::new()).unwrap();
        let mut teacher = Teacher::open(&runtime::load(None).unwrap(), prepared, 1, "cpu").unwrap();
        let records = records(&directory.path().join("cache"));
        assert!(records.len() >= SENTENCES.len() - 1, "{name}: {} records", records.len());
        for record in &records {
            check(&format!("{name}, sequence {}", record.sequence_id), record, spec, manifest, &mut teacher);
        }
        // What needs the session is known from the manifest when the same is asked again.
        assert!(make(&config).unwrap().reused, "{name}");
        let said = summary.to_string();
        assert_eq!(said.contains("masked"), task == Task::MaskedLm, "{said}");
        assert_eq!(said.contains("vectors"), task == Task::SentenceEmbedding, "{said}");
    }
}

/// The teacher of a run as often as the run opens it, and what that takes.
fn opened(config: &Config) -> lanes::Opened {
    let (inputs, prepared) = inputs::open(config).unwrap();
    lanes::open(config, &inputs, prepared, config.batch_tokens, sizing::memory(config), &thread_pool(config, config.threads).unwrap())
        .unwrap()
}

#[test]
fn records_are_the_same_in_any_number_of_lanes() {
    for name in ["xlm-roberta", "gpt2", "albert-tagger", "mpnet-sentence"] {
        let directory = tempfile::tempdir().unwrap();
        let demand = opened(&config(name, directory.path(), "--threads 1")).demand;
        let scarce = format!("--threads 2 --memory {}B", demand.shard_bytes + demand.token_bytes * 60);
        let mut first = None;
        for (more, expected) in [("--threads 1", 1), ("--threads 2", 2), ("--threads 3", 3), (&scarce, 1)] {
            let directory = tempfile::tempdir().unwrap();
            let config = config(name, directory.path(), more);
            assert_eq!(opened(&config).lanes.len(), expected, "{name} {more}");
            make(&config).unwrap();
            let found = records(&directory.path().join("cache"));
            assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "{name} {more}");
        }
    }
}

#[test]
fn as_many_lanes_are_opened_as_batches_fit_into_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let plain = config("gpt2", directory.path(), "--threads 4");
    let demand = opened(&Config { threads: 1, ..plain.clone() }).demand;
    let tokens = 100_000;
    // Room for so many halves of a batch; the copies of the model, of some kilobytes, fit anyway.
    for (halves, lanes) in [(3, 1), (5, 2), (7, 2), (9, 4)] {
        let memory = demand.shard_bytes + demand.token_bytes * tokens * halves / 2;
        let opened = opened(&Config { memory: Some(memory), batch_tokens: Some(tokens as usize), ..plain.clone() });
        assert_eq!(opened.lanes.len(), lanes, "room for {halves} halves");
        let threads: Vec<usize> = opened.lanes.iter().map(|lane| lane.pool.current_num_threads()).collect();
        assert_eq!((threads, opened.demand), (vec![4 / lanes; lanes], demand.of_lanes(lanes)));
    }
}

#[test]
fn a_sentence_encoders_files_go_with_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    make(&config("bert-sentence", directory.path(), "")).unwrap();
    for name in ["config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "1_Pooling/config.json"] {
        let copy = std::fs::read(directory.path().join("cache/teacher").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(copy, std::fs::read(teacher("bert-sentence").join(name)).unwrap(), "{name}");
    }
}

#[test]
fn flags_of_another_task_are_refused_before_anything_is_made() {
    for (name, more, flag) in [
        ("bert-classifier", "--task masked-lm", "--task"),
        ("bert-classifier", "--top-k 2", "--top-k"),
        ("gpt2", "--mask-probability 0.3", "--mask-probability"),
        ("bert-sentence", "--pooling max", "--pooling"),
        ("bert-sentence", "--temperature 4", "--temperature"),
        ("bert-tagger", "--positions masked", "--positions"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let error = make(&config(name, directory.path(), more)).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().starts_with(flag), "{name} {more}: {error}");
        assert!(!directory.path().join("cache").exists(), "{name} {more}");
    }
}
