//! What was typed -> what it means. [`Config::check`] is the only way to a configuration that can run; every refusal names the flag,
//! what it accepts, what it was given and what to type instead. What only the teacher can tell (its vocabulary, its longest input) is
//! checked by [`Config::target_spec`], before any work; what a flag means for the teacher's task is in [`by_task`].

pub mod by_task;
mod corpus;

use crate::cli::{Arguments, CorpusArguments, TargetArguments, TeacherArguments};
use crate::corpus::CorpusOptions;
use crate::teacher::{HiddenLayers, PROVIDERS, Purpose};
use crate::window::WindowOptions;
pub use by_task::TeacherFacts;
use logitcache::error::{Error, Result};
use logitcache::target::{Pooling, PositionRule, Precision, Task};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Share of the tokens that are masked, unless --mask-probability says otherwise (Devlin et al. 2018).
pub const DEFAULT_MASK_PROBABILITY: f64 = 0.15;

/// A run whose flags agree with each other.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Directory of the export, or its model file.
    pub teacher: PathBuf,
    /// `tokenizer.json`, where it is not the teacher directory's.
    pub tokenizer: Option<PathBuf>,
    /// The runtime's library, where it was named.
    pub onnxruntime: Option<PathBuf>,
    /// What the user says of the teacher.
    pub purpose: Purpose,
    /// Execution provider.
    pub provider: String,
    /// Threads of the teacher, and of the work around it.
    pub threads: usize,
    /// Tokens of a batch, padding included, where they were typed; at least the longest sequence.
    pub batch_tokens: Option<usize>,
    /// Bytes for batches and shards, where they were typed.
    pub memory: Option<u64>,
    /// Files and directories, in the order typed.
    pub corpus: Vec<PathBuf>,
    /// How they are read.
    pub reading: CorpusOptions,
    /// How documents are cut.
    pub windows: WindowOptions,
    /// Share of non-special tokens masked, in (0, 1].
    pub mask_probability: f64,
    /// Exponent of DistilBERT's smoothing.
    pub mask_smoothing: Option<f64>,
    /// Whether words are masked whole.
    pub whole_word: bool,
    /// Masked copies of the corpus, at least 1.
    pub passes: u16,
    /// The seed of every draw.
    pub seed: u64,
    /// Flags of masking that were typed; masks are for masked-lm alone.
    pub masking_flags: Vec<&'static str>,
    /// k as asked for; [`Config::target_spec`] cuts it to the vocabulary.
    pub top_k: Option<u32>,
    /// Temperatures in stored order: as asked for, then 1 if it was not among them.
    pub temperatures: Option<Vec<f32>>,
    /// Positions with targets, where they were named: see [`Config::position_rule`].
    pub positions: Option<PositionRule>,
    /// Hidden states asked for.
    pub hidden_layers: HiddenLayers,
    /// Tensors named by hand.
    pub hidden_tensors: BTreeMap<u32, String>,
    /// Rounding of what is stored.
    pub precision: Precision,
    /// The cache directory; none only in a dry run.
    pub out: Option<PathBuf>,
    /// Sequences of a shard.
    pub shard_sequences: usize,
    /// Whether nothing is to be written.
    pub dry_run: bool,
    /// Whether progress and notes are silenced.
    pub quiet: bool,
}

