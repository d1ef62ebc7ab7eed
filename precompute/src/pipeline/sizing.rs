//! The tokens of a batch: as typed, as an earlier run took them, or as this machine's teacher is fastest with.

use super::asker::Asker;
use super::inputs::Source;
use super::produce::{ShardWork, batches, read_pass};
use super::publish::encoding_threads;
use super::question::{Question, Questioner};
use super::stop::Stop;
use crate::batch::BatchPlan;
use crate::budget::{Demand, Memory, candidates, choose, unmeasured};
use crate::config::Config;
use crate::memory;
use crate::progress::Progress;
use crate::teacher::{Teacher, TeacherBatch};
use logitcache::cache::manifest::Manifest;
use logitcache::error::Result;
use logitcache::target::TargetSpec;
use rayon::ThreadPool;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name under which the manifest keeps the tokens of a batch.
pub const BATCH_TOKENS: &str = "batch-tokens";
/// What measuring may take. A size that would take longer than what is left of it is not tried: a teacher as slow as that gains nothing by it.
const TIME: Duration = Duration::from_secs(3);
/// Measurements of each size at most; the fastest one counts, since all that disturbs one makes it slower.
const ROUNDS: usize = 3;

/// What the size is decided from.
pub struct Sizing<'a> {
    /// The run.
    pub config: &'a Config,
    /// Its corpus and tokenizer.
    pub source: &'a Source,
    /// Threads for tokenising.
    pub pool: &'a ThreadPool,
    /// A request to stop.
    pub stop: &'a Stop,
}

/// What an earlier run took, and kept in its manifest; a run that goes on must take the same, since it can change the last bit of an answer.
pub fn kept(stored: &Manifest) -> Option<usize> {
    stored.settings.get(BATCH_TOKENS)?.as_u64().and_then(|tokens| usize::try_from(tokens).ok())
}

/// What a batch of this teacher takes of memory.
pub fn demand(config: &Config, teacher: &Teacher, spec: &TargetSpec) -> Demand {
    let model_width = (teacher.summary().hidden_size as usize).max(teacher.hidden_size());
    let (sequences, length, threads) = (config.shard_sequences, config.windows.max_length, encoding_threads(config));
    Demand::of(spec, teacher.answer_width(), model_width, sequences, length, threads)
}

/// Memory for batches and shards.
pub fn memory(config: &Config) -> Memory {
    Memory::of(config.memory, memory::total())
}

impl Sizing<'_> {
    /// The tokens of a batch, and how they were found in words. `kept` is what an earlier run took.
    ///
    /// # Errors
    /// `--memory` that is too little; those of the corpus, the tokenizer and the session.
    pub fn decide(&self, asker: &mut Asker<'_>, demand: &Demand, kept: Option<usize>, progress: &Progress) -> Result<(usize, String)> {
        let given =
            self.config.batch_tokens.map(|tokens| (tokens, "as typed")).or(kept.map(|tokens| (tokens, "as the cache was begun with")));
        if let Some((tokens, how)) = given {
            demand.expect_room(tokens, memory(self.config))?;
            return Ok((tokens, how.to_owned()));
        }
        let most = demand.most_tokens(memory(self.config))?;
        let max_length = demand.max_length;
        let questions = self.first_shard()?;
        let tokens: usize = questions.iter().map(|question| question.sequence.input_ids.len()).sum();
        let sizes = candidates(max_length, most, tokens / asker.lanes());
        // Where the corpus is no larger than a shard, measuring takes longer than any choice can save.
        let rates = if sizes.len() < 2 || questions.len() < self.config.shard_sequences {
            Vec::new()
        } else {
            self.measure(asker, &questions, &sizes, progress)?
        };
        let Some(chosen) = choose(&rates) else {
            return Ok((unmeasured(max_length, most), "the default: too little to measure".to_owned()));
        };
        let list: Vec<String> = rates.iter().map(|(size, rate)| format!("{size}: {rate:.0}")).collect();
        progress.note(&format!("batches of {chosen} tokens; tokens/s by size: {}", list.join(", ")));
        Ok((chosen, "as measured".to_owned()))
    }

    /// What the first shard asks, or as much of it as there is. Which tokens are masked makes no difference to time, so none is drawn by its
    /// rarity, for which the whole corpus would have to be counted.
    fn first_shard(&self) -> Result<Vec<Question>> {
        let config = Config { mask_smoothing: None, ..self.config.clone() };
        let questioner = Questioner::new(&config, self.source, self.pool, self.stop)?;
        let mut questions = Vec::new();
        read_pass(&config, self.source, self.pool, self.stop, |sequence, _| {
            questions.push(questioner.ask(0, sequence));
            questions.len() < config.shard_sequences
        })?;
        Ok(questions)
    }

    /// (size, tokens a second) of each size that the time allows; padding counts as time, not as tokens.
    fn measure(&self, asker: &mut Asker<'_>, questions: &[Question], sizes: &[usize], progress: &Progress) -> Result<Vec<(usize, f64)>> {
        let pad_id = self.source.tokenizer.special().padding();
        let samples: Vec<Sample> =
            sizes.iter().map(|size| Sample::of(questions, batches(questions, *size, pad_id), asker.lanes())).collect();
        let mut rates: Vec<(usize, f64)> = Vec::new();
        let started = Instant::now();
        // Not counted: a session's first run allocates.
        asker.ask(samples[0].work.clone(), |_, _, _| {})?;
        for round in 0..ROUNDS {
            // After the first round, those that ran in it.
            let tried = if round == 0 { sizes.len() } else { rates.len() };
            for (index, (size, sample)) in sizes.iter().zip(&samples).take(tried).enumerate() {
                let speed = rates.last().map_or(0.0, |(_, rate)| *rate);
                let expected = if speed > 0.0 { (asker.lanes() * size) as f64 / speed } else { 0.0 };
                let left = TIME.saturating_sub(started.elapsed()).as_secs_f64();
                if self.stop.signal().is_some() || expected > left {
                    return Ok(rates);
                }
                let asked = Instant::now();
                match asker.ask(sample.work.clone(), |_, _, _| {}) {
                    // How much memory a GPU has left nobody has asked: a size that it refuses, where smaller ones ran, is taken for too large.
                    Err(error) if may_be_too_large(&self.config.provider, index, rates.len()) => {
                        progress.note(&format!("batches of {size} tokens or more are left out: {error}"));
                        break;
                    }
                    answered => answered?,
                };
                let rate = sample.tokens / asked.elapsed().as_secs_f64();
                match rates.get_mut(index) {
                    Some((_, best)) => *best = best.max(rate),
                    None => rates.push((*size, rate)),
                }
            }
        }
        Ok(rates)
    }
}

