//! The dry run: what a run would cost, from the whole corpus and a sample of the teacher's answers.

use crate::config::Config;
use crate::config::by_task::DEFAULT_TOP_K;
use crate::memory;
use crate::pipeline::asker::Asker;
use crate::pipeline::lanes::{self, Opened};
use crate::pipeline::produce::{PassCounts, ShardWork, batches, read_pass};
use crate::pipeline::question::Questioner;
use crate::pipeline::sizing::{self, Sizing};
use crate::pipeline::{Stop, inputs, thread_pool};
use crate::progress::Progress;
use crate::window::Sequence;
use logitcache::cache::manifest::{Fingerprints, MassSummary, ShardEntry};
use logitcache::cache::record::Record;
use logitcache::cache::writer::write_shard;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use logitcache::target::TargetSpec;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Sequences the teacher is asked about, at most but for many lanes; at least half of it where the corpus has as many.
const SAMPLE_SEQUENCES: usize = 128;
/// The same for each of many lanes, all of which are to be busy.
const LANE_SEQUENCES: usize = 64;
/// Asked about before the clock starts, since a session's first runs allocate.
const WARM_UP_SEQUENCES: usize = 8;
/// For which the lost mass is told, beside the k asked for.
const SIZES_OF_K: [usize; 5] = [8, 16, 32, 64, 128];

/// What a run would cost.
#[derive(Clone, Debug)]
pub struct Estimate {
    counts: PassCounts,
    passes: u16,
    /// Tokens of a batch, and how they were found.
    batch_tokens: usize,
    batch_origin: String,
    /// Tokens of one pass, padding included.
    padded_tokens: u64,
    sample: ShardEntry,
    /// -ln(a) at the first temperature, by k.
    lost_mass: Vec<(usize, MassSummary)>,
    temperature: f32,
    hidden_layers: usize,
    teacher_seconds_per_padded_token: f64,
}

/// Reads the corpus, asks the teacher about a sample and measures. `scratch` is where the sample's shard is encoded and removed again;
/// nothing else is written.
///
/// # Errors
/// Those a run would meet, and [`Error::Interrupted`].
pub fn estimate(config: &Config, scratch: &Path, stop: &Stop, progress: &mut Progress) -> Result<Estimate> {
    let largest_k = SIZES_OF_K.into_iter().max().unwrap_or(1) as u32;
    let (inputs, prepared) = inputs::open(config)?;
    let task = inputs.source.task.clone();
    let wide = task.task.is_language_model().then(|| config.top_k.unwrap_or(DEFAULT_TOP_K).max(largest_k));
    let asked = Config { top_k: wide, ..config.clone() };
    let pool = thread_pool(config, config.threads)?;
    let Opened { lanes, spec: wide_spec, .. } = lanes::open(&asked, &inputs, prepared, config.batch_tokens, sizing::memory(config), &pool)?;
    lanes[0].teacher.notes().iter().for_each(|note| progress.note(note));
    let facts = inputs::SessionFacts::of(&lanes[0].teacher);
    let spec = config.target_spec(&inputs.facts(facts))?;
    let demand = sizing::demand(config, &lanes[0].teacher, &spec).of_lanes(lanes.len());
    let model = inputs.files.model.clone();
    let mut asker = Asker::new(lanes, &wide_spec, &task, model);
    let sizing = Sizing { config, source: &inputs.source, pool: &pool, stop };
    let (batch_tokens, batch_origin) = sizing.decide(&mut asker, &demand, None, progress)?;

    progress.note("reading the corpus");
    let mut survey = Survey::new(config.shard_sequences, batch_tokens, SAMPLE_SEQUENCES.max(LANE_SEQUENCES * asker.lanes()));
    let (counts, ended) = read_pass(config, &inputs.source, &pool, stop, |sequence, _| survey.take(sequence))?;
    if !ended {
        return Err(interrupted(stop));
    }
    let (sample, padded_tokens) = survey.end();
    let questioner = Questioner::new(config, &inputs.source, &pool, stop)?;

    progress.note(&format!("asking the teacher about {} of {} sequences", sample.len(), counts.windows.sequences));
    let questions: Vec<_> = sample.into_iter().map(|sequence| questioner.ask(0, sequence)).collect();
    let pad_id = inputs.source.tokenizer.special().padding();
    let work = |questions: &[_]| ShardWork {
        index: 0,
        pass: 0,
        batches: batches(questions, batch_tokens, pad_id),
        questions: questions.to_vec(),
        share: [0.0, 1.0],
    };
    let mut warm_up = work(&questions[..questions.len().min(WARM_UP_SEQUENCES)]);
    // As many batches as lanes, so that hardly a session runs for the first time within the clock.
    warm_up.batches = warm_up.batches.into_iter().cycle().take(asker.lanes()).collect();
    asker.ask(Arc::new(warm_up), |_, _, _| {})?;
    let started = Instant::now();
    let answer = asker.ask(Arc::new(work(&questions)), |_, _, _| {})?;
    let seconds = started.elapsed().as_secs_f64();
    if stop.signal().is_some() {
        return Err(interrupted(stop));
    }

    let lost_mass = lost_mass(&answer.records, &wide_spec, spec.top_k());
    let records: Vec<Record> = answer.records.into_iter().map(|record| cut(record, wide_spec.top_k(), spec.top_k())).collect();
    Ok(Estimate {
        counts,
        passes: config.passes,
        batch_tokens,
        batch_origin,
        padded_tokens,
        sample: encode(scratch, &spec, records)?,
        lost_mass,
        temperature: spec.logits_temperature(),
        hidden_layers: spec.hidden_layers().len(),
        teacher_seconds_per_padded_token: seconds / answer.padded_tokens.max(1) as f64,
    })
}

