//! The flags of a training, one struct per subject.

use clap::{Args, Parser};
use serde::Serialize;
use std::path::PathBuf;

/// Distil a student from a cache of a teacher's answers.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "train", version, max_term_width = 100)]
pub struct Arguments {
    /// A TOML file of these flags, by their long names without dashes; flags that are typed win. Paths in it are relative to the working
    /// directory. OUT/run.toml of an earlier run is such a file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArguments,
    /// What is trained.
    #[command(flatten)]
    #[serde(flatten)]
    pub student: StudentArguments,
    /// What it is taught.
    #[command(flatten)]
    #[serde(flatten)]
    pub objective: ObjectiveArguments,
    /// How long and how fast.
    #[command(flatten)]
    #[serde(flatten)]
    pub optimisation: OptimisationArguments,
    /// Stopping and going on.
    #[command(flatten)]
    #[serde(flatten)]
    pub checkpoints: CheckpointArguments,
    /// Where it runs and what it says.
    #[command(flatten)]
    #[serde(flatten)]
    pub machine: MachineArguments,
}

/// What is read and where the student goes.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Data")]
pub struct DataArguments {
    /// The cache directory that precompute wrote
    #[arg(long, value_name = "DIR")]
    pub cache: PathBuf,
    /// The student's directory, new or empty; a run of the same settings is continued, a finished one reused
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A second cache of the same teacher, to measure the student on
    #[arg(long, value_name = "DIR", conflicts_with = "eval_fraction")]
    pub eval_cache: Option<PathBuf>,
    /// Without --eval-cache: the share of the documents that is held out and measured on [default: 0.02]
    #[arg(long, value_name = "SHARE")]
    pub eval_fraction: Option<f64>,
}

/// The student's shape and first weights.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Student")]
pub struct StudentArguments {
    /// Whose names and wiring the student has: distilbert, bert, roberta or albert; for next tokens llama or gpt2 [default: distilbert; the
    /// teacher's for next tokens]
    #[arg(long, value_name = "NAME")]
    pub family: Option<String>,
    /// Transformer layers
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub layers: usize,
    /// Width of the hidden states [default: the teacher's]
    #[arg(long, value_name = "N")]
    pub hidden_size: Option<usize>,
    /// Attention heads [default: the teacher's]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Heads of keys and values, for --family llama: a divisor of --heads [default: the teacher's]
    #[arg(long, value_name = "N")]
    pub key_value_heads: Option<usize>,
    /// Width inside the feed-forward blocks [default: the teacher's]
    #[arg(long, value_name = "N")]
    pub feed_forward: Option<usize>,
    /// Width of the embeddings, for --family albert [default: the hidden size with --init-from of another family; else an ALBERT teacher's, else
    /// 128 or the hidden size if that is less]
    #[arg(long, value_name = "N")]
    pub embedding_size: Option<usize>,
    /// What the feed-forward blocks and the head apply: gelu, gelu_new, relu or silu [default: the teacher's]
    #[arg(long, value_name = "NAME")]
    pub activation: Option<String>,
    /// The teacher's model.safetensors or model.onnx, or its directory, to copy first weights from; without it they are random
    #[arg(long, value_name = "FILE")]
    pub init_from: Option<PathBuf>,
    /// The teacher's layers to copy, one per student layer [default: 0,2,4,7,9,11 for 6 of 12, else evenly spaced]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = layer, requires = "init_from")]
    pub init_layers: Option<Vec<usize>>,
    /// Which hidden dimensions, heads and neurons of a wider teacher to copy: order (the leading ones) or importance (those of the largest
    /// norms) [default: order]
    #[arg(long, value_name = "NAME", requires = "init_from")]
    pub init_widths: Option<String>,
    /// How a sentence encoder's token states become one vector: mean, cls or max [default: the teacher's]
    #[arg(long, value_name = "NAME")]
    pub pooling: Option<String>,
    /// Probability of dropping an activation [default: 0.1; 0 for next tokens]
    #[arg(long, value_name = "P")]
    pub dropout: Option<f64>,
}

/// A layer's number, spaces around it or not.
fn layer(typed: &str) -> Result<usize, std::num::ParseIntError> {
    typed.trim().parse()
}

