//! How many tokens a batch may take: what memory allows, and which of several sizes is the fastest. Pure.

use crate::memory::display;
use logitcache::cache::writer::{HIDDEN_GROUP_BYTES, LOGITS_GROUP_BYTES};
use logitcache::error::{Error, Result};
use logitcache::target::TargetSpec;

/// Taken where nothing is measured, and where what was measured is as good as the fastest. On processors a teacher's speed is flat from about
/// 512 tokens on, and the smaller a batch, the less of it is padding.
pub const DEFAULT_BATCH_TOKENS: usize = 1024;
/// What is tried, ascending.
const SIZES: [usize; 6] = [512, 1024, 2048, 4096, 8192, 16384];
/// A size that is slower by less is as good as the fastest: so much does one measurement differ from the next.
const AS_GOOD: f64 = 0.03;
/// Arrays of the size of a batch's logits that live at once: the product with the vocabulary, the same with its bias, which is the answer, and
/// what the session's arena has rounded up.
const LOGITS_HELD: u64 = 3;
/// Shards whose answers live at once: the one being written, the one that is whole and waits for it, and the one being made.
const SHARDS_HELD: u64 = 3;
/// What a row group takes while it is encoded, of its bytes: its columns, what they are encoded to, and a column's levels.
const GROUP_HELD: u64 = 5;
/// Where the system does not say how much memory it has.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// What a batch and a shard take of memory, beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Bytes for each token of a batch, padding included, times the lanes that have a batch under way.
    pub token_bytes: u64,
    /// Bytes for the shards under way, each of sequences of full length, and for the row groups that are being encoded.
    pub shard_bytes: u64,
    /// Tokens of the longest sequence, which no batch can do without.
    pub max_length: usize,
}

impl Demand {
    /// For shards of `shard_sequences` sequences of `max_length` tokens, each file encoded by `encoding_threads`. `width` is the length of a row of
    /// answers, `model_width` that of a hidden state of the teacher.
    pub fn of(
        spec: &TargetSpec,
        width: usize,
        model_width: usize,
        shard_sequences: usize,
        max_length: usize,
        encoding_threads: usize,
    ) -> Self {
        let [width, model_width, length] = [width, model_width, max_length].map(|size| size as u64);
        let hidden = 4 * (spec.hidden_layers().len() * spec.hidden_size()) as u64;
        let logits = if spec.task().is_of_sequences() { 0 } else { 4 * width };
        // The feed-forward part is four states wide, before and after its activation; queries, keys and values, and what is added up, are states.
        // There is a head for about 64 dimensions, and two arrays of a row of attention for each.
        let activations = model_width * (64 + length / 8);
        let (k, temperatures) = (spec.top_k() as u64, spec.temperatures().len() as u64);
        let answers = if spec.task().is_of_sequences() { 0 } else { 8 * k + 4 + 4 * temperatures };
        let inputs = 16;
        let row = length * (answers + hidden + inputs);
        let shard = row.saturating_mul(shard_sequences as u64);
        // A group is of one row at least.
        let group = row.max(LOGITS_GROUP_BYTES + if hidden > 0 { HIDDEN_GROUP_BYTES } else { 0 });
        let groups = shard.min(encoding_threads as u64 * group);
        Self {
            token_bytes: (LOGITS_HELD * logits + 2 * hidden + activations).max(1),
            shard_bytes: shard.saturating_mul(SHARDS_HELD).saturating_add(GROUP_HELD * groups),
            max_length,
        }
    }

    /// The same where each of several lanes has a batch under way.
    pub fn of_lanes(self, lanes: usize) -> Self {
        Self { token_bytes: self.token_bytes.saturating_mul(lanes as u64), ..self }
    }

    /// Whether there is room for batches of `batch_tokens`, or where they are not known for those that are taken without a measurement.
    pub fn fits(&self, batch_tokens: Option<usize>, memory: Memory) -> bool {
        let tokens = batch_tokens.unwrap_or(DEFAULT_BATCH_TOKENS).max(self.max_length);
        self.shard_bytes.saturating_add(self.token_bytes.saturating_mul(tokens as u64)) <= memory.bytes
    }

    /// Tokens of a batch that `memory` bytes allow, `typed` by the user or else a share of the machine's.
    ///
    /// # Errors
    /// [`Error::Usage`] where what was typed is too little for the longest sequence. What was not typed is no promise: a sequence is then run all
    /// the same.
    pub fn most_tokens(&self, memory: Memory) -> Result<usize> {
        let allowed = memory.bytes.saturating_sub(self.shard_bytes) / self.token_bytes;
        let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
        if memory.typed && allowed < self.max_length {
            let sequence = self.token_bytes * self.max_length as u64;
            let [needed, shards, sequence, found] =
                [self.shard_bytes.saturating_add(sequence), self.shard_bytes, sequence, memory.bytes].map(display);
            let expected =
                format!("at least {needed}: {shards} for the shards under way, {sequence} for a sequence of {} tokens", self.max_length);
            let remedy = "raise it, or lower --shard-sequences or --max-length";
            return Err(Error::usage("--memory", expected, found, remedy));
        }
        Ok(allowed.max(self.max_length))
    }

    /// Refuses a size of batches that what was typed of memory does not allow.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn expect_room(&self, batch_tokens: usize, memory: Memory) -> Result<()> {
        let most = self.most_tokens(memory)?;
        if !memory.typed || batch_tokens <= most {
            return Ok(());
        }
        let needed = display(self.shard_bytes.saturating_add(self.token_bytes.saturating_mul(batch_tokens as u64)));
        let expected = format!("at least {needed} for batches of {batch_tokens} tokens");
        let remedy = format!("raise it, or in a new directory give --batch-tokens {most} at most");
        Err(Error::usage("--memory", expected, display(memory.bytes), remedy))
    }
}

