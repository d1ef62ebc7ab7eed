//! What was typed, checked and resolved. [`Config::check`] is the only way to a [`Config`], and a run accepts nothing else: whatever can be
//! refused is refused here, before any work.

mod hidden;
mod memory;
mod resolved;
mod settings;
mod shape;
mod task;

pub use resolved::RESOLVED_FILE;

use crate::batcher::{Duration, Targets};
use crate::cli::{Arguments, OptimisationArguments};
use crate::device::Placement;
use crate::kernels::Precision;
use crate::loss::Objective;
use crate::loss::hidden_map::HiddenPair;
use crate::student::FirstWeights;
use crate::student::config::StudentConfig;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The share of the documents held out where nothing is said.
pub const DEFAULT_EVAL_FRACTION: f64 = 0.02;

/// Epochs where nothing is said.
pub const DEFAULT_EPOCHS: u64 = 3;

/// The folder of a cache that holds the teacher's configuration and tokenizer files.
pub const TEACHER_FOLDER: &str = "teacher";

/// What the student is measured on.
#[derive(Clone, Debug)]
pub enum EvaluationSource {
    /// Nothing: the share held out is 0.
    Nothing,
    /// A share of the training cache's documents.
    HeldOut(f64),
    /// Another cache of the same teacher.
    Cache(Cache),
}

/// The first weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initialisation {
    /// Drawn from the seed.
    Random,
    /// Copied from a teacher's file.
    Teacher {
        /// A `.safetensors` file.
        path: PathBuf,
        /// How; the layers are named.
        first: FirstWeights,
    },
}

/// A run that can be made. See [`crate::cli`] for the flags behind the fields.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) cache: Cache,
    pub(crate) evaluation: EvaluationSource,
    pub(crate) out: PathBuf,
    pub(crate) student: StudentConfig,
    pub(crate) initialisation: Initialisation,
    pub(crate) targets: Targets,
    pub(crate) temperature: f32,
    pub(crate) objective: Objective,
    /// Which hidden states are compared; none where no part of the objective does.
    pub(crate) hidden_pairs: Vec<HiddenPair>,
    /// Steps from one over the whole vocabulary to the next.
    pub(crate) full_vocabulary_every: u64,
    pub(crate) duration: Duration,
    pub(crate) batch_tokens: u64,
    pub(crate) accumulate: u64,
    /// What the products of the linear maps read.
    pub(crate) precision: Precision,
    pub(crate) learning_rate: f64,
    pub(crate) warmup: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    /// What makes the steps, and where.
    pub(crate) placement: Placement,
    pub(crate) log_every: u64,
    pub(crate) eval_every: Option<u64>,
    pub(crate) checkpoint_every: Option<u64>,
    /// Last checkpoints that stay.
    pub(crate) keep: usize,
    /// Whether a run without a checkpoint to go on from is refused.
    pub(crate) resume: bool,
    /// Steps that may be skipped since their loss or gradient is not finite.
    pub(crate) skip_nonfinite: u64,
    pub(crate) quiet: bool,
    /// Everything above that determines the student, by flag name, and the fingerprints of what is read: two runs with the same settings
    /// are the same run. [`crate::output::MAY_CHANGE`] lists those that may change when a run goes on.
    pub(crate) settings: BTreeMap<String, String>,
    /// Every flag with its default resolved, as TOML.
    resolved: String,
}

