//! Shards to the lanes and their answers back: a lane that is done with its batch takes the next, also of the next shard.

use super::ask::{Asking, Lane};
use super::produce::ShardWork;
use crate::task::TeacherTask;
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use logitcache::target::TargetSpec;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Shards of which batches are under way: those of the second are handed out when every one of the first is. Where two shards have fewer batches than there
/// are lanes, some have nothing to do.
const SHARDS_OPEN: usize = 2;
/// Batches that are handed out for each lane, the one that it is at among them.
const BATCHES_READY: usize = 2;
/// How long the answers are waited for before the next shard is asked for again, where it was not there yet.
const PATIENCE: Duration = Duration::from_millis(10);

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

/// What follows.
pub enum Next {
    /// This shard.
    Shard(Arc<ShardWork>),
    /// One that is not there yet.
    NotYet,
    /// Nothing.
    End,
}

/// A batch for a lane.
struct Job {
    /// How many shards came before the batch's.
    shard: usize,
    /// Its place in the shard.
    batch: usize,
    work: Arc<ShardWork>,
}

/// What a lane made of a batch.
struct Answered {
    shard: usize,
    batch: usize,
    records: Result<Vec<Record>>,
    teacher_time: Duration,
}

/// Asks about shards.
pub struct Asker<'a> {
    lanes: Vec<Lane>,
    asking: Asking<'a>,
    /// What the lanes have spent in their sessions together.
    teacher_time: Duration,
}

impl<'a> Asker<'a> {
    /// Of at least one lane, whose teachers are the same. `spec`: what a record promises; `task`: what the teacher answers; `model`: its file, for
    /// messages.
    pub fn new(lanes: Vec<Lane>, spec: &'a TargetSpec, task: &'a TeacherTask, model: PathBuf) -> Self {
        Self { lanes, asking: Asking { spec, task, model }, teacher_time: Duration::ZERO }
    }

    /// Batches that are asked about at a time.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Forgets what the lanes have spent so far.
    pub fn forget_time(&mut self) {
        self.teacher_time = Duration::ZERO;
    }

    /// The answers for one shard. `tell` hears of each batch: its shard, its sequences and its tokens without padding.
    ///
    /// # Errors
    /// As [`ask_all`](Self::ask_all).
    pub fn ask(&mut self, work: Arc<ShardWork>, tell: impl FnMut(&ShardWork, u64, u64)) -> Result<ShardAnswer> {
        let (mut work, mut answer) = (Some(work), None);
        let publish = |made, _| {
            answer = Some(made);
            true
        };
        self.ask_all(|_| Ok(work.take().map_or(Next::End, Next::Shard)), tell, publish)?;
        answer.ok_or_else(|| Error::invalid("answers of a shard", "all of them", "none"))
    }

    /// Gives the answers for one shard after the other to `publish`, with the mean over the lanes of what was spent in their sessions so far, for batches of the
    /// next shard too. `next` says what follows, and has to wait a while for it if it is given true; `tell` hears of each batch: its shard, its sequences and its tokens
    /// without padding. Ends early where `publish` gives false.
    ///
    /// # Errors
    /// Those of `next` and of the session; [`Error::Data`] naming the sequence for which an answer is not finite. Of several, that of the earliest shard and
    /// batch, and whole shards before it are published first.
    pub fn ask_all(
        &mut self,
        next: impl FnMut(bool) -> Result<Next>,
        tell: impl FnMut(&ShardWork, u64, u64),
        publish: impl FnMut(ShardAnswer, Duration) -> bool,
    ) -> Result<()> {
        let asking = &self.asking;
        let workers = self.lanes.iter_mut().map(|Lane { teacher, pool }| {
            // In the pool, so that a lane of one thread makes its targets where its session has run.
            move |work: &ShardWork, batch: usize, time: &mut Duration| pool.install(|| asking.ask_batch(teacher, work, batch, time))
        });
        side_by_side(workers.collect(), &mut self.teacher_time, next, tell, publish)
    }
}

