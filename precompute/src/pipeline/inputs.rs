//! Everything a run reads, opened and fingerprinted before any work, and the settings that follow from it.

use super::produce;
use super::sizing::BATCH_TOKENS;
use crate::config::{Config, TeacherFacts};
use crate::corpus::{Corpus, CorpusOptions, Dialect};
use crate::task::TeacherTask;
use crate::teacher::{Prepared, Runtime, Teacher, TeacherFiles, gather, locate, prepare_for, runtime};
use crate::tokenize::DocumentTokenizer;
use crate::window::{DEFAULT_MIN_TOKENS, WindowOptions};
use logitcache::cache::manifest::{FORMAT_VERSION, Fingerprints, Manifest, TeacherSummary};
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use logitcache::target::{TargetSpec, Task};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What sequences are made from.
pub struct Source {
    /// The corpus.
    pub corpus: Corpus,
    /// The tokenizer.
    pub tokenizer: DocumentTokenizer,
    /// What the teacher is asked for.
    pub task: TeacherTask,
}

/// The open inputs of a run.
pub struct Inputs {
    /// The teacher's files.
    pub files: TeacherFiles,
    /// The loaded runtime.
    pub runtime: Runtime,
    /// The corpus and the tokenizer.
    pub source: Source,
    /// The exposed hidden states: layer -> tensor.
    pub hidden_tensors: BTreeMap<u32, String>,
    /// Files of a sentence encoder's modules, relative to the directory of its `modules.json`.
    pub module_files: Vec<PathBuf>,
}

/// Opens the inputs. The teacher's graph is prepared, not yet handed to the runtime.
///
/// # Errors
/// Those of each input: nothing is read that another one makes useless.
pub fn open(config: &Config) -> Result<(Inputs, Prepared)> {
    let corpus = Corpus::open(&config.corpus, config.reading.clone())?;
    let files = locate(&config.teacher, config.tokenizer.as_deref())?;
    let mut prepared = prepare_for(config.purpose, &files, &config.hidden_layers, &config.hidden_tensors)?;
    config.check_task(prepared.task())?;
    if gather::pays(config.position_rule(prepared.task())?, config.mask_probability) {
        prepared.gather_asked();
    }
    let task = prepared.task().clone();
    let tokenizer = DocumentTokenizer::open(&files.tokenizer, task.task)?;
    if config.whole_word && !tokenizer.splits_words() {
        let found = format!("{}, which has no pre_tokenizer: a document would be one word", files.tokenizer.display());
        return Err(Error::usage("--whole-word", "a tokenizer that splits text into words", found, "leave --whole-word out"));
    }
    if config.reading.fields.words.is_some() && !tokenizer.knows_single_words() {
        let found = format!("{}, which takes a word without a space before it for the rest of another", files.tokenizer.display());
        let remedy = "set add_prefix_space in its pre_tokenizer, as a tagger of words was trained with, or read texts with --text-field";
        return Err(Error::usage("--words-field", "a tokenizer that knows single words", found, remedy));
    }
    prepared.require_pooling()?;
    let corpus = corpus.with_labels(config.label_scheme(&task)?);
    let runtime = runtime::load(config.onnxruntime.as_deref())?;
    let hidden_tensors = prepared.hidden_tensors().clone();
    let source = Source { corpus, tokenizer, task };
    produce::windows(config, &source)?;
    let module_files = prepared.module_files().to_vec();
    Ok((Inputs { files, runtime, source, hidden_tensors, module_files }, prepared))
}

impl Inputs {
    /// What the tokenizer and the teacher's answers tell; `vocabulary_size` and the rest come from the session, or from the manifest of an
    /// earlier run with the same teacher.
    pub fn facts(&self, session: SessionFacts) -> TeacherFacts {
        TeacherFacts {
            vocabulary_size: session.vocabulary_size,
            width: session.width,
            maximum_length: session.maximum_length,
            token_type_ids: session.token_type_ids,
            hidden_layers: self.hidden_tensors.keys().copied().collect(),
            hidden_size: if self.hidden_tensors.is_empty() { 0 } else { session.hidden_size },
            tokenizer_size: self.source.tokenizer.vocabulary().len(),
            tokenizer: self.files.tokenizer.clone(),
            task: self.source.task.clone(),
        }
    }

