//! A small cache of any task for tests: sequences that count upwards, and a teacher that knows it.

use crate::cli::Arguments;
use clap::Parser;
use logitcache::cache::manifest::{CorpusCounts, FORMAT_VERSION, Fingerprints, Manifest, TeacherSummary};
use logitcache::cache::record::{IGNORED_LABEL, Record};
use logitcache::cache::writer::{write_shard, write_vocabulary};
use logitcache::fingerprint::Fingerprint;
use logitcache::oracle::stored_targets;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::{Pooling, Precision, Problem, TargetSpec, Task, UncheckedTargetSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Ids 0 to 3 are special: padding, mask, start, end.
pub(crate) const VOCABULARY: u32 = 40;
const MASK: u32 = 1;
const TOP_K: u32 = 5;

/// What to write; every value has a default that a test can override.
#[derive(Clone)]
pub(crate) struct SmallCache {
    pub(crate) shards_per_pass: u32,
    pub(crate) rows_per_shard: u64,
    pub(crate) passes: u16,
    pub(crate) sequences_per_document: u64,
    pub(crate) temperatures: Vec<f32>,
    pub(crate) hidden_layers: Vec<u32>,
    pub(crate) task: Task,
    /// What a sequence classifier's logits mean; it has three classes, or one number.
    pub(crate) problem: Problem,
    /// Width of a sentence encoder's vectors, which have length 1 and are means.
    pub(crate) embedding_size: u32,
    pub(crate) teacher: &'static str,
    pub(crate) corpus: &'static str,
}

impl Default for SmallCache {
    fn default() -> Self {
        let (temperatures, hidden_layers) = (vec![2.0, 1.0], vec![2]);
        Self {
            shards_per_pass: 4,
            rows_per_shard: 25,
            passes: 1,
            sequences_per_document: 1,
            temperatures,
            hidden_layers,
            task: Task::MaskedLm,
            problem: Problem::SingleLabel,
            embedding_size: 16,
            teacher: "teacher",
            corpus: "corpus",
        }
    }
}

impl SmallCache {
    /// One of another task, at temperature 1 and without hidden states.
    pub(crate) fn of(task: Task) -> Self {
        Self { task, temperatures: vec![1.0], hidden_layers: vec![], ..Self::default() }
    }
}

const TOKENIZER: &str = "{}";

const CLASSES: &str = r#", "id2label": {"0": "O", "1": "B-X", "2": "I-X"}}"#;

const TEACHER_CONFIG: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16}"#;

const DECODER_CONFIG: &str = r#"{"model_type": "llama", "hidden_act": "silu", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 16, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": true}"#;