/// The loss.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Objective")]
pub struct ObjectiveArguments {
    /// Temperature of the soft targets, one that the cache holds [default: the cache's first]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// What the student is taught: a comma list of NAME=WEIGHT[:OPTION=VALUE]..., of ce (soft targets), reverse-kl, jsd (option beta, 0.5),
    /// tvd, logit-mse, mlm (masked tokens), gold (the corpus's labels, the next tokens), cos (direction of the hidden states), hidden-mse,
    /// embedding-cos and embedding-mse (a sentence encoder's vectors). Options: tail=ghost, zero,
    /// renormalised-teacher, renormalised-both or uniform (ids that are not stored); schedule=constant, linear or wsd, with end, warmup, decay
    /// [default: ce=5,mlm=2,cos=1 of a masked language model, ce=1,gold=0.5 of classes and next tokens, logit-mse=1,gold=0.5 of numbers,
    /// embedding-cos=1 of vectors, with embedding-mse=1 where their length is not 1; no gold where the cache holds no answer]
    #[arg(long, value_name = "PARTS")]
    pub loss: Option<String>,
    /// Which hidden states cos and hidden-mse compare, each a mean over the pairs: a list of STUDENT:TEACHER, such as 3:6,6:12 (0 is the embedding
    /// output, i the output of layer i), or last, first (the last or first layer of both) or even (each layer of the student, spread over the
    /// teacher's). Where the widths differ, a projection is learned beside the student and dropped with the training [default: last]
    #[arg(long, value_name = "MAP")]
    pub hidden_map: Option<String>,
    /// Stored ids to use per position, the most probable ones: as if the cache, of up to 64 ids, had been written with this --top-k
    /// [default: all]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Steps from one that counts every id of the vocabulary to the next; those between count the ids alone that their micro-batch stores or
    /// answers with, which makes them cheaper where the vocabulary is large, and an approximation. 1: every step is exact; --device cuda takes no other
    #[arg(long, value_name = "STEPS", default_value_t = 1)]
    pub full_vocabulary_every: u64,
}

/// The optimiser and its schedule.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Optimisation")]
pub struct OptimisationArguments {
    /// Times that every row of the cache is trained on; each pass of the corpus counts as rows of its own [default: 3]
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    pub epochs: Option<u64>,
    /// Optimiser steps, instead of epochs
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Tokens of a micro-batch, on average
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub batch_tokens: u64,
    /// Micro-batches of an optimiser step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub accumulate: u64,
    /// What the products of the student's linear maps read: fp32, or bf16, rounded from fp32 on the way (on a processor this needs AVX512-BF16; on
    /// a GPU what they give is rounded too). Parameters, moments and checkpoints are fp32 either way
    #[arg(long, value_name = "NAME", default_value = "fp32")]
    pub dtype: String,
    /// Largest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 5e-4)]
    pub learning_rate: f64,
    /// Share of the steps during which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    pub warmup: f64,
    /// Weight decay, of everything but biases and LayerNorm
    #[arg(long, value_name = "DECAY", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Largest norm of the whole gradient
    #[arg(long, value_name = "NORM", default_value_t = 5.0)]
    pub clip: f64,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Checkpoints and steps that fail.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Stopping and going on")]
pub struct CheckpointArguments {
    /// Steps between two checkpoints [default: once an epoch]; there is always one at the end and on Ctrl-C or SIGTERM. The same command goes
    /// on from the newest. May change when it does: --steps and --epochs (learning rate and loss weights then follow the new length), --threads (the last
    /// bits may differ), --device (so does what dropout drops), --log-every, --eval-every, --skip-nonfinite, --quiet, --keep and this one
    #[arg(long, value_name = "STEPS")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that stay: so many last ones, and the best of those made at an evaluation (the least divergence from the teacher)
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub keep: u64,
    /// Go on from a checkpoint in --out, and refuse to start where there is none
    #[arg(long)]
    pub resume: bool,
    /// Steps with a loss or gradient that is not finite to pass over, without an update, before the run stops
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_nonfinite: u64,
}

/// Where it runs and what it says.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Machine and output")]
pub struct MachineArguments {
    /// Threads that compute [default: one per processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where steps and evaluations run: cpu, or cuda, the first GPU, or cuda:1, the second and so on, for which the program must be built with
    /// --features train/cuda. A GPU trains every family and loss, with --full-vocabulary-every 1 alone; what it drops by --dropout is not what a
    /// processor drops
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub device: String,
    /// Steps between two lines of the log
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    pub log_every: u64,
    /// Steps between two evaluations [default: once an epoch]; there is always one before the first step and one after the last
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<u64>,
    /// No progress, only errors and the summary
    #[arg(long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn contradictory_flags_are_refused() {
        let refused = |extra: &[&str]| {
            let base = ["train", "--cache", "c", "--out", "o"];
            Arguments::try_parse_from(base.iter().chain(extra)).is_err()
        };
        assert!(!refused(&[]));
        assert!(refused(&["--epochs", "2", "--steps", "9"]));
        assert!(refused(&["--eval-cache", "e", "--eval-fraction", "0.1"]));
        assert!(refused(&["--init-layers", "0,1"]), "layers to copy without a file to copy from");
    }

    #[test]
    fn lists_are_split_at_commas() {
        let typed = ["train", "--cache", "c", "--out", "o", "--init-from", "m", "--init-layers", "0,2,4"];
        let arguments = Arguments::try_parse_from(typed).unwrap();
        assert_eq!(arguments.student.init_layers, Some(vec![0, 2, 4]));
        let spaced = Arguments::try_parse_from(typed.map(|word| if word == "0,2,4" { "0, 2, 4" } else { word })).unwrap();
        assert_eq!(spaced.student.init_layers, arguments.student.init_layers);
    }
}
