//! The first thread: corpus -> tokens -> sequences -> masked, batched shards, a shard ahead of the teacher.

use super::inputs::Source;
use super::question::{Question, Questioner};
use super::stop::Stop;
use crate::batch::{BatchPlan, pad, plan};
use crate::config::Config;
use crate::corpus::{Document, Documents};
use crate::resume::Listed;
use crate::teacher::TeacherBatch;
use crate::window::{Sequence, WindowCounts, WindowRules, Windows};
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::sync::mpsc::SyncSender;

/// Documents tokenised together: enough to keep every thread busy, few enough to be forgotten soon.
const CHUNK_DOCUMENTS: usize = 256;

/// Bytes of text after which no more documents are added to those tokenised together: whole books are as large as thousands of lines.
const CHUNK_BYTES: usize = 4 << 20;

/// A shard's questions.
#[derive(Debug)]
pub struct ShardWork {
    /// The shard's number.
    pub index: u32,
    /// Its pass.
    pub pass: u16,
    /// In sequence order.
    pub questions: Vec<Question>,
    /// Which questions make a batch, and the batch itself.
    pub batches: Vec<(BatchPlan, TeacherBatch)>,
    /// Shares of the whole run that are done before and after this shard, in 0..=1.
    pub share: [f64; 2],
}

/// What came of one pass over a corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassCounts {
    /// Documents and sequences.
    pub windows: WindowCounts,
    /// Malformed records skipped.
    pub malformed: u64,
}

/// What the producer sends.
#[derive(Debug)]
pub enum Produced {
    /// The next shard to ask about.
    Shard(ShardWork),
    /// The corpus has ended in every pass.
    End(PassCounts),
}

/// Sends every shard that `listed` does not hold, in batches of at most `batch_tokens`, then the end. Returns early where the receiver is gone or the run is asked to stop.
///
/// # Errors
/// Those of the corpus, the tokenizer and the masking; sent, so that they are seen after the shards before them.
pub fn produce(
    config: &Config,
    source: &Source,
    batch_tokens: usize,
    listed: &Listed,
    pool: &ThreadPool,
    stop: &Stop,
    sender: &SyncSender<Result<Produced>>,
) {
    let producer = Producer { config, source, batch_tokens, pool, stop };
    if let Err(error) = producer.run(listed, sender) {
        // A receiver that is gone has met an error of its own, which came first.
        let _ = sender.send(Err(error));
    }
}

/// Gives every sequence of the corpus to `take`, in order, with the share of the pass read so far, until it returns false or the run is asked
/// to stop.
/// Returns the counts, and whether the corpus came to its end.
///
/// # Errors
/// Those of the corpus, the tokenizer and the windows; [`Error::Data`] where every document was dropped.
pub fn read_pass(
    config: &Config,
    source: &Source,
    pool: &ThreadPool,
    stop: &Stop,
    mut take: impl FnMut(Sequence, f64) -> bool,
) -> Result<(PassCounts, bool)> {
    let mut windows = windows(config, source)?;
    if !source.corpus.prepare(&|| stop.signal().is_some())? {
        return Ok((PassCounts::default(), false));
    }
    let mut documents = source.corpus.documents();
    loop {
        let (chunk, shares) = next_chunk(&mut documents)?;
        if chunk.is_empty() {
            break;
        }
        let encoded = pool.install(|| source.tokenizer.encode_batch(&chunk))?;
        for ((document, encoded), share) in chunk.iter().zip(&encoded).zip(shares) {
            for sequence in windows.cut(document.id, encoded, &document.gold) {
                if stop.signal().is_some() || !take(sequence, share) {
                    return Ok((counts(&windows, &documents), false));
                }
            }
        }
    }
    if let Some(sequence) = windows.finish()
        && !take(sequence, 1.0)
    {
        return Ok((counts(&windows, &documents), false));
    }
    let counts = counts(&windows, &documents);
    if counts.windows.sequences == 0 {
        let found = format!("{} documents, all of them too short or mostly unknown to the tokenizer", counts.windows.documents);
        let expected = format!("at least one document of {} tokens", windows.rules().min_tokens());
        return Err(Error::data(
            &config.corpus[0],
            "documents",
            expected,
            found,
            "lower --min-tokens, or give this teacher another corpus",
        ));
    }
    Ok((counts, true))
}

/// What came of reading so far.
fn counts(windows: &Windows, documents: &Documents) -> PassCounts {
    PassCounts { windows: windows.counts(), malformed: documents.malformed() }
}