impl Config {
    /// Says what the arguments mean.
    ///
    /// # Errors
    /// [`Error::Usage`] for a flag, or a combination of flags and cache, that cannot be trained; [`Error::Data`] and the like for a cache
    /// or an initial file that cannot be read.
    pub fn check(arguments: &Arguments) -> Result<Self> {
        let Arguments { data, student: typed_shape, objective: taught, optimisation, checkpoints, machine, .. } = arguments;
        let placement = Placement::named(&machine.device)?;
        check_numbers(optimisation)?;
        let precision = Precision::check(&optimisation.dtype, placement.is_kernels())?;
        check_vocabulary_steps(taught.full_vocabulary_every, &placement)?;
        let counts = [
            ("--full-vocabulary-every", Some(taught.full_vocabulary_every)),
            ("--log-every", Some(machine.log_every)),
            ("--eval-every", machine.eval_every),
            ("--checkpoint-every", checkpoints.checkpoint_every),
            ("--keep", Some(checkpoints.keep)),
        ];
        for (flag, count) in counts {
            at_least_one(flag, count.unwrap_or(1))?;
        }
        let threads = machine.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        at_least_one("--threads", threads as u64)?;
        let typed: Option<Objective> = taught.loss.as_deref().map(str::parse).transpose()?;
        let cache = Cache::open(&data.cache)?;
        check_teacher_files(&cache)?;
        let objective = task::objective(typed, &cache)?;
        let temperature = taught.temperature.unwrap_or_else(|| cache.spec().logits_temperature());
        let targets = Targets::new(cache.spec(), temperature, false, taught.top_k)?;
        let student = shape::student_config(typed_shape, &cache)?;
        memory::check_memory(&student, typed_shape)?;
        let hidden_pairs = hidden::hidden_pairs(taught.hidden_map.as_deref(), &objective, &cache, student.num_hidden_layers)?;
        let evaluation = evaluation_source(data.eval_cache.as_deref(), data.eval_fraction, &cache)?;
        let initialisation = shape::initialisation(typed_shape, &student, &cache, optimisation.seed)?;
        let duration = duration(optimisation)?;
        let mut config = Self {
            cache,
            evaluation,
            out: data.out.clone(),
            student,
            initialisation,
            targets,
            temperature,
            objective,
            hidden_pairs,
            full_vocabulary_every: taught.full_vocabulary_every,
            duration,
            batch_tokens: optimisation.batch_tokens,
            accumulate: optimisation.accumulate,
            precision,
            learning_rate: optimisation.learning_rate,
            warmup: optimisation.warmup,
            weight_decay: optimisation.weight_decay,
            clip: optimisation.clip,
            seed: optimisation.seed,
            threads,
            placement,
            log_every: machine.log_every,
            eval_every: machine.eval_every,
            checkpoint_every: checkpoints.checkpoint_every,
            keep: usize::try_from(checkpoints.keep).unwrap_or(usize::MAX),
            resume: checkpoints.resume,
            skip_nonfinite: checkpoints.skip_nonfinite,
            quiet: machine.quiet,
            settings: BTreeMap::new(),
            resolved: String::new(),
        };
        config.settings = config.resolve_settings()?;
        config.resolved = config.resolve(arguments)?;
        Ok(config)
    }

    /// The same run with its steps made elsewhere: for those who call the library. The flags choose between the kernels and a GPU.
    pub fn with_placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The folder with the teacher's configuration and tokenizer files.
    pub fn teacher_folder(&self) -> PathBuf {
        self.cache.directory().join(TEACHER_FOLDER)
    }
}

fn at_least_one(flag: &str, value: u64) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::usage(flag, "at least 1", "0", "leave it out for the default")) }
}

/// Steps that leave most of the vocabulary out are the kernels' alone.
fn check_vocabulary_steps(full_vocabulary_every: u64, placement: &Placement) -> Result<()> {
    if full_vocabulary_every <= 1 || placement.is_kernels() {
        return Ok(());
    }
    let (expected, found) = (format!("1 with --device {placement}"), full_vocabulary_every.to_string());
    Err(Error::usage("--full-vocabulary-every", expected, found, "leave it out, or use --device cpu"))
}

fn check_numbers(optimisation: &OptimisationArguments) -> Result<()> {
    let OptimisationArguments { batch_tokens, accumulate, learning_rate, warmup, weight_decay, clip, .. } = optimisation;
    at_least_one("--batch-tokens", *batch_tokens)?;
    at_least_one("--accumulate", *accumulate)?;
    if batch_tokens.checked_mul(*accumulate).is_none_or(|tokens| tokens > u64::from(u32::MAX)) {
        let found = format!("{batch_tokens} x {accumulate}");
        return Err(Error::usage("--batch-tokens", "at most 4294967295 tokens a step", found, "use a smaller step"));
    }
    let above_zero = |value: f64| value.is_finite() && value > 0.0;
    let checks = [
        ("--learning-rate", "a finite value above 0", *learning_rate, above_zero(*learning_rate)),
        ("--warmup", "a share from 0 to 1", *warmup, (0.0..=1.0).contains(warmup)),
        ("--weight-decay", "a finite value of at least 0", *weight_decay, weight_decay.is_finite() && *weight_decay >= 0.0),
        ("--clip", "a finite value above 0", *clip, above_zero(*clip)),
    ];
    match checks.iter().find(|check| !check.3) {
        None => Ok(()),
        Some((flag, expected, found, _)) => Err(Error::usage(*flag, *expected, found.to_string(), "leave it out for the default")),
    }
}