fn interrupted(stop: &Stop) -> Error {
    Error::Interrupted { signal: stop.signal().unwrap_or(2), advice: "a dry run leaves nothing behind".to_owned() }
}

/// Counts the padding of every shard, and keeps an even sample of sequences: every stride-th, the stride doubling when the sample is full.
struct Survey {
    shard_sequences: usize,
    batch_tokens: usize,
    sample_sequences: usize,
    sample: Vec<Sequence>,
    stride: usize,
    taken: usize,
    lengths: Vec<usize>,
    padded_tokens: u64,
}

impl Survey {
    fn new(shard_sequences: usize, batch_tokens: usize, sample_sequences: usize) -> Self {
        Self {
            shard_sequences,
            batch_tokens,
            sample_sequences,
            sample: Vec::new(),
            stride: 1,
            taken: 0,
            lengths: Vec::new(),
            padded_tokens: 0,
        }
    }

    /// Always true: a survey reads to the end.
    fn take(&mut self, sequence: Sequence) -> bool {
        self.lengths.push(sequence.input_ids.len());
        if self.lengths.len() == self.shard_sequences {
            self.close_shard();
        }
        if self.taken.is_multiple_of(self.stride) {
            if self.sample.len() == self.sample_sequences {
                let mut number = 0;
                self.sample.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                self.stride *= 2;
            }
            if self.taken.is_multiple_of(self.stride) {
                self.sample.push(sequence);
            }
        }
        self.taken += 1;
        true
    }

    fn close_shard(&mut self) {
        let plans = crate::batch::plan(&self.lengths, self.batch_tokens);
        self.padded_tokens += plans.iter().map(|plan| plan.padded_tokens() as u64).sum::<u64>();
        self.lengths.clear();
    }

    fn end(mut self) -> (Vec<Sequence>, u64) {
        self.close_shard();
        (self.sample, self.padded_tokens)
    }
}