/// Memory for batches and shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How much.
    pub bytes: u64,
    /// Whether the user said so.
    pub typed: bool,
}

impl Memory {
    /// What was typed, or half of the machine's.
    pub fn of(typed: Option<u64>, machine: Option<u64>) -> Self {
        match typed {
            Some(bytes) => Self { bytes, typed: true },
            None => Self { bytes: machine.unwrap_or(UNKNOWN_MEMORY) / 2, typed: false },
        }
    }
}

/// The sizes worth trying, ascending: at least the longest sequence, at most `most`, and no more than the `shard_tokens` that can be in one batch.
pub fn candidates(max_length: usize, most: usize, shard_tokens: usize) -> Vec<usize> {
    SIZES.into_iter().filter(|size| (max_length..=most.min(shard_tokens)).contains(size)).collect()
}

/// What is taken without a measurement.
pub fn unmeasured(max_length: usize, most: usize) -> usize {
    DEFAULT_BATCH_TOKENS.max(max_length).min(most)
}

/// Of (size, tokens a second), the size to take: of those as good as the fastest the one nearest to [`DEFAULT_BATCH_TOKENS`], the smaller of two.
pub fn choose(measured: &[(usize, f64)]) -> Option<usize> {
    let fastest = measured.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let good = measured.iter().filter(|(_, rate)| *rate >= fastest * (1.0 - AS_GOOD)).map(|(size, _)| *size);
    good.min_by_key(|size| (size.abs_diff(DEFAULT_BATCH_TOKENS), *size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::target::{Task, UncheckedTargetSpec};

    fn spec(task: Task, vocabulary: u32) -> TargetSpec {
        let language = task.is_language_model();
        let unchecked = UncheckedTargetSpec {
            top_k: if language { 64 } else { 0 },
            temperatures: if language { vec![2.0, 1.0] } else { vec![1.0] },
            embedding_size: (!language).then_some(32),
            ..UncheckedTargetSpec::new(task, vocabulary)
        };
        TargetSpec::try_from(unchecked).unwrap()
    }

    fn typed(bytes: u64) -> Memory {
        Memory::of(Some(bytes), None)
    }

    #[test]
    fn a_vocabulary_of_150_000_and_a_length_of_512_fit_in_two_gigabytes() {
        let demand = Demand::of(&spec(Task::CausalLm, 150_000), 150_000, 768, 512, 512, 1);
        let most = demand.most_tokens(typed(2_000_000_000)).unwrap();
        assert!((512..1024).contains(&most), "{most} tokens: {demand:?}");
    }

    #[test]
    fn too_little_memory_is_refused_with_what_is_needed_and_only_where_it_was_typed() {
        let demand = Demand { token_bytes: 1_000_000, shard_bytes: 300_000_000, max_length: 512 };
        let refused = demand.most_tokens(typed(500_000_000)).unwrap_err().to_string();
        assert!(refused.starts_with("--memory") && refused.contains("812.0 MB") && refused.contains("500.0 MB"), "{refused}");
        assert_eq!(demand.most_tokens(Memory::of(None, Some(1_000_000_000))).unwrap(), 512, "a sequence is run all the same");
        assert_eq!(demand.most_tokens(typed(2_300_000_000)).unwrap(), 2000);
        assert!(demand.expect_room(2000, typed(2_300_000_000)).is_ok());
        let refused = demand.expect_room(2001, typed(2_300_000_000)).unwrap_err().to_string();
        assert!(refused.contains("2.30 GB for batches of 2001 tokens") && refused.contains("--batch-tokens 2000"), "{refused}");
        assert!(demand.expect_room(100_000, Memory::of(None, None)).is_ok(), "what the user typed himself");
    }

    #[test]
    fn answers_about_sequences_hold_no_logits_of_tokens() {
        let [tokens, sequences] =
            [Task::CausalLm, Task::SentenceEmbedding].map(|task| Demand::of(&spec(task, 50_000), 50_000, 64, 512, 128, 1));
        assert!(tokens.token_bytes > 600_000 && sequences.token_bytes < 6_000, "{tokens:?}, {sequences:?}");
    }

    #[test]
    fn row_groups_count_by_threads_up_to_a_whole_shard() {
        let shard_bytes = |threads| Demand::of(&spec(Task::CausalLm, 50_000), 50_000, 64, 512, 128, threads).shard_bytes;
        let shard = 512 * 128 * (8 * 64 + 4 + 2 * 4 + 16);
        assert_eq!(shard_bytes(1), 3 * shard + 5 * (4 << 20));
        assert_eq!(shard_bytes(5), 3 * shard + 25 * (4 << 20));
        assert_eq!(shard_bytes(64), 8 * shard);
    }

    #[test]
    fn sizes_fit_the_sequences_the_memory_and_the_shard() {
        assert_eq!(candidates(128, 100_000, 50_000), SIZES);
        assert_eq!(candidates(1000, 5000, 50_000), [1024, 2048, 4096]);
        assert_eq!(candidates(128, 100_000, 700), [512]);
        assert_eq!((unmeasured(128, 9000), unmeasured(2000, 9000), unmeasured(128, 700)), (1024, 2000, 700));
    }

    #[test]
    fn noise_does_not_decide_and_a_real_gain_does() {
        assert_eq!(choose(&[(512, 100.0), (1024, 101.0), (2048, 102.0), (4096, 103.0)]), Some(1024));
        assert_eq!(choose(&[(512, 50.0), (1024, 80.0), (2048, 99.0), (4096, 100.0)]), Some(2048));
        assert_eq!(choose(&[(512, 100.0), (1024, 90.0)]), Some(512));
        assert_eq!(choose(&[]), None);
    }
}