/// How the documents of this run are cut.
///
/// # Errors
/// [`Error::Usage`] for flags that the task or the tokenizer do not allow.
pub fn windows(config: &Config, source: &Source) -> Result<Windows> {
    let tokenizer = &source.tokenizer;
    let rules = WindowRules::new(&source.task, &config.windows, tokenizer.frame())?;
    let joined = config.reading.fields.pair.is_some() && source.task.task != Task::SentenceEmbedding;
    let pair_frame = if joined { Some(tokenizer.pair_frame()?) } else { None };
    if let Some(frame) = pair_frame
        && config.windows.max_length < frame.tokens() + 2
    {
        let expected = format!("at least {}, two tokens and the {} special ones of a pair", frame.tokens() + 2, frame.tokens());
        return Err(Error::usage("--max-length", expected, config.windows.max_length.to_string(), "type a larger one"));
    }
    Ok(Windows::new(rules, tokenizer.frame(), pair_frame, tokenizer.special()))
}

/// The next documents, and for each the share of the corpus read when it was there.
fn next_chunk(documents: &mut Documents) -> Result<(Vec<Document>, Vec<f64>)> {
    let (mut chunk, mut shares) = (Vec::with_capacity(CHUNK_DOCUMENTS), Vec::with_capacity(CHUNK_DOCUMENTS));
    let mut bytes = 0;
    while chunk.len() < CHUNK_DOCUMENTS && bytes < CHUNK_BYTES {
        let Some(document) = documents.next() else { break };
        let document = document?;
        bytes += document.bytes();
        chunk.push(document);
        shares.push(documents.share());
    }
    Ok((chunk, shares))
}

struct Producer<'a> {
    config: &'a Config,
    source: &'a Source,
    batch_tokens: usize,
    pool: &'a ThreadPool,
    stop: &'a Stop,
}

impl Producer<'_> {
    fn run(&self, listed: &Listed, sender: &SyncSender<Result<Produced>>) -> Result<()> {
        let questioner = Questioner::new(self.config, self.source, self.pool, self.stop)?;
        let first_pass = listed.first_pass();
        // The passes before it are complete, so they need not be read again.
        let mut index = listed.shards.iter().take_while(|shard| shard.pass < first_pass).count() as u32;
        for pass in first_pass..self.config.passes {
            let mut group = Vec::new();
            let mut share_read = 0.0;
            let mut share_before = self.share(pass, 0.0);
            let mut send_group = |group: Vec<Sequence>, read: f64| {
                let share = [share_before, self.share(pass, read)];
                share_before = share[1];
                index += 1;
                if listed.holds(index - 1) {
                    return true;
                }
                sender.send(Ok(Produced::Shard(self.shard(index - 1, pass, group, share, &questioner)))).is_ok()
            };
            let (counts, ended) = read_pass(self.config, self.source, self.pool, self.stop, |sequence, read| {
                group.push(sequence);
                share_read = read;
                group.len() < self.config.shard_sequences || send_group(std::mem::take(&mut group), read)
            })?;
            if !ended || (!group.is_empty() && !send_group(group, share_read)) {
                return Ok(());
            }
            if pass + 1 == self.config.passes {
                let _ = sender.send(Ok(Produced::End(counts)));
            }
        }
        Ok(())
    }

    /// Share of the run that is done when `read` of the corpus is, in `pass`.
    fn share(&self, pass: u16, read: f64) -> f64 {
        (f64::from(pass) + read) / f64::from(self.config.passes)
    }

    fn shard(&self, index: u32, pass: u16, sequences: Vec<Sequence>, share: [f64; 2], questioner: &Questioner<'_>) -> ShardWork {
        let questions = self.pool.install(|| sequences.into_par_iter().map(|sequence| questioner.ask(pass, sequence)).collect::<Vec<_>>());
        let batches = batches(&questions, self.batch_tokens, self.source.tokenizer.special().padding());
        ShardWork { index, pass, questions, batches, share }
    }
}

/// The batches of a shard, each within the budget.
pub fn batches(questions: &[Question], budget_tokens: usize, pad_id: u32) -> Vec<(BatchPlan, TeacherBatch)> {
    let lengths: Vec<usize> = questions.iter().map(|question| question.sequence.input_ids.len()).collect();
    let plans = plan(&lengths, budget_tokens).into_iter();
    let batch = |plan: BatchPlan| {
        let rows = plan.rows.iter().map(|row| {
            let question = &questions[*row];
            (question.masked.input_ids.as_slice(), question.sequence.token_type_ids.as_slice())
        });
        let padded = pad(rows, plan.length, pad_id);
        let batch = TeacherBatch {
            rows: plan.rows.len(),
            length: plan.length,
            input_ids: padded.input_ids,
            attention_mask: padded.attention_mask,
            token_type_ids: padded.token_type_ids,
        };
        (plan, batch)
    };
    plans.map(batch).collect()
}

#[cfg(test)]
mod tests;