/// [`Asker::ask_all`], each of `workers` being what makes the records of a batch of a shard, and adds what it spends in a session.
fn side_by_side<W>(
    workers: Vec<W>,
    teacher_time: &mut Duration,
    next: impl FnMut(bool) -> Result<Next>,
    tell: impl FnMut(&ShardWork, u64, u64),
    publish: impl FnMut(ShardAnswer, Duration) -> bool,
) -> Result<()>
where
    W: FnMut(&ShardWork, usize, &mut Duration) -> Result<Vec<Record>> + Send,
{
    let ((jobs, queue), (sender, answers)) = (channel(), channel());
    let (queue, limit, lanes) = (&Mutex::new(queue), &AtomicUsize::new(usize::MAX), workers.len());
    let refused = std::thread::scope(|scope| {
        let start = |worker| {
            let sender = sender.clone();
            scope.spawn(move || take_jobs(worker, queue, limit, &sender))
        };
        let threads: Vec<_> = workers.into_iter().map(start).collect();
        drop(sender);
        let spent = *teacher_time;
        let mut flow =
            Flow { jobs, answers, limit, lanes, open: VecDeque::new(), published: 0, under_way: 0, refused: None, teacher_time: spent };
        flow.run(next, tell, publish);
        let Flow { jobs, answers, refused, teacher_time: spent, .. } = flow;
        *teacher_time = spent;
        // What is handed out but not begun is left; of what is under way, another refusal may be the earlier one.
        limit.store(0, Ordering::Relaxed);
        drop(jobs);
        let left = answers.iter().filter_map(|Answered { shard, batch, records, .. }| Some((shard, batch, records.err()?)));
        let refused = refused.into_iter().chain(left).min_by_key(|(shard, batch, _)| (*shard, *batch));
        for thread in threads {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        refused
    });
    refused.map_or(Ok(()), |(_, _, error)| Err(error))
}

/// Answers one batch after the other until no more come; none of shards from `limit` on.
fn take_jobs(
    mut worker: impl FnMut(&ShardWork, usize, &mut Duration) -> Result<Vec<Record>>,
    queue: &Mutex<Receiver<Job>>,
    limit: &AtomicUsize,
    sender: &Sender<Answered>,
) {
    loop {
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Job { shard, batch, work }) = queue.recv() else { break };
        // Before a later batch can be taken: what is refused of that does not hide what this one would be refused for.
        let limit = limit.load(Ordering::Relaxed);
        drop(queue);
        if shard >= limit {
            continue;
        }
        let mut teacher_time = Duration::ZERO;
        let asked = catch_unwind(AssertUnwindSafe(|| worker(&work, batch, &mut teacher_time)));
        // A batch without an answer would be waited for without an end.
        let (records, panic) = match asked {
            Ok(records) => (records, None),
            Err(panic) => (Err(Error::invalid("a lane", "an answer", "a panic")), Some(panic)),
        };
        let is_heard = sender.send(Answered { shard, batch, records, teacher_time }).is_ok();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        if !is_heard {
            break;
        }
    }
}

/// A shard of which batches are under way.
struct Open {
    work: Arc<ShardWork>,
    records: Vec<Record>,
    /// Batches that were handed out.
    handed_out: usize,
    /// Batches without an answer.
    left: usize,
}

/// The calling thread's part: it hands out batches and puts the answers together.
struct Flow<'a> {
    jobs: Sender<Job>,
    answers: Receiver<Answered>,
    /// The first shard that is not to be asked about.
    limit: &'a AtomicUsize,
    lanes: usize,
    /// The shards from number `published` on.
    open: VecDeque<Open>,
    published: usize,
    /// Batches that were handed out and are not answered.
    under_way: usize,
    /// The earliest shard and batch that there is an error for.
    refused: Option<(usize, usize, Error)>,
    teacher_time: Duration,
}

