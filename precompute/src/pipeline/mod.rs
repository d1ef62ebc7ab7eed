//! The one place that knows the order.
//!
//! ```text
//! produce thread            a thread for each lane            publish thread
//! corpus -> tokens ->
//! sequences -> masks ->
//! batches  --(1 shard)-->   teacher -> top-k -> records  --(hand over)-->  shard files -> manifest.json, timing.json
//! ```
//!
//! Both channels are bounded, and so is what the lanes are given, so that memory holds the shard being made, one that is whole, the one ahead, the one being
//! written and those of its row groups that are being encoded, however large the corpus is. A thread that fails drops its end of a channel, the others notice and end; the error of the earliest shard
//! is the one returned.

pub mod ask;
pub mod asker;
pub mod inputs;
pub mod lanes;
pub mod produce;
pub mod publish;
pub mod question;
pub mod sizing;
pub mod stop;
pub mod summary;

use crate::config::Config;
use crate::config::by_task::DEFAULT_TOP_K;
use crate::progress::{Position, Progress};
use crate::resume::{Claim, Decision, Listed, TEACHER_FOLDER, VOCABULARY_FILE, claim, is_begun};
use asker::{Asker, Next};
use inputs::{ContentDigests, Inputs, SessionFacts};
use lanes::Opened;
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::cache::manifest::{CorpusCounts, Manifest};
use logitcache::cache::writer::write_vocabulary;
use logitcache::error::{Error, Result};
use produce::{PassCounts, Produced, ShardWork};
use publish::{Publication, Timing};
use rayon::ThreadPool;
use sizing::Sizing;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};
pub use stop::Stop;
pub use summary::Summary;

/// How often a wait for the producer looks at the request to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Makes the cache that `config` describes, or completes it, or finds it complete.
///
/// # Errors
/// [`Error::Usage`] where the flags, the teacher and the directory do not go together; [`Error::Data`], [`Error::Io`] and
/// [`Error::Library`] of the inputs and the disk; [`Error::Interrupted`] after the shards that are begun where `stop` says so.
pub fn run(config: &Config, directory: &Path, stop: &Stop, progress: &mut Progress) -> Result<Summary> {
    // A directory that is no cache yet is made only when nothing more can be refused.
    let begun = is_begun(directory)?;
    let (inputs, prepared) = inputs::open(config)?;
    progress.note(&format!("ONNX Runtime {} from {}", inputs.runtime.version, inputs.runtime.library.display()));
    let content = ContentDigests::of(&inputs, &prepared)?;
    let earlier = if begun { Some(claim(directory)?) } else { None };
    if let Some(summary) = earlier.as_ref().map_or(Ok(None), |claim| complete_already(config, &inputs, &content, claim))? {
        return Ok(summary);
    }
    let pool = thread_pool(config, config.threads)?;
    let memory = sizing::memory(config);
    let kept = earlier.as_ref().and_then(Claim::begun).and_then(sizing::kept);
    let Opened { lanes, spec, demand } = lanes::open(config, &inputs, prepared, config.batch_tokens.or(kept), memory, &pool)?;
    lanes[0].teacher.notes().iter().for_each(|note| progress.note(note));
    let asked_k = config.top_k.unwrap_or(DEFAULT_TOP_K);
    if spec.task().is_language_model() && spec.top_k() < asked_k as usize {
        progress.note(&format!("--top-k {asked_k} is cut to the vocabulary's {}", spec.top_k()));
    }
    let (model, task) = (inputs.files.model.clone(), &inputs.source.task);
    let summary = lanes[0].teacher.summary().clone();
    let mut asker = Asker::new(lanes, &spec, task, model);
    let sizing = Sizing { config, source: &inputs.source, pool: &pool, stop };
    demand.most_tokens(memory)?;
    let claim = earlier.map_or_else(|| claim(directory), Ok)?;
    let kept = claim.begun().and_then(sizing::kept);
    let (batch_tokens, _) = sizing.decide(&mut asker, &demand, kept, progress)?;
    let asked = inputs.manifest(config, batch_tokens, spec.clone(), summary, &content)?;
    let Decision::Continue(listed) = claim.decide(&asked)? else {
        // Another run has made it since this one first looked.
        return Err(Error::usage(
            "--out",
            "a directory that no other run completes meanwhile",
            "one that is",
            "give the same command again",
        ));
    };
    claim.clear_barren()?;
    tell_what_is_kept(&claim, &listed, progress);
    let manifest = Manifest { shards: listed.shards.clone(), ..asked };
    publish_companions(directory, &inputs)?;
    manifest.write(directory)?;
    let run = Run { config, inputs: &inputs, batch_tokens, directory, pool: &pool, stop };
    let manifest = run.make_shards(manifest, &listed, asker, progress)?;
    progress.end();
    Ok(Summary { directory: directory.to_owned(), manifest, timing: Timing::read(directory), reused: false })
}