    /// The manifest of this run before its first shard, with batches of `batch_tokens`.
    ///
    /// # Errors
    /// [`Error::Io`] where an input cannot be read.
    pub fn manifest(
        &self,
        config: &Config,
        batch_tokens: usize,
        spec: TargetSpec,
        teacher: TeacherSummary,
        content: &ContentDigests,
    ) -> Result<Manifest> {
        let settings = self.settings(config, batch_tokens, &spec);
        let writer = format!("precompute {}", env!("CARGO_PKG_VERSION"));
        let everything = json!({
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "spec": spec,
            "teacher": content.teacher,
            "tokenizer": content.tokenizer,
            "corpus": content.corpus,
        });
        let bytes = serde_json::to_vec(&everything).map_err(Error::library("describe the run of", &self.files.model))?;
        let fingerprints = Fingerprints {
            teacher: content.teacher,
            tokenizer: content.tokenizer,
            corpus: content.corpus,
            run: Fingerprint::of_bytes(&bytes),
        };
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            writer,
            spec,
            fingerprints,
            settings,
            teacher,
            counts: None,
            shards: Vec::new(),
            complete: false,
        })
    }

    /// The settings that determine the bytes, under the names that are typed.
    ///
    /// The runtime's version and the tokens of a batch are among them, since either can change the last bit of an answer. The number of threads
    /// is not: ONNX Runtime 1.32 gave the demo's teacher the same bits on 1, 2, 3, 4 and 8 threads, in one session and in several, and a run should be
    /// able to continue on a machine with more cores. Nor is whether the head is computed outside the session, which a processor without AVX2 does not do:
    /// a cache that two such machines make may have logits that differ in the last bits.
    fn settings(&self, config: &Config, batch_tokens: usize, spec: &TargetSpec) -> BTreeMap<String, Value> {
        let (special, vocabulary) = (self.source.tokenizer.special(), self.source.tokenizer.vocabulary());
        let token = |id: u32| vocabulary.get(id as usize).map_or("none", String::as_str);
        let named = [("mask", special.mask), ("pad", special.pad), ("unknown", special.unknown)];
        let mut named: BTreeMap<&str, Value> = named.into_iter().map(|(name, id)| (name, json!(id.map_or("none", token)))).collect();
        // Where files beside the tokenizer, of which its fingerprint tells nothing, change what is masked, asked about, or put between packed documents.
        if !special.beside.is_empty() {
            named.insert("beside", special.beside.iter().map(|id| token(*id)).collect());
        }
        if let Some(end) = special.end.filter(|_| config.windows.pack) {
            named.insert("end", json!(token(end)));
        }
        let hidden: BTreeMap<String, &String> = self.hidden_tensors.iter().map(|(layer, name)| (layer.to_string(), name)).collect();
        let usual_minimum = if self.source.task.task == Task::MaskedLm { DEFAULT_MIN_TOKENS } else { 0 };
        let pairs = [
            ("top-k", json!(spec.top_k())),
            ("temperature", numbers(spec.temperatures())),
            ("hidden-layers", json!(hidden)),
            ("max-length", json!(config.windows.max_length)),
            ("min-tokens", json!(config.windows.min_tokens.unwrap_or(usual_minimum))),
            ("document", json!(config.reading.document.to_string())),
            ("text-field", json!(config.reading.fields.text)),
            ("mask-probability", json!(config.mask_probability)),
            ("mask-smoothing", config.mask_smoothing.map_or(json!("off"), |exponent| json!(exponent))),
            ("whole-word", json!(config.whole_word)),
            ("positions", positions(spec)),
            ("passes", json!(config.passes)),
            ("seed", json!(config.seed)),
            ("precision", json!(spec.precision())),
            ("shard-sequences", json!(config.shard_sequences)),
            (BATCH_TOKENS, json!(batch_tokens)),
            ("provider", json!(config.provider)),
            ("onnxruntime", json!(self.runtime.version)),
            ("special-tokens", json!(named)),
        ];
        let task = &self.source.task;
        let mut settings: BTreeMap<String, Value> =
            pairs.into_iter().chain(reading(&config.reading, &config.windows)).map(|(name, value)| (name.to_owned(), value)).collect();
        if task.task == Task::MaskedLm {
            return settings;
        }
        settings.retain(|name, _| !OF_MASKED_LM.contains(&name.as_str()));
        settings.insert("task".to_owned(), json!(task.task));
        if task.task == Task::SentenceEmbedding {
            settings.retain(|name, _| !OF_LOGITS.contains(&name.as_str()));
            settings.insert("pooling".to_owned(), json!({ "pooling": task.pooling, "normalized": task.normalized }));
        } else if !task.task.is_language_model() {
            settings.insert("classes".to_owned(), json!(task.class_names));
        }
        settings
    }
}