impl SmallCache {
    /// Writes the cache into `directory`/`name` and returns that path.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let directory = directory.join(name);
        std::fs::create_dir_all(directory.join("teacher")).unwrap();
        let spec = self.spec();
        let config = match spec.task() {
            Task::CausalLm => DECODER_CONFIG.to_owned(),
            _ if spec.classes() == 3 => TEACHER_CONFIG.replace('}', CLASSES),
            _ => TEACHER_CONFIG.to_owned(),
        };
        std::fs::write(directory.join("teacher/config.json"), config).unwrap();
        std::fs::write(directory.join("teacher/tokenizer.json"), TOKENIZER).unwrap();
        write_vocabulary(&directory, &(0..VOCABULARY).map(|id| format!("token {id}")).collect::<Vec<_>>()).unwrap();
        let run = format!("{} {} {:?}", self.teacher, self.corpus, (self.shards_per_pass, self.rows_per_shard, self.passes));
        let of = |text: &str| Fingerprint::of_bytes(text.as_bytes());
        let fingerprints = Fingerprints { teacher: of(self.teacher), tokenizer: of(TOKENIZER), corpus: of(self.corpus), run: of(&run) };
        let mut shards = Vec::new();
        for pass in 0..self.passes {
            for shard in 0..u64::from(self.shards_per_pass) {
                let ids = shard * self.rows_per_shard..(shard + 1) * self.rows_per_shard;
                let document = |id: u64| id / self.sequences_per_document;
                let records: Vec<Record> = ids.map(|id| Record { document_id: document(id), ..answered(&spec, id, pass) }).collect();
                shards.push(write_shard(&directory, shards.len() as u32, &spec, &fingerprints, &records, 1).unwrap());
            }
        }
        let counts = CorpusCounts { sequences: u64::from(self.shards_per_pass) * self.rows_per_shard, ..CorpusCounts::default() };
        let teacher = TeacherSummary {
            parameters: 1000,
            layers: 2,
            hidden_size: 16,
            provider: "cpu".into(),
            logits_output: "logits".into(),
            hidden_tensors: BTreeMap::new(),
            pooling: (self.task == Task::SentenceEmbedding).then_some(Pooling::Mean),
            normalized: self.task == Task::SentenceEmbedding,
        };
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            writer: "test".into(),
            spec,
            fingerprints,
            settings: BTreeMap::new(),
            teacher,
            counts: Some(counts),
            shards,
            complete: true,
        };
        manifest.write(&directory).unwrap();
        directory
    }

    fn spec(&self) -> TargetSpec {
        let unchecked = UncheckedTargetSpec::new(self.task, VOCABULARY);
        let classes = match (self.task, self.problem) {
            (Task::SequenceClassification, Problem::Regression) => Some(1),
            (Task::SequenceClassification | Task::TokenClassification, _) => Some(3),
            _ => None,
        };
        let unchecked = UncheckedTargetSpec {
            classes,
            problem: (self.task == Task::SequenceClassification).then_some(self.problem),
            embedding_size: (self.task == Task::SentenceEmbedding).then_some(self.embedding_size),
            top_k: if self.task.is_language_model() { TOP_K } else { classes.unwrap_or(0) },
            temperatures: self.temperatures.clone(),
            hidden_layers: self.hidden_layers.clone(),
            hidden_size: if self.hidden_layers.is_empty() { 0 } else { 16 },
            token_type_ids: false,
            precision: Precision::Float16,
            ..unchecked
        };
        TargetSpec::try_from(unchecked).unwrap()
    }
}

/// The row of a sequence. For the tasks other than masked-lm nothing is masked, and the first number says everything: a sequence's class is
/// the third of the vocabulary that it lies in, a token's the rest of its id by 3, a vector points where it stands. Odd sequences have no gold answer.
fn answered(spec: &TargetSpec, sequence_id: u64, pass: u16) -> Record {
    let masked = record(spec, sequence_id, pass);
    if spec.task() == Task::MaskedLm {
        return masked;
    }
    let (first, length) = (RandomStream::new(2, Purpose::Masking, &[sequence_id]).below(20) as u32, masked.input_ids.len());
    let number = |place: usize| 4 + (first + place as u32) % (VOCABULARY - 4);
    let input_ids: Vec<u32> = (0..length)
        .map(|i| {
            if i == 0 {
                2
            } else if i + 1 == length {
                3
            } else {
                number(i - 1)
            }
        })
        .collect();
    let labelled = sequence_id.is_multiple_of(2);
    let class = (first / 7) as usize;
    let mut record =
        Record { sequence_id, document_id: sequence_id, pass, input_ids, hidden_states: masked.hidden_states, ..Record::default() };
    let near = |truth: usize, classes: usize| (0..classes).map(move |id| 5.0 - 2.5 * (id.abs_diff(truth) as f64).min(4.0)).collect();
    let logits: Vec<Vec<f64>> = match spec.task() {
        Task::SequenceClassification => {
            record.positions = vec![0];
            let (gold, numbers): (i32, Vec<f64>) = match spec.problem() {
                Some(Problem::SingleLabel) => (class as i32, near(class, 3)),
                Some(Problem::MultiLabel) => (-1, (0..3).map(|id| if id <= class { 3.0 } else { -3.0 }).collect()),
                _ => (-1, vec![f64::from(first) / 10.0]),
            };
            if gold >= 0 {
                record.labels = vec![if labelled { gold } else { IGNORED_LABEL }];
            } else if labelled {
                let gold = |logit: &f64| if spec.classes() == 1 { *logit as f32 } else { f32::from(u8::from(*logit > 0.0)) };
                record.label_values = numbers.iter().map(gold).collect();
            }
            vec![numbers]
        }
        Task::TokenClassification => {
            record.positions = (1..length as u16 - 1).collect();
            let class = |id: &u32| (id % 3) as usize;
            let gold = |i: usize| if labelled && i > 0 && i + 1 < length { class(&record.input_ids[i]) as i32 } else { IGNORED_LABEL };
            record.labels = (0..length).map(gold).collect();
            record.input_ids[1..length - 1].iter().map(|id| near(class(id), 3)).collect()
        }
        Task::CausalLm => {
            record.positions = (0..length as u16 - 1).collect();
            record.labels = record.input_ids[1..].iter().map(|id| *id as i32).chain([IGNORED_LABEL]).collect();
            record.input_ids[1..].iter().map(|id| near(*id as usize, VOCABULARY as usize)).collect()
        }
        _ => {
            let size = spec.embedding_size();
            let value = |place: usize| (-((place as f64 - f64::from(first) * size as f64 / 20.0).powi(2)) / 4.0).exp();
            let norm = (0..size).map(|place| value(place).powi(2)).sum::<f64>().sqrt();
            record.embedding = (0..size).map(|place| (value(place) / norm) as f32).collect();
            record.label_values = if labelled { vec![1.0 - first as f32 / 20.0] } else { vec![] };
            vec![]
        }
    };
    let temperatures: Vec<f64> = spec.temperatures().iter().map(|t| f64::from(*t)).collect();
    for logits in logits {
        let targets = stored_targets(&logits, spec.top_k(), &temperatures);
        record.top_ids.extend(targets.top_ids.iter().map(|id| *id as u32));
        record.top_logits.extend(targets.top_logits.iter().map(|logit| *logit as f32));
        record.max_logit.push(targets.max_logit as f32);
        record.log_z.extend(targets.log_z.iter().map(|log_z| *log_z as f32));
    }
    record
}