/// As many threads: for everything around the sessions, and for the targets of one.
///
/// # Errors
/// [`Error::Library`] where the system gives no threads.
pub fn thread_pool(config: &Config, threads: usize) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(Error::library("start threads for", &config.teacher))
}

/// The summary of a cache that is complete and has these settings, found without opening the session: what only it could tell follows from
/// the stored promise, since the teacher's fingerprint is compared too.
fn complete_already(config: &Config, inputs: &Inputs, content: &ContentDigests, claim: &Claim) -> Result<Option<Summary>> {
    let Some(stored) = claim.stored() else { return Ok(None) };
    let facts = SessionFacts {
        vocabulary_size: stored.spec.vocabulary_size(),
        width: stored.spec.classes().max(stored.spec.embedding_size()),
        maximum_length: None,
        token_type_ids: stored.spec.token_type_ids(),
        hidden_size: stored.spec.hidden_size(),
    };
    let mut facts = inputs.facts(facts);
    // Whether the tokenizer fits its teacher is for the session to say.
    facts.tokenizer_size = facts.tokenizer_size.min(facts.vocabulary_size);
    if facts.hidden_size == 0 {
        // The stored run had none, so this one differs where it has some, whatever their width.
        facts.hidden_size = usize::from(!facts.hidden_layers.is_empty());
    }
    let spec = config.target_spec(&facts)?;
    let batch_tokens = config.batch_tokens.or(sizing::kept(stored)).unwrap_or_default();
    let asked = inputs.manifest(config, batch_tokens, spec, stored.teacher.clone(), content)?;
    if claim.decide(&asked)? != Decision::Complete {
        return Ok(None);
    }
    let directory = claim.directory();
    publish_companions(directory, inputs)?;
    Ok(Some(Summary { directory: directory.to_owned(), manifest: stored.clone(), timing: Timing::read(directory), reused: true }))
}

fn tell_what_is_kept(claim: &Claim, listed: &Listed, progress: &Progress) {
    if listed.shards.is_empty() {
        return;
    }
    if let Some(first) = listed.first_missing() {
        let count = listed.missing.len();
        let again = if count == 1 { "this shard is made again".to_owned() } else { format!("{count} listed shards are made again") };
        progress.note(&format!("{} or its hidden states are not there whole: {again}", first.logits.name));
    }
    let kept = listed.whole();
    let shards = if kept == 1 { "1 complete shard".to_owned() } else { format!("{kept} complete shards") };
    progress.note(&format!("continuing after {shards} in {}", claim.directory().display()));
}

/// The files beside the shards: the vocabulary, and the teacher's tokenizer and configuration. Those that are there are left.
fn publish_companions(directory: &Path, inputs: &Inputs) -> Result<()> {
    let vocabulary = inputs.source.tokenizer.vocabulary();
    if !directory.join(VOCABULARY_FILE).exists() {
        write_vocabulary(directory, vocabulary)?;
    }
    let folder = directory.join(TEACHER_FOLDER);
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    for file in &inputs.files.companions {
        let Some(name) = file.file_name() else { continue };
        publish_file(file, &folder.join(name))?;
    }
    let modules = inputs.files.modules.as_deref().and_then(Path::parent);
    for (name, directory) in inputs.module_files.iter().zip(modules.into_iter().cycle()) {
        let copy = folder.join(name);
        let parent = copy.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        publish_file(&directory.join(name), &copy)?;
    }
    Ok(())
}

fn publish_file(file: &Path, copy: &Path) -> Result<()> {
    if copy.exists() {
        return Ok(());
    }
    write_bytes_atomically(copy, &std::fs::read(file).map_err(Error::io("read", file))?)
}

/// How the questions ended.
enum Ended {
    /// With the corpus.
    Corpus(PassCounts),
    /// At a signal, after a whole shard.
    Stopped(i32),
    /// Because no one publishes any more; the publisher has the error.
    Unpublished,
}

struct Run<'a> {
    config: &'a Config,
    inputs: &'a Inputs,
    batch_tokens: usize,
    directory: &'a Path,
    pool: &'a ThreadPool,
    stop: &'a Stop,
}