/// Settings that only masks have.
const OF_MASKED_LM: [&str; 4] = ["mask-probability", "mask-smoothing", "passes", "whole-word"];
/// Settings that only logits have.
const OF_LOGITS: [&str; 3] = ["positions", "temperature", "top-k"];

/// What the session tells of the teacher.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts {
    /// What input ids are below.
    pub vocabulary_size: usize,
    /// Length of a row of logits, or of the vector of a sentence.
    pub width: usize,
    /// Positions the model can take.
    pub maximum_length: Option<usize>,
    /// Whether the graph takes segment ids.
    pub token_type_ids: bool,
    /// Width of a hidden state.
    pub hidden_size: usize,
}

impl SessionFacts {
    /// Those of an open session.
    pub fn of(teacher: &Teacher) -> Self {
        Self {
            vocabulary_size: teacher.vocabulary_size(),
            width: teacher.width(),
            maximum_length: teacher.maximum_length(),
            token_type_ids: teacher.has_token_type_ids(),
            hidden_size: teacher.hidden_size(),
        }
    }
}

/// Digests of what the run reads.
#[derive(Clone, Debug)]
pub struct ContentDigests {
    teacher: Fingerprint,
    tokenizer: Fingerprint,
    corpus: Fingerprint,
}

impl ContentDigests {
    /// Reads every input once, the corpus included.
    ///
    /// # Errors
    /// [`Error::Io`] where one cannot be read.
    pub fn of(inputs: &Inputs, prepared: &Prepared) -> Result<Self> {
        let (tokenizer, corpus) = (Fingerprint::of_file(&inputs.files.tokenizer)?, inputs.source.corpus.fingerprint()?);
        let mut files = prepared.model_files();
        let mut teacher = Fingerprint::of_file(files.next().unwrap_or(&inputs.files.model))?;
        for weights in files {
            teacher = Fingerprint::of_bytes(format!("{teacher}{}", Fingerprint::of_file(weights)?).as_bytes());
        }
        Ok(Self { teacher, tokenizer, corpus })
    }
}

/// The settings of the corpus that are not at their defaults. How many malformed records may be skipped is none of them: it decides whether a run
/// comes to its end, not what it writes, so that a run that one of them ended goes on when more are allowed.
fn reading(options: &CorpusOptions, windows: &WindowOptions) -> impl Iterator<Item = (&'static str, Value)> {
    let usual = CorpusOptions::default();
    let dialect = |part: fn(&Dialect) -> Value| (part(&options.dialect) != part(&usual.dialect)).then(|| part(&options.dialect));
    let settings = [
        ("text-pair-field", options.fields.pair.as_ref().map(|name| json!(name))),
        ("words-field", options.fields.words.as_ref().map(|name| json!(name))),
        ("label-field", (!options.fields.label.is_empty()).then(|| json!(options.fields.label))),
        ("format", options.format.map(|format| json!(format.name()))),
        ("delimiter", options.dialect.delimiter.map(|delimiter| json!(delimiter))),
        ("quote", dialect(|dialect| dialect.quote.map_or(json!("none"), |quote| json!(quote)))),
        ("no-header", dialect(|dialect| json!(!dialect.header))),
        ("shuffle-seed", options.shuffle_seed.map(|seed| json!(seed))),
        ("skip", (options.skip > 0).then(|| json!(options.skip))),
        ("limit", options.limit.map(|limit| json!(limit))),
        ("stride", (windows.stride > 0).then(|| json!(windows.stride))),
        ("long-documents", windows.truncate.map(|truncate| json!(if truncate { "truncate" } else { "cut" }))),
        ("pack", windows.pack.then_some(json!(true))),
    ];
    settings.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

fn positions(spec: &TargetSpec) -> Value {
    match spec.positions() {
        logitcache::target::PositionRule::Share(share) => numbers(&[share])[0].clone(),
        rule => json!(rule),
    }
}

/// Numbers as they were typed: 0.3, not the 0.30000001192092896 that a widened f32 prints.
fn numbers(values: &[f32]) -> Value {
    values.iter().map(|value| value.to_string().parse::<f64>().map_or(Value::Null, |value| json!(value))).collect()
}
