//! The middle of a run: each batch to the teacher, and its answers to targets while they are warm.

use super::produce::ShardWork;
use super::question::Question;
use crate::pooling::{normalize, pool};
use crate::task::TeacherTask;
use crate::teacher::{Answer, Teacher};
use crate::topk::{Head, NotFinite, Targets, TopK};
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use logitcache::target::{TargetSpec, Task};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A session, and the threads that make targets of its answers: they sleep while it runs, and it sleeps while they work.
pub struct Lane {
    /// The session.
    pub teacher: Teacher,
    /// As many as the session's own.
    pub pool: ThreadPool,
}

/// What is asked of every batch.
pub(super) struct Asking<'a> {
    /// What a record promises.
    pub spec: &'a TargetSpec,
    /// What the teacher answers.
    pub task: &'a TeacherTask,
    /// The model file, for messages.
    pub model: PathBuf,
}

impl Asking<'_> {
    /// The records of batch number `batch` of a shard, made on the threads of the pool that this is called in. Adds to `teacher_time` what is spent in the
    /// session, and in the head where that is computed outside it.
    ///
    /// # Errors
    /// Those of the session; [`Error::Data`] naming the sequence for which an answer is not finite.
    pub(super) fn ask_batch(
        &self,
        teacher: &mut Teacher,
        work: &ShardWork,
        batch: usize,
        teacher_time: &mut Duration,
    ) -> Result<Vec<Record>> {
        let started = Instant::now();
        let mut reading = Duration::ZERO;
        let Self { spec, task, model } = self;
        let (plan, batch) = &work.batches[batch];
        let mut records: Vec<Record> = plan.rows.iter().map(|row| self.empty_record(work.pass, &work.questions[*row])).collect();
        let (bias, head) = (teacher.bias(), teacher.head());
        let asked: Vec<Vec<u16>> = records.iter().map(|record| record.positions.clone()).collect();
        let asked: Vec<&[u16]> = asked.iter().map(Vec::as_slice).collect();
        teacher.run_asked(batch, &asked, |answer| {
            let made = head.as_deref().map(|head| head_targets(head, answer, &records, spec));
            let started = Instant::now();
            // A sentence encoder's answers have no largest values to look for.
            let scratch = || TopK::new(spec.top_k().max(1), spec.temperatures()).with_bias(bias.clone());
            let filling = Filling { answer, made: made.as_deref(), spec, task, model };
            let rows = records.par_iter_mut().enumerate();
            let refusals: Vec<Result<()>> = rows.map_init(scratch, |top_k, (row, record)| filling.fill(record, row, top_k)).collect();
            reading = started.elapsed();
            refusals.into_iter().collect::<Result<()>>()
        })?;
        *teacher_time += started.elapsed().saturating_sub(reading);
        Ok(records)
    }

    fn empty_record(&self, pass: u16, question: &Question) -> Record {
        let Question { sequence, masked, positions } = question;
        Record {
            sequence_id: sequence.sequence_id,
            document_id: sequence.document_id,
            pass,
            input_ids: masked.input_ids.clone(),
            labels: masked.labels.clone(),
            label_values: sequence.label_values.clone(),
            token_type_ids: if self.spec.token_type_ids() { sequence.token_type_ids.clone() } else { Vec::new() },
            positions: positions.clone(),
            ..Record::default()
        }
    }
}

/// The targets of a position, or what of its logits is not finite.
type Made = std::result::Result<Targets, NotFinite>;

/// What a head that is left makes of the asked positions' states, a list for each record.
fn head_targets(head: &Head, answer: &Answer<'_>, records: &[Record], spec: &TargetSpec) -> Vec<Vec<Made>> {
    let of_record = |(row, record): (usize, &Record)| -> Vec<&[f32]> {
        record.positions.iter().map(|position| answer.logits(row, usize::from(*position))).collect()
    };
    let states: Vec<&[f32]> = records.iter().enumerate().flat_map(of_record).collect();
    let mut targets = head.targets(&states, spec.top_k(), spec.temperatures()).into_iter();
    records.iter().map(|record| targets.by_ref().take(record.positions.len()).collect()).collect()
}

/// What a record is filled from.
struct Filling<'a, 'r> {
    answer: &'a Answer<'r>,
    /// The targets of each row's asked positions, where a head has made them.
    made: Option<&'a [Vec<Made>]>,
    spec: &'a TargetSpec,
    task: &'a TeacherTask,
    model: &'a Path,
}

impl Filling<'_, '_> {
    /// The targets and hidden states of row `row` of the batch.
    fn fill(&self, record: &mut Record, row: usize, top_k: &mut TopK) -> Result<()> {
        let mut targets = Targets::default();
        for (index, position) in record.positions.iter().enumerate() {
            let appended = match self.made {
                Some(made) => made[row][index].as_ref().map(|made| targets.extend(made)).map_err(NotFinite::to_string),
                None => self.answer.append_targets(row, usize::from(*position), top_k, &mut targets),
            };
            appended.map_err(|found| self.refuse(record, format!("logits at position {position}"), found))?;
        }
        if self.spec.task() == Task::SentenceEmbedding {
            record.embedding = self.embedding(record, row)?;
        }
        let mut hidden_states = Vec::with_capacity(self.spec.hidden_layers().len());
        for (index, layer) in self.spec.hidden_layers().iter().enumerate() {
            let states = &self.answer.hidden(index, row)[..record.input_ids.len() * self.spec.hidden_size()];
            self.expect_finite(record, format!("hidden state {layer}"), states)?;
            hidden_states.push(states.to_vec());
        }
        let Targets { top_ids, top_logits, max_logit, log_z } = targets;
        (record.top_ids, record.top_logits, record.max_logit, record.log_z) = (top_ids, top_logits, max_logit, log_z);
        record.hidden_states = hidden_states;
        Ok(())
    }

    /// The vector of a sequence: the graph's own, or its tokens' states pooled as the teacher's files say.
    fn embedding(&self, record: &Record, row: usize) -> Result<Vec<f32>> {
        let (answer, width) = (self.answer, self.answer.width());
        let mut vector = match self.task.pooling {
            Some(pooling) if !answer.is_of_sequences() => pool(&answer.states(row)[..record.input_ids.len() * width], width, pooling),
            _ => answer.states(row)[..width].to_vec(),
        };
        self.expect_finite(record, "sentence embedding".to_owned(), &vector)?;
        if self.task.normalized {
            normalize(&mut vector);
        }
        Ok(vector)
    }

    fn expect_finite(&self, record: &Record, what: String, values: &[f32]) -> Result<()> {
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(found) => Err(self.refuse(record, what, found.to_string())),
        }
    }

    fn refuse(&self, record: &Record, what: String, value: String) -> Error {
        let field = format!("{what} of sequence {} (document {}), pass {}", record.sequence_id, record.document_id, record.pass);
        Error::data(self.model, field, "finite values", value, "check the export with this text, or leave the document out")
    }
}
