//! The middle of a run: each batch to the teacher, and its answers to targets while they are warm.

use super::produce::{Question, ShardWork};
use crate::batch::BatchPlan;
use crate::teacher::{Answer, Teacher, TeacherBatch};
use crate::topk::{Targets, TopK};
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use logitcache::target::TargetSpec;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A shard's records, in sequence order.
#[derive(Debug)]
pub struct ShardAnswer {
    /// The shard's number.
    pub index: u32,
    /// One per sequence.
    pub records: Vec<Record>,
    /// Tokens fed to the teacher, padding included.
    pub padded_tokens: u64,
}

/// Asks about shards.
pub struct Asker<'a> {
    /// The session.
    pub teacher: Teacher,
    /// What a record promises.
    pub spec: &'a TargetSpec,
    /// Threads for the targets.
    pub pool: &'a ThreadPool,
    /// The model file, for messages.
    pub model: PathBuf,
    /// Time spent in the session itself.
    pub teacher_time: Duration,
}

impl Asker<'_> {
    /// The answers for a shard. `tell` hears of each batch: its sequences and its tokens without padding.
    ///
    /// # Errors
    /// Those of the session; [`Error::Data`] naming the sequence for which an answer is not finite.
    pub fn ask(&mut self, work: &ShardWork, mut tell: impl FnMut(u64, u64)) -> Result<ShardAnswer> {
        let mut records: Vec<Record> = work.questions.iter().map(|question| self.empty_record(work.pass, question)).collect();
        let mut padded_tokens = 0;
        for (plan, batch) in &work.batches {
            let tokens: usize = plan.rows.iter().map(|row| records[*row].input_ids.len()).sum();
            self.ask_batch(&mut records, plan, batch)?;
            padded_tokens += plan.padded_tokens() as u64;
            tell(plan.rows.len() as u64, tokens as u64);
        }
        Ok(ShardAnswer { index: work.index, records, padded_tokens })
    }

    fn empty_record(&self, pass: u16, question: &Question) -> Record {
        let Question { sequence, masked, positions } = question;
        Record {
            sequence_id: sequence.sequence_id,
            document_id: sequence.document_id,
            pass,
            input_ids: masked.input_ids.clone(),
            labels: masked.labels.clone(),
            token_type_ids: if self.spec.token_type_ids() { sequence.token_type_ids.clone() } else { Vec::new() },
            positions: positions.clone(),
            ..Record::default()
        }
    }

    /// Fills in the records of one batch.
    fn ask_batch(&mut self, records: &mut [Record], plan: &BatchPlan, batch: &TeacherBatch) -> Result<()> {
        let started = Instant::now();
        let mut reading = Duration::ZERO;
        let (spec, pool, model) = (self.spec, self.pool, &self.model);
        let mut rows: Vec<Record> = plan.rows.iter().map(|row| std::mem::take(&mut records[*row])).collect();
        self.teacher.run(batch, |answer| {
            let started = Instant::now();
            let refusals: Vec<Result<()>> = pool.install(|| {
                let rows = rows.par_iter_mut().enumerate();
                let scratch = || TopK::new(spec.top_k(), spec.temperatures());
                rows.map_init(scratch, |top_k, (row, record)| fill(record, answer, row, top_k, spec, model)).collect()
            });
            reading = started.elapsed();
            refusals.into_iter().collect::<Result<()>>()
        })?;
        self.teacher_time += started.elapsed().saturating_sub(reading);
        for (row, record) in plan.rows.iter().zip(rows) {
            records[*row] = record;
        }
        Ok(())
    }
}

/// The targets and hidden states of row `row` of a batch.
fn fill(record: &mut Record, answer: &Answer<'_>, row: usize, top_k: &mut TopK, spec: &TargetSpec, model: &PathBuf) -> Result<()> {
    let refuse = |what: String, value: String| {
        let field = format!("{what} of sequence {} (document {}), pass {}", record.sequence_id, record.document_id, record.pass);
        Error::data(model, field, "finite values", value, "check the export with this text, or leave the document out")
    };
    let mut targets = Targets::default();
    for position in &record.positions {
        let logits = answer.logits(row, usize::from(*position));
        top_k.append(logits, &mut targets).map_err(|found| refuse(format!("logits at position {position}"), found.to_string()))?;
    }
    let mut hidden_states = Vec::with_capacity(spec.hidden_layers().len());
    for (index, layer) in spec.hidden_layers().iter().enumerate() {
        let states = &answer.hidden(index, row)[..record.input_ids.len() * spec.hidden_size()];
        if let Some(found) = states.iter().find(|value| !value.is_finite()) {
            return Err(refuse(format!("hidden state {layer}"), found.to_string()));
        }
        hidden_states.push(states.to_vec());
    }
    let Targets { top_ids, top_logits, max_logit, log_z } = targets;
    (record.top_ids, record.top_logits, record.max_logit, record.log_z) = (top_ids, top_logits, max_logit, log_z);
    record.hidden_states = hidden_states;
    Ok(())
}