impl Config {
    /// Gives the typed arguments their meaning. `cores` is the default number of threads.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first flag, or pair of flags, that cannot be run.
    pub fn check(arguments: Arguments, cores: usize) -> Result<Self> {
        let Arguments { corpus, teacher, target, output } = arguments;
        corpus::check(&corpus)?;
        check_teacher(&teacher, corpus.max_length)?;
        at_least_one("--shard-sequences", output.shard_sequences)?;
        at_least_one("--top-k", target.top_k.map_or(1, |k| k as usize))?;
        let out = output.out.filter(|out| !out.as_os_str().is_empty());
        if out.is_none() && !output.dry_run {
            return Err(Error::usage("--out", "the directory of the cache", "nothing", "add --out DIR, or --dry-run to write nothing"));
        }
        out.as_deref().map_or(Ok(()), |out| corpus::expect_outside(&corpus.corpus, out))?;
        let teacher_path = teacher.teacher.filter(|path| !path.as_os_str().is_empty());
        let teacher_path = teacher_path
            .ok_or_else(|| Error::usage("--teacher", "the directory of an ONNX export, or a model file", "nothing", "add --teacher DIR"))?;
        let hidden_layers = target.hidden_layers.as_deref().map_or(Ok(HiddenLayers::ByTask), hidden_layers)?;
        let masking_flags = masking_flags(&corpus);
        let purpose =
            Purpose { task: teacher.task.as_deref().map(task).transpose()?, pooling: teacher.pooling.as_deref().map(pooling).transpose()? };
        Ok(Self {
            teacher: teacher_path,
            tokenizer: teacher.tokenizer,
            onnxruntime: teacher.onnxruntime,
            purpose,
            provider: teacher.provider,
            threads: teacher.threads.unwrap_or(cores.max(1)),
            batch_tokens: teacher.batch_tokens,
            memory: teacher.memory.as_deref().map(memory).transpose()?,
            reading: corpus::reading(&corpus, out.as_deref().filter(|_| !output.dry_run))?,
            windows: corpus::windows(&corpus)?,
            corpus: corpus.corpus,
            masking_flags,
            mask_probability: corpus.mask_probability.unwrap_or(DEFAULT_MASK_PROBABILITY),
            mask_smoothing: corpus.mask_smoothing,
            whole_word: corpus.whole_word,
            passes: corpus.passes,
            seed: corpus.seed,
            top_k: target.top_k,
            temperatures: target.temperature.as_deref().map(temperatures).transpose()?,
            positions: target.positions.as_deref().map(position_rule).transpose()?,
            hidden_tensors: hidden_tensors(&target, &hidden_layers)?,
            hidden_layers,
            precision: precision(&target.precision)?,
            out,
            shard_sequences: output.shard_sequences,
            dry_run: output.dry_run,
            quiet: output.quiet,
        })
    }
}

fn at_least_one(flag: &str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::usage(flag, "at least 1", "0", "type a larger number, or leave the flag out for its default"))
}

fn check_teacher(teacher: &TeacherArguments, max_length: usize) -> Result<()> {
    if !PROVIDERS.contains(&teacher.provider.as_str()) {
        let expected = PROVIDERS.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
        let remedy = "leave the flag out, or build with `--features cuda` for an NVIDIA GPU";
        return Err(Error::usage("--provider", expected, format!("`{}`", teacher.provider), remedy));
    }
    if let Some(threads) = teacher.threads {
        at_least_one("--threads", threads)?;
    }
    if let Some(batch_tokens) = teacher.batch_tokens.filter(|tokens| *tokens < max_length) {
        let expected = format!("at least one sequence, the {max_length} of --max-length");
        return Err(Error::usage("--batch-tokens", expected, batch_tokens.to_string(), "raise it, or lower --max-length"));
    }
    Ok(())
}

fn memory(typed: &str) -> Result<u64> {
    crate::memory::parse(typed)
        .ok_or_else(|| Error::usage("--memory", "a size such as 2GB or 800MB", format!("`{typed}`"), "type one, or leave the flag out"))
}

fn precision(typed: &str) -> Result<Precision> {
    match typed {
        "float16" => Ok(Precision::Float16),
        "float32" => Ok(Precision::Float32),
        _ => Err(Error::usage("--precision", "`float16` or `float32`", format!("`{typed}`"), "type one of the two")),
    }
}

fn temperatures(typed: &str) -> Result<Vec<f32>> {
    let refuse = |found: String| Error::usage("--temperature", "distinct numbers above 0", found, "type them as in --temperature 1,2,4");
    let mut temperatures: Vec<f32> = Vec::new();
    for part in typed.split(',') {
        let temperature = part.trim().parse::<f32>().map_err(|_| refuse(format!("`{part}`")))?;
        if !(temperature.is_finite() && temperature > 0.0) || temperatures.contains(&temperature) {
            return Err(refuse(format!("`{part}` in `{typed}`")));
        }
        temperatures.push(temperature);
    }
    if !temperatures.contains(&1.0) {
        temperatures.push(1.0);
    }
    Ok(temperatures)
}