/// Start, 6 to 11 consecutive numbers of which one or two are masked, end. The teacher finds the true one most likely, its neighbours next.
fn record(spec: &TargetSpec, sequence_id: u64, pass: u16) -> Record {
    let mut draws = RandomStream::new(1, Purpose::Masking, &[u64::from(pass), sequence_id]);
    let numbers = 6 + (sequence_id % 6) as usize;
    let first = RandomStream::new(2, Purpose::Masking, &[sequence_id]).below(20) as u32;
    let truth: Vec<u32> = (0..numbers as u32).map(|i| 4 + (first + i) % (VOCABULARY - 4)).collect();
    let mut record = Record { sequence_id, document_id: sequence_id, pass, ..Record::default() };
    record.input_ids = std::iter::once(2).chain(truth.iter().copied()).chain([3]).collect();
    record.labels = vec![IGNORED_LABEL; numbers + 2];
    record.positions = (1..=numbers as u16).collect();
    for _ in 0..2 {
        let position = 1 + draws.below(numbers);
        record.labels[position] = truth[position - 1] as i32;
        record.input_ids[position] = MASK;
    }
    let temperatures: Vec<f64> = spec.temperatures().iter().map(|t| f64::from(*t)).collect();
    for id in &truth {
        let far = |other: u32| f64::from(other.abs_diff(*id));
        let logits: Vec<f64> = (0..VOCABULARY).map(|other| if other < 4 { -4.0 } else { 6.0 - 2.5 * far(other).min(4.0) }).collect();
        let targets = stored_targets(&logits, TOP_K as usize, &temperatures);
        record.top_ids.extend(targets.top_ids.iter().map(|id| *id as u32));
        record.top_logits.extend(targets.top_logits.iter().map(|logit| *logit as f32));
        record.max_logit.push(targets.max_logit as f32);
        record.log_z.extend(targets.log_z.iter().map(|log_z| *log_z as f32));
    }
    for _ in spec.hidden_layers() {
        let state = |row: usize| move |column: usize| if row % 16 == column { 1.0f32 } else { 0.125 };
        record.hidden_states.push((0..numbers + 2).flat_map(|row| (0..16).map(state(row))).collect());
    }
    record
}

/// The arguments of a short run on `cache`, with `extra` appended.
pub(crate) fn arguments(cache: &Path, out: &Path, extra: &[&str]) -> Arguments {
    let mut typed = vec!["train".to_owned(), "--quiet".to_owned()];
    for (flag, value) in [("--layers", "1"), ("--batch-tokens", "128"), ("--threads", "2")] {
        if !extra.contains(&flag) {
            typed.extend([flag.to_owned(), value.to_owned()]);
        }
    }
    for (flag, path) in [("--cache", cache), ("--out", out)] {
        typed.extend([flag.to_owned(), path.display().to_string()]);
    }
    typed.extend(extra.iter().map(ToString::to_string));
    Arguments::parse_from(typed)
}