impl Flow<'_> {
    fn run(
        &mut self,
        mut next: impl FnMut(bool) -> Result<Next>,
        mut tell: impl FnMut(&ShardWork, u64, u64),
        mut publish: impl FnMut(ShardAnswer, Duration) -> bool,
    ) {
        let mut ended = false;
        loop {
            while self.open.front().is_some_and(|front| front.left == 0) {
                if !self.publish_front(&mut publish) {
                    return;
                }
            }
            ended |= self.refused.is_some();
            // Shards before the one that is refused are made whole.
            if self.refused.as_ref().is_some_and(|(shard, ..)| *shard <= self.published) || (ended && self.open.is_empty()) {
                return;
            }
            self.hand_out();
            let wants = !ended && self.open.len() < SHARDS_OPEN && self.under_way < BATCHES_READY * self.lanes;
            if wants {
                match next(self.open.is_empty()) {
                    Ok(Next::NotYet) if !self.open.is_empty() => {}
                    Ok(Next::NotYet) => continue,
                    Ok(Next::Shard(work)) => {
                        self.begin(work);
                        continue;
                    }
                    Ok(Next::End) => {
                        ended = true;
                        continue;
                    }
                    Err(error) => {
                        self.refuse(self.published + self.open.len(), 0, error);
                        continue;
                    }
                }
            }
            // Something is under way here: all that is open would have been handed out, and what is answered published.
            let patience = if wants { PATIENCE } else { Duration::MAX };
            match self.answers.recv_timeout(patience) {
                Ok(answered) => self.take(answered, &mut tell),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return self.refuse(self.published, 0, Error::invalid("lanes", "an answer", "none that could give it"));
                }
            }
        }
    }

    fn begin(&mut self, work: Arc<ShardWork>) {
        let mut records = Vec::new();
        records.resize_with(work.questions.len(), Record::default);
        self.open.push_back(Open { records, handed_out: 0, left: work.batches.len(), work });
    }

    /// Gives the lanes batches in order, so many that none has to wait.
    fn hand_out(&mut self) {
        for (number, open) in self.open.iter_mut().enumerate() {
            while open.handed_out < open.work.batches.len() && self.under_way < BATCHES_READY * self.lanes {
                let job = Job { shard: self.published + number, batch: open.handed_out, work: open.work.clone() };
                if self.jobs.send(job).is_err() {
                    return;
                }
                open.handed_out += 1;
                self.under_way += 1;
            }
        }
    }

    fn take(&mut self, answered: Answered, tell: &mut impl FnMut(&ShardWork, u64, u64)) {
        let Answered { shard, batch, records, teacher_time } = answered;
        self.under_way -= 1;
        self.teacher_time += teacher_time;
        let records = match records {
            Ok(records) => records,
            Err(error) => return self.refuse(shard, batch, error),
        };
        let open = &mut self.open[shard - self.published];
        open.left -= 1;
        tell(&open.work, records.len() as u64, records.iter().map(|record| record.input_ids.len() as u64).sum());
        open.work.batches[batch].0.rows.iter().zip(records).for_each(|(row, record)| open.records[*row] = record);
    }

    fn refuse(&mut self, shard: usize, batch: usize, error: Error) {
        self.limit.fetch_min(shard, Ordering::Relaxed);
        if self.refused.as_ref().is_none_or(|(earlier, at, _)| (shard, batch) < (*earlier, *at)) {
            self.refused = Some((shard, batch, error));
        }
    }

    /// Whether anyone takes it.
    fn publish_front(&mut self, publish: &mut impl FnMut(ShardAnswer, Duration) -> bool) -> bool {
        let Some(Open { work, records, .. }) = self.open.pop_front() else { return true };
        self.published += 1;
        let padded_tokens = work.batches.iter().map(|(plan, _)| plan.padded_tokens() as u64).sum();
        let answer = ShardAnswer { index: work.index, records, padded_tokens };
        // Publishing may take as long as a shard.
        drop(work);
        publish(answer, self.teacher_time / self.lanes.max(1) as u32)
    }
}

#[cfg(test)]
mod tests;