/// The quantiles of -ln(a) for each k up to the vocabulary, the one asked for among them.
fn lost_mass(records: &[Record], spec: &TargetSpec, asked_k: usize) -> Vec<(usize, MassSummary)> {
    if !spec.task().is_language_model() {
        return Vec::new();
    }
    let mut sizes: Vec<usize> = SIZES_OF_K.into_iter().chain([asked_k]).filter(|k| *k <= spec.top_k()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let temperatures = spec.temperatures().len();
    let lost = |k: usize| {
        let values = records.iter().flat_map(|record| {
            let rows = record.top_logits.chunks_exact(spec.top_k()).zip(record.log_z.chunks_exact(temperatures));
            rows.map(move |(logits, log_z)| {
                let kept: f64 = logits[..k].iter().map(|logit| f64::from(*logit).exp()).sum();
                (f64::from(log_z[0]) - kept.ln()).max(0.0)
            })
        });
        MassSummary::of(values.collect())
    };
    sizes.into_iter().map(|k| (k, lost(k))).collect()
}

/// The record with its first `to` of `from` ids a position.
fn cut(mut record: Record, from: usize, to: usize) -> Record {
    if from == to {
        return record;
    }
    record.top_ids = record.top_ids.chunks_exact(from).flat_map(|ids| &ids[..to]).copied().collect();
    record.top_logits = record.top_logits.chunks_exact(from).flat_map(|logits| &logits[..to]).copied().collect();
    record
}

/// The files the sample would make, as their entry tells.
fn encode(scratch: &Path, spec: &TargetSpec, mut records: Vec<Record>) -> Result<ShardEntry> {
    // A shard's sequences have no gaps; a sample's do.
    for (number, record) in records.iter_mut().enumerate() {
        record.sequence_id = number as u64;
    }
    let directory = scratch.join(format!("precompute-estimate-{}", std::process::id()));
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let digest = Fingerprint::of_bytes(b"a sample");
    let fingerprints = Fingerprints { teacher: digest, tokenizer: digest, corpus: digest, run: digest };
    let entry = write_shard(&directory, 0, spec, &fingerprints, &records, 1);
    std::fs::remove_dir_all(&directory).map_err(Error::io("remove", &directory))?;
    entry
}

impl fmt::Display for Estimate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, sample, .. } = self;
        let passes = u64::from(self.passes);
        let tokens = counts.windows.tokens * passes;
        let per_token = |bytes: u64| bytes as f64 / sample.tokens.max(1) as f64;
        let logits = per_token(sample.logits.bytes);
        let with_hidden = logits + sample.hidden.as_ref().map_or(0.0, |hidden| per_token(hidden.bytes));
        let PassCounts { windows: counts, malformed } = counts;
        let (short, unknown) = (counts.dropped_short, counts.dropped_unknown);
        writeln!(formatter, "documents   {} ({short} too short, {unknown} mostly unknown: dropped)", counts.documents)?;
        if malformed + counts.truncated > 0 {
            writeln!(formatter, "            {malformed} malformed records skipped, {} documents truncated", counts.truncated)?;
        }
        let each = if passes > 1 { format!(" in each of {passes} passes") } else { String::new() };
        writeln!(formatter, "sequences   {}{each}", counts.sequences)?;
        writeln!(formatter, "tokens      {tokens}")?;
        let padding = 1.0 - counts.tokens as f64 / self.padded_tokens.max(1) as f64;
        writeln!(formatter, "batches     of {} tokens, {}", self.batch_tokens, self.batch_origin)?;
        writeln!(formatter, "padding     {:.1} % of the tokens fed to the teacher", 100.0 * padding)?;
        if !self.lost_mass.is_empty() {
            writeln!(
                formatter,
                "lost mass   -ln(a) at T = {}, over {} positions of {} sequences:",
                self.temperature, sample.positions, sample.logits.rows
            )?;
            writeln!(formatter, "            {:>5} {:>9} {:>9} {:>9}", "k", "mean", "90 %", "99 %")?;
        }
        for (k, mass) in &self.lost_mass {
            writeln!(formatter, "            {k:>5} {:>9.2e} {:>9.2e} {:>9.2e}", mass.mean, mass.p90, mass.p99)?;
        }
        writeln!(
            formatter,
            "bytes/token {logits:.1} without hidden states, {with_hidden:.1} with those of {}",
            layers(self.hidden_layers)
        )?;
        writeln!(formatter, "size        {}", memory::display((with_hidden * tokens as f64) as u64))?;
        let seconds = self.teacher_seconds_per_padded_token * (self.padded_tokens * passes) as f64;
        write!(formatter, "time        about {seconds:.0} s, {:.0} tokens/s", tokens as f64 / seconds.max(1e-9))
    }
}

fn layers(count: usize) -> String {
    if count == 1 { "1 layer".to_owned() } else { format!("{count} layers") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(sequence_id: u64) -> Sequence {
        Sequence { sequence_id, input_ids: vec![1; 20], token_type_ids: vec![0; 20], words: vec![0; 20], ..Sequence::default() }
    }

    #[test]
    fn a_survey_samples_evenly_and_counts_everything() {
        let mut survey = Survey::new(100, 1024, 128);
        (0..1000).for_each(|id| assert!(survey.take(sequence(id))));
        let (sample, padded_tokens) = survey.end();
        assert_eq!(padded_tokens, 20_000, "equal lengths need no padding");
        let ids: Vec<u64> = sample.iter().map(|sequence| sequence.sequence_id).collect();
        assert_eq!(ids, (0..1000).step_by(8).collect::<Vec<_>>());
    }

    #[test]
    fn a_smaller_k_keeps_the_largest() {
        let record = Record { top_ids: vec![5, 6, 7, 1, 2, 3], top_logits: vec![0.0, -1.0, -2.0, 0.0, -3.0, -4.0], ..Record::default() };
        let cut = cut(record, 3, 2);
        assert_eq!((cut.top_ids, cut.top_logits), (vec![5, 6, 1, 2], vec![0.0, -1.0, 0.0, -3.0]));
    }
}