impl Run<'_> {
    /// Makes every shard that `listed` does not hold; returns the complete manifest, which is then on disk.
    fn make_shards(&self, manifest: Manifest, listed: &Listed, mut asker: Asker<'_>, progress: &mut Progress) -> Result<Manifest> {
        let earlier = Timing::read(self.directory);
        let earlier = if listed.whole() == 0 { Timing::default() } else { earlier };
        let started = Instant::now();
        // What was asked to find the size of batches is no part of the run.
        asker.forget_time();
        let (ended, manifest) = std::thread::scope(|scope| {
            let (work_sender, work) = sync_channel(1);
            // Of capacity 0: a finished shard waits in this thread's hands, and the lanes do not get far ahead meanwhile.
            let (answer_sender, answers) = sync_channel(0);
            let producer = scope.spawn(|| {
                // Moved in, so that the channel closes when the thread ends.
                let work_sender = work_sender;
                produce::produce(self.config, &self.inputs.source, self.batch_tokens, listed, self.pool, self.stop, &work_sender);
            });
            let threads = publish::encoding_threads(self.config);
            let publisher = scope.spawn(move || publish::publish(self.directory, manifest, earlier, started, threads, answers));
            let ended = self.ask_all(&mut asker, work, answer_sender, progress);
            let published = publisher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // The publisher is always at an earlier shard than the teacher, and the teacher than the producer.
            published.and_then(|manifest| Ok((ended?, manifest)))
        })?;
        self.conclude(ended, manifest)
    }

    /// Takes the receiver and the sender, so that both neighbours end when this returns.
    fn ask_all(
        &self,
        asker: &mut Asker<'_>,
        work: Receiver<Result<Produced>>,
        answers: SyncSender<Publication>,
        progress: &mut Progress,
    ) -> Result<Ended> {
        // As far as is known: an asker that ends without a word has nobody who publishes.
        let mut ended = Ended::Unpublished;
        let position = RefCell::new(Position::default());
        let progress = RefCell::new(progress);
        let mut kept_to = None;
        let next = |wait: bool| {
            let next = self.next(&work, wait, &mut ended)?;
            if let Next::Shard(shard) = &next {
                let ([from, to], mut position) = (shard.share, position.borrow_mut());
                match kept_to.replace(to) {
                    None => {
                        position.share = from;
                        progress.borrow_mut().begin(from);
                    }
                    // Over the shards that were there already.
                    Some(kept_to) => position.share += from - kept_to,
                }
                position.shard = shard.index;
            }
            Ok(next)
        };
        let mut told = false;
        let tell = |shard: &ShardWork, sequences: u64, tokens: u64| {
            let ([from, to], mut position, mut progress) = (shard.share, position.borrow_mut(), progress.borrow_mut());
            let shard_tokens: usize = shard.questions.iter().map(|question| question.sequence.input_ids.len()).sum();
            position.sequences += sequences;
            position.tokens += tokens;
            position.share += (to - from) * tokens as f64 / shard_tokens.max(1) as f64;
            progress.advance(&position);
            if self.stop.signal().is_some() && !std::mem::replace(&mut told, true) {
                progress.note(&format!("stopping after shard {}; once more ends at once, without what is not written", position.shard));
            }
        };
        let publish = |answer, teacher_time: Duration| answers.send((answer, teacher_time.as_secs_f64())).is_ok();
        asker.ask_all(next, tell, publish)?;
        Ok(ended)
    }

    /// What the producer has, or waits for it a while; `ended` says why nothing follows.
    fn next(&self, work: &Receiver<Result<Produced>>, wait: bool, ended: &mut Ended) -> Result<Next> {
        if let Some(signal) = self.stop.signal() {
            *ended = Ended::Stopped(signal);
            return Ok(Next::End);
        }
        let produced = match wait {
            true => work.recv_timeout(STOP_INTERVAL),
            false => work.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
        };
        *ended = match produced {
            Ok(Ok(Produced::Shard(shard))) => return Ok(Next::Shard(Arc::new(shard))),
            Err(RecvTimeoutError::Timeout) => return Ok(Next::NotYet),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Produced::End(counts))) => Ended::Corpus(counts),
            // Only a request to stop ends the producer without a word.
            Err(RecvTimeoutError::Disconnected) => Ended::Stopped(self.stop.signal().unwrap_or(2)),
        };
        Ok(Next::End)
    }

    /// Marks the manifest complete, or says how to continue.
    fn conclude(&self, ended: Ended, mut manifest: Manifest) -> Result<Manifest> {
        match ended {
            Ended::Corpus(counts) => {
                manifest.counts = Some(corpus_counts(&counts, &manifest));
                manifest.complete = true;
                manifest.write(self.directory)?;
                Ok(manifest)
            }
            Ended::Stopped(signal) => {
                let (shards, directory) = (Listed::of(self.directory, &manifest)?.whole(), self.directory.display());
                let advice = format!("complete shards in {directory}: {shards}; the same command continues after them");
                Err(Error::Interrupted { signal, advice })
            }
            Ended::Unpublished => Err(Error::invalid("publisher", "an error of its own", "none")),
        }
    }
}

fn corpus_counts(counts: &PassCounts, manifest: &Manifest) -> CorpusCounts {
    let sum = |part: fn(&logitcache::cache::manifest::ShardEntry) -> u64| manifest.shards.iter().map(part).sum();
    let PassCounts { windows, malformed } = counts;
    CorpusCounts {
        documents: windows.documents,
        malformed: *malformed,
        dropped_short: windows.dropped_short,
        dropped_unknown: windows.dropped_unknown,
        truncated: windows.truncated,
        sequences: windows.sequences,
        tokens: sum(|shard| shard.tokens),
        padded_tokens: sum(|shard| shard.padded_tokens),
        positions: sum(|shard| shard.positions),
        masked: sum(|shard| shard.masked),
    }
}

#[cfg(test)]
mod tests;