fn position_rule(typed: &str) -> Result<PositionRule> {
    let share = match typed {
        "tokens" => return Ok(PositionRule::Tokens),
        "masked" => return Ok(PositionRule::Masked),
        "all" => return Ok(PositionRule::All),
        "next" => return Ok(PositionRule::Next),
        share => share.parse::<f32>().ok().filter(|share| *share > 0.0 && *share <= 1.0),
    };
    share.map(PositionRule::Share).ok_or_else(|| {
        let expected = "`tokens`, `masked`, `all`, `next`, or a share above 0 and at most 1";
        Error::usage("--positions", expected, format!("`{typed}`"), "type one of them")
    })
}

fn task(typed: &str) -> Result<Task> {
    typed
        .parse()
        .map_err(|expected: String| Error::usage("--task", expected, format!("`{typed}`"), "type one of them, or leave the flag out"))
}

fn pooling(typed: &str) -> Result<Pooling> {
    match typed {
        "mean" => Ok(Pooling::Mean),
        "cls" => Ok(Pooling::Cls),
        "max" => Ok(Pooling::Max),
        _ => Err(Error::usage("--pooling", "`mean`, `cls` or `max`", format!("`{typed}`"), "type one of the three")),
    }
}

/// The flags that only masks have a use for.
fn masking_flags(corpus: &CorpusArguments) -> Vec<&'static str> {
    let flags = [
        ("--mask-probability", corpus.mask_probability.is_some()),
        ("--mask-smoothing", corpus.mask_smoothing.is_some()),
        ("--whole-word", corpus.whole_word),
        ("--passes", corpus.passes > 1),
    ];
    flags.into_iter().filter(|(_, typed)| *typed).map(|(flag, _)| flag).collect()
}

fn hidden_layers(typed: &str) -> Result<HiddenLayers> {
    match typed {
        "none" => return Ok(HiddenLayers::None),
        "last" => return Ok(HiddenLayers::Last),
        "all" => return Ok(HiddenLayers::All),
        _ => {}
    }
    let layers = typed.split(',').map(|part| part.trim().parse::<u32>()).collect::<std::result::Result<Vec<_>, _>>();
    let mut layers = layers.map_err(|_| {
        let expected = "`last`, `none`, `all`, or layers with commas between";
        Error::usage("--hidden-layers", expected, format!("`{typed}`"), "type them as in --hidden-layers 0,6,12")
    })?;
    layers.sort_unstable();
    if let Some(pair) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::usage("--hidden-layers", "each layer once", format!("{} twice", pair[0]), "leave one of them out"));
    }
    Ok(HiddenLayers::List(layers))
}

fn hidden_tensors(target: &TargetArguments, layers: &HiddenLayers) -> Result<BTreeMap<u32, String>> {
    let mut tensors = BTreeMap::new();
    for typed in &target.hidden_tensor {
        let parts = typed.split_once('=').and_then(|(layer, name)| Some((layer.trim().parse::<u32>().ok()?, name.trim())));
        let Some((layer, name)) = parts.filter(|(_, name)| !name.is_empty()) else {
            let remedy = "type it as in --hidden-tensor 6=/encoder/layer.5/output/LayerNorm/Add_1_output_0";
            return Err(Error::usage("--hidden-tensor", "a layer, `=` and a tensor's name", format!("`{typed}`"), remedy));
        };
        if *layers == HiddenLayers::None {
            let found = format!("`{typed}` with --hidden-layers none");
            return Err(Error::usage("--hidden-tensor", "a layer that is stored", found, "leave one of the two flags out"));
        }
        if tensors.insert(layer, name.to_owned()).is_some() {
            return Err(Error::usage("--hidden-tensor", "each layer once", format!("{layer} twice"), "leave one of them out"));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
