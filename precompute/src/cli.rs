//! What can be typed. Nothing here is checked beyond its form: `config.rs` says what it means.

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Ask a teacher once: run it over a corpus and write its top-k logits, log-normalisers and hidden states to Parquet shards.
///
/// The teacher is a language model, a classifier, a tagger or a sentence encoder, exported to ONNX. A run that was stopped continues when the same command is given again.
#[derive(Clone, Debug, Parser)]
#[command(name = "precompute", version, max_term_width = 110)]
pub struct Arguments {
    /// What is read.
    #[command(flatten)]
    pub corpus: CorpusArguments,
    /// Who is asked.
    #[command(flatten)]
    pub teacher: TeacherArguments,
    /// What is asked.
    #[command(flatten)]
    pub target: TargetArguments,
    /// What is written, and how the run speaks.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Request {
    /// Make a cache.
    Precompute(Box<Arguments>),
    /// Time models.
    Time(TimeArguments),
    /// Compare caches.
    Compare(CompareArguments),
}

#[derive(Clone, Debug, Subcommand)]
enum Subcommands {
    /// Measure the forward time of ONNX models side by side
    Time(TimeArguments),
    /// Measure how far the answers of one cache are from those of another
    Compare(CompareArguments),
}

/// `precompute compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArguments {
    /// Two caches of the same rows and positions: KL(A || B) is measured.
    #[arg(value_names = ["CACHE_A", "CACHE_B"], num_args = 2, required = true)]
    pub caches: Vec<PathBuf>,
    /// What logits are divided by; a temperature that both caches store.
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    pub temperature: f32,
    /// Where to write the figures as JSON, beside the table that is printed.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `precompute time`.