fn duration(optimisation: &OptimisationArguments) -> Result<Duration> {
    let duration = match (optimisation.epochs, optimisation.steps) {
        (Some(epochs), Some(steps)) => {
            return Err(Error::usage("--epochs", "no --steps beside it", format!("{epochs} with --steps {steps}"), "give one of the two"));
        }
        (None, Some(steps)) => Duration::Steps(steps),
        (epochs, None) => Duration::Epochs(epochs.unwrap_or(DEFAULT_EPOCHS)),
    };
    match duration {
        Duration::Epochs(count) => at_least_one("--epochs", count)?,
        Duration::Steps(count) => at_least_one("--steps", count)?,
    }
    Ok(duration)
}

/// The student's shape comes from the teacher's configuration, and its directory gets the tokenizer: better missed now than after the training.
fn check_teacher_files(cache: &Cache) -> Result<()> {
    let folder = cache.directory().join(TEACHER_FOLDER);
    for (name, expected) in [("config.json", "the teacher's configuration"), ("tokenizer.json", "the teacher's tokenizer")] {
        if !folder.join(name).is_file() {
            return Err(Error::data(folder, name, expected, "no such file", "copy it there, or run precompute again"));
        }
    }
    check_tokenizer(cache)
}

/// Refuses a cache whose copy of the tokenizer is no longer that by which it was made.
///
/// # Errors
/// [`Error::Data`] with both digests; [`Error::Io`] where there is none.
pub(crate) fn check_tokenizer(cache: &Cache) -> Result<()> {
    let path = cache.directory().join(TEACHER_FOLDER).join("tokenizer.json");
    let (expected, found) = (cache.manifest().fingerprints.tokenizer, Fingerprint::of_file(&path)?);
    if found != expected {
        let (expected, remedy) = (format!("{expected}, as manifest.json notes"), "copy the teacher's own there, or run precompute again");
        return Err(Error::data(path, "SHA-256", expected, found.to_string(), remedy));
    }
    Ok(())
}

fn evaluation_source(eval_cache: Option<&Path>, fraction: Option<f64>, cache: &Cache) -> Result<EvaluationSource> {
    let Some(directory) = eval_cache else {
        let fraction = fraction.unwrap_or(DEFAULT_EVAL_FRACTION);
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::usage(
                "--eval-fraction",
                "a share of at least 0 and below 1",
                fraction.to_string(),
                "use 0.02, or 0 for none",
            ));
        }
        return Ok(if fraction == 0.0 { EvaluationSource::Nothing } else { EvaluationSource::HeldOut(fraction) });
    };
    let eval_cache = Cache::open(directory)?;
    let (training, evaluation) = (cache.manifest(), eval_cache.manifest());
    let (asked, found) = (&training.fingerprints, &evaluation.fingerprints);
    let numbers =
        // Not how many ids are stored: an evaluation uses all that its own cache has.
        |cache: &Cache| {
            let spec = cache.spec();
            let problem = spec.problem().map_or(String::new(), |problem| format!(" ({problem:?})"));
            let width = if spec.embedding_size() > 0 { spec.embedding_size() } else { spec.classes() };
            format!("task {}{problem}, {} ids, {width} values an answer", spec.task(), spec.vocabulary_size())
        };
    let comparisons = [
        ("teacher", asked.teacher.to_string(), found.teacher.to_string()),
        ("tokenizer", asked.tokenizer.to_string(), found.tokenizer.to_string()),
        ("spec", numbers(cache), numbers(&eval_cache)),
    ];
    for (field, expected, found) in comparisons {
        if expected != found {
            let remedy = "make the evaluation cache with the training cache's teacher and tokenizer";
            return Err(Error::data(directory, field, format!("the training cache's {expected}"), found, remedy));
        }
    }
    if asked.corpus == found.corpus {
        let remedy = "name a cache of other documents, or use --eval-fraction";
        return Err(Error::usage("--eval-cache", "documents that are not trained on", "the training cache's corpus", remedy));
    }
    Ok(EvaluationSource::Cache(eval_cache))
}

#[cfg(test)]
mod tests;