/// Whether a refused batch, number `index` by size where `ran` smaller ones ran, may be one that a device has no room for.
fn may_be_too_large(provider: &str, index: usize, ran: usize) -> bool {
    provider != "cpu" && index > 0 && index >= ran
}

/// A batch that stands for all of a shard's.
struct Sample {
    /// It alone, once for each lane, with its questions.
    work: Arc<ShardWork>,
    /// The tokens of all lanes, of which as large a share is padding as of the whole shard.
    tokens: f64,
}

impl Sample {
    /// Of at least one batch: of those that are nearly full, the one in the middle of the lengths.
    fn of(questions: &[Question], mut batches: Vec<(BatchPlan, TeacherBatch)>, lanes: usize) -> Self {
        let padded = |(plan, _): &(BatchPlan, TeacherBatch)| plan.padded_tokens();
        let all: usize = batches.iter().map(padded).sum();
        let tokens: i64 = batches.iter().flat_map(|(_, batch)| &batch.attention_mask).sum();
        let fullest = batches.iter().map(padded).max().unwrap_or(0);
        let middle = batches.len() / 2;
        let nearly_full = (0..batches.len()).filter(|index| padded(&batches[*index]) * 10 >= fullest * 9);
        let chosen = nearly_full.min_by_key(|index| index.abs_diff(middle)).unwrap_or(middle);
        let (mut plan, batch) = batches.swap_remove(chosen);
        let questions = plan.rows.iter().map(|row| questions[*row].clone()).collect();
        plan.rows = (0..plan.rows.len()).collect();
        let tokens = (lanes * plan.padded_tokens()) as f64 * tokens as f64 / all.max(1) as f64;
        let work = ShardWork { index: 0, pass: 0, questions, batches: vec![(plan, batch); lanes], share: [0.0, 1.0] };
        Self { work: Arc::new(work), tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::Masked;
    use crate::window::Sequence;

    #[test]
    fn a_processor_that_refuses_a_batch_is_at_fault_and_a_gpu_that_refuses_a_larger_one_is_full() {
        assert!(may_be_too_large("cuda", 1, 1));
        assert!(!may_be_too_large("cpu", 1, 1));
        assert!(!may_be_too_large("cuda", 0, 0), "the smallest");
        assert!(!may_be_too_large("cuda", 1, 3), "one that ran before");
    }

    #[test]
    fn a_sample_is_a_full_batch_of_usual_length_and_pays_for_the_padding_of_all() {
        let question = |sequence_id: u64| Question {
            sequence: Sequence { sequence_id, ..Sequence::default() },
            masked: Masked { input_ids: Vec::new(), labels: Vec::new() },
            positions: Vec::new(),
        };
        let questions: Vec<Question> = (0..16).map(question).collect();
        let batch = |rows: std::ops::Range<usize>, length: usize, tokens: usize| {
            let mask = [vec![1; tokens], vec![0; rows.len() * length - tokens]].concat();
            let teacher = TeacherBatch { rows: rows.len(), length, attention_mask: mask, ..TeacherBatch::default() };
            (BatchPlan { rows: rows.collect(), length }, teacher)
        };
        let sample = Sample::of(&questions, vec![batch(0..4, 25, 100), batch(4..9, 20, 80), batch(9..14, 10, 50), batch(14..16, 5, 10)], 2);
        let ShardWork { questions, batches, .. } = &*sample.work;
        let ids: Vec<u64> = questions.iter().map(|question| question.sequence.sequence_id).collect();
        assert_eq!((batches[0].0.rows.len(), batches[0].0.length), (5, 20), "the third is in the middle, but half empty");
        assert!(batches.len() == 2 && batches[0] == batches[1], "one for each lane");
        assert_eq!((ids, &batches[0].0.rows[..]), (vec![4, 5, 6, 7, 8], &[0, 1, 2, 3, 4][..]));
        assert!((sample.tokens - 200.0 * 240.0 / 260.0).abs() < 1e-9);
    }
}