#[derive(Clone, Debug, Args)]
pub struct TimeArguments {
    /// Directories that hold model.onnx, or model files; every round asks each once in turn.
    #[arg(value_name = "MODEL_DIR", required = true)]
    pub models: Vec<PathBuf>,
    /// Sequences of a batch, one measurement for each.
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', default_value = "1,16")]
    pub batch: Vec<usize>,
    /// Tokens of a sequence.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub length: usize,
    /// Processor threads of each model; by default all cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Timed rounds, after 3 that warm up.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub rounds: usize,
    /// Where to write the figures as JSON, beside the table that is printed.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The ONNX Runtime shared library, found as for a cache.
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

/// Reads a command line, whose first word is the program's name.
///
/// # Errors
/// The parser's own, which prints itself with the usage; `--help` and `--version` come back this way too.
pub fn parse(typed: impl IntoIterator<Item = OsString>) -> Result<Request, clap::Error> {
    let matches = command().try_get_matches_from(typed)?;
    if matches.subcommand().is_none() {
        return Ok(Request::Precompute(Box::new(Arguments::from_arg_matches(&matches)?)));
    }
    Ok(match Subcommands::from_arg_matches(&matches)? {
        Subcommands::Time(arguments) => Request::Time(arguments),
        Subcommands::Compare(arguments) => Request::Compare(arguments),
    })
}

/// The flags of a cache, with the subcommand beside them.
fn command() -> Command {
    Subcommands::augment_subcommands(Arguments::command()).args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
}

/// What is read.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Corpus")]
pub struct CorpusArguments {
    /// Files or directories of text, JSONL, CSV, TSV, CoNLL columns or Parquet, all but Parquet plain or compressed by gzip or zstd; a
    /// directory is read in sorted order. Required.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub corpus: Vec<PathBuf>,
    /// The format of every file, whatever its name says: `text`, `jsonl`, `csv`, `tsv`, `conll` or `parquet`.
    #[arg(long, value_name = "NAME")]
    pub format: Option<String>,
    /// What one document of a text file is: a `line`, or a `block` of lines up to a blank one.
    #[arg(long, value_name = "UNIT", default_value = "line")]
    pub document: String,
    /// The field or column that holds the text, in every format but plain text. A column may also be given by its number from 1.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// The field or column that holds the second text of a pair. A pair is one sequence in the tokenizer's template for pairs, or for sentence
    /// embeddings two.
    #[arg(long, value_name = "NAME")]
    pub text_pair_field: Option<String>,
    /// The field or column that holds the text as a list of words, instead of --text-field; in CoNLL files by its number (1 by default) or
    /// `last`. Text in it is split at white space.
    #[arg(long, value_name = "NAME")]
    pub words_field: Option<String>,
    /// The field or column that holds the right answer: a class by its name or id, one for each word, several of them, numbers, or the
    /// likeness of a pair. Several columns, one for each number, have commas between. Without an answer: null, nothing, -1 or -100.
    #[arg(long, value_name = "NAME[,NAME...]", value_delimiter = ',')]
    pub label_field: Vec<String>,
    /// What stands between the fields of CSV and TSV files: one character, or `tab`. By default a comma in .csv and a tab in .tsv files.
    #[arg(long, value_name = "CHARACTER")]
    pub delimiter: Option<String>,
    /// What stands around fields of CSV and TSV files that hold a delimiter or a line end: one character, or `none` where quotes are text.
    #[arg(long, value_name = "CHARACTER", default_value = "\"")]
    pub quote: String,
    /// The first line of CSV and TSV files is a record: their columns have numbers, from 1, and no names.
    #[arg(long)]
    pub no_header: bool,
    /// Malformed records that are skipped and counted; by default the first one ends the run with its file and line.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub skip_bad: u64,
    /// Read the documents in a random order: the same for the same seed and corpus. It takes as much disk, in --out, as the texts.
    #[arg(long, value_name = "NUMBER")]
    pub shuffle_seed: Option<u64>,
    /// Documents left out at the beginning, after shuffling.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub skip: u64,
    /// Documents taken, at most, after those skipped; by default all.
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u64>,
    /// Tokens of the longest sequence, special tokens included.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub max_length: usize,
    /// Tokens of the shortest sequence kept, special tokens included; shorter documents are dropped and counted. 12 by default for masked-lm,
    /// for the other tasks whatever has a token to ask about.
    #[arg(long, value_name = "TOKENS")]
    pub min_tokens: Option<usize>,
    /// What becomes of a document longer than --max-length: `cut` into several sequences, or `truncate` to its first. By default cut; for
    /// answers about whole sequences, and for pairs, truncated.
    #[arg(long, value_name = "WHAT")]
    pub long_documents: Option<String>,
    /// Tokens that each sequence of a document that is cut repeats of the one before it. Gold answers count where they come first; a causal
    /// language model is asked about the repeated ones only once.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub stride: usize,
    /// For causal-lm: put the documents one after the other and cut them to full length. Attention and positions cross from one to the next,
    /// as in the pre-training of such models; no token is asked to foretell another document.
    #[arg(long)]
    pub pack: bool,
    /// Share of the non-special tokens that are masked: of them 80 % by the mask, 10 % by a random token, 10 % left. 0.15 by default; masks are
    /// for masked-lm alone.
    #[arg(long, value_name = "SHARE")]
    pub mask_probability: Option<f64>,
    /// Draw rare tokens more often, with weight count^-EXPONENT (DistilBERT: 0.7). Off by default; needs a count of the whole corpus.
    #[arg(long, value_name = "EXPONENT")]
    pub mask_smoothing: Option<f64>,
    /// Mask whole words: a word's tokens are masked together or not at all.
    #[arg(long)]
    pub whole_word: bool,
    /// Masked copies of the corpus, each with its own draw. The teacher is asked about each.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub passes: u16,
    /// The seed of every draw; a draw depends on seed, pass and sequence alone.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
}

/// Who is asked.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Teacher")]
pub struct TeacherArguments {
    /// A directory with model.onnx, config.json and tokenizer.json, as Optimum exports it (or with onnx/model.onnx), or a model file (with
    /// --tokenizer). Required.
    #[arg(long, value_name = "PATH")]
    pub teacher: Option<PathBuf>,
    /// The tokenizer.json to use; by default the teacher directory's.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// What the teacher answers: `masked-lm`, `sequence-classification`, `token-classification`, `sentence-embedding` or `causal-lm`. By default
    /// what its outputs and its config.json say.
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// How a sentence encoder's token states become one vector, where there is no modules.json that says so: `mean`, `cls` or `max`.
    #[arg(long, value_name = "NAME")]
    pub pooling: Option<String>,
    /// Where ONNX Runtime computes: `cpu`, or `cuda` in a build with that feature, whose ONNX Runtime must have that provider.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub provider: String,
    /// Processor threads for the teacher, and for the work around it; by default all cores. Each thread has a session of its own where the teacher is
    /// small beside the memory; else some share one. A run may be continued with another number:
    /// the demo's teacher gives the same bits on 1 to 8. A teacher whose sums are split by thread could differ in a last bit.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Tokens of one batch, padding included. By default the size with which this machine's teacher is fastest, measured for at most 3 seconds at
    /// the start and kept in the manifest; a run that goes on takes what the cache was begun with.
    #[arg(long, value_name = "TOKENS")]
    pub batch_tokens: Option<usize>,
    /// Memory for batches and shards, beside the model, such as 2GB: no batch is larger than it allows. Copies of the model, for more sessions than one,
    /// take an eighth of it at most, beside it too. By default half of what the machine, or the control group, has.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// The ONNX Runtime shared library. Without it: ORT_DYLIB_PATH, beside the executable, an installed Python onnxruntime, the system.
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

/// What is asked.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArguments {
    /// Largest logits that a language model's positions store: 64 by default, cut to the vocabulary, with a note. Classifiers store all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Temperatures to store log-normalisers for, such as `2` (the default) or `1,2,4`; the first scales the stored logits. 1 is always stored,
    /// and alone where the answers are no logits.
    #[arg(long, value_name = "T[,T...]")]
    pub temperature: Option<String>,
    /// Hidden states to store: `last`, `none`, `all`, or layers such as `0,6,12` (0 is the embedding output). By default `last` for masked-lm,
    /// `none` for the other tasks.
    #[arg(long, value_name = "LAYERS")]
    pub hidden_layers: Option<String>,
    /// The tensor of the graph that is a layer's hidden state, where it cannot be found; may be given several times.
    #[arg(long, value_name = "LAYER=NAME")]
    pub hidden_tensor: Vec<String>,
    /// Positions with targets: `tokens` (all but special ones), `masked`, `all`, or a share such as `0.3`: the masked ones and as many
    /// others, drawn at random, as make it up; for causal-lm `next`, `all` or a share. By default `tokens` or `next`; answers for whole
    /// sequences have no positions.
    #[arg(long, value_name = "RULE")]
    pub positions: Option<String>,
    /// Rounding of stored logits and hidden states: `float16` or `float32`.
    #[arg(long, value_name = "NAME", default_value = "float16")]
    pub precision: String,
}

/// What is written, and how the run speaks.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArguments {
    /// The cache directory: created, or continued where the same settings began it. Required, but for --dry-run.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Sequences of one shard; what a stopped run can lose.
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    pub shard_sequences: usize,
    /// Read the corpus, ask the teacher about a sample, print what a run would cost, write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// No progress and no notes; errors and the summary only.
    #[arg(long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn models_are_timed_by_a_subcommand() {
        let typed = "precompute time teacher student --batch 1,8 --rounds 2".split_whitespace().map(OsString::from);
        let Request::Time(time) = parse(typed).expect("a valid line") else { panic!("a subcommand") };
        assert_eq!((time.models.len(), time.batch, time.length, time.rounds), (2, vec![1, 8], 128, 2));
        assert!(parse(["precompute", "time"].map(OsString::from)).is_err(), "no model to time");
    }

    #[test]
    fn caches_are_compared_by_a_subcommand() {
        let typed = |line: &str| parse(line.split_whitespace().map(OsString::from));
        let Ok(Request::Compare(compare)) = typed("precompute compare a b --out c.json") else { panic!("a subcommand") };
        assert_eq!((compare.caches.len(), compare.temperature, compare.out), (2, 1.0, Some(PathBuf::from("c.json"))));
        assert!(typed("precompute compare a").is_err() && typed("precompute compare a b c").is_err());
    }

    #[test]
    fn corpus_takes_several_paths() {
        let arguments = Arguments::try_parse_from(["precompute", "--corpus", "a", "b", "--teacher", "t"]).expect("a valid line");
        assert_eq!(arguments.corpus.corpus, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(arguments.teacher.teacher, Some(PathBuf::from("t")));
    }
}
