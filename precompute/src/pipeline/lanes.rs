//! How many sessions work side by side, and opening them.
//!
//! The threads of one session share every operator of a batch and meet after each, where the slower one is waited for. Threads that have a session and a
//! batch of their own wait for nobody while there are batches. ONNX Runtime's sessions are not shared between them, since `ort` does not take a run of one session
//! from two threads for safe; so each lane holds a copy of the model, and a model that is large for the machine has one lane, with all threads.

use super::ask::Lane;
use super::inputs::{Inputs, SessionFacts};
use super::sizing::demand;
use super::thread_pool;
use crate::budget::{Demand, Memory};
use crate::config::Config;
use crate::config::by_task::DEFAULT_TOP_K;
use crate::teacher::{Prepared, Reduction, Teacher};
use logitcache::error::{Error, Result};
use logitcache::target::{Precision, TargetSpec};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::path::Path;

/// The part of the memory for batches and shards that copies of a model may take beside it.
const COPIES_SHARE: u64 = 8;

/// The lanes of a run, what their records promise, and what their batches take of memory.
pub struct Opened {
    /// Of one teacher.
    pub lanes: Vec<Lane>,
    /// What a record promises.
    pub spec: TargetSpec,
    /// What the batches of all lanes take of memory.
    pub demand: Demand,
}

/// Changes the graph of the teacher to what this run asks of it, and opens it as often as it has lanes, on the threads of `pool`. `batch_tokens`: the tokens
/// of a batch where they are known.
///
/// # Errors
/// Those of the session, and of [`Config::target_spec`].
pub fn open(
    config: &Config,
    inputs: &Inputs,
    mut prepared: Prepared,
    batch_tokens: Option<usize>,
    memory: Memory,
    pool: &ThreadPool,
) -> Result<Opened> {
    change_graph(config, inputs, &mut prepared)?;
    let on_processor = config.provider == "cpu";
    let wanted = if on_processor { most(config.threads, model_bytes(&prepared)?, memory) } else { 1 };
    let mut copies: Vec<Prepared> = (1..wanted).map(|_| prepared.without_graph()).collect();
    let open = |prepared: Prepared, lanes: usize| -> Result<Lane> {
        let teacher = Teacher::open(&inputs.runtime, prepared, config.threads / lanes, &config.provider)?;
        Ok(Lane { teacher, pool: thread_pool(config, config.threads / lanes)? })
    };
    let mut first = open(prepared, wanted)?;
    let spec = config.target_spec(&inputs.facts(SessionFacts::of(&first.teacher)))?;
    let alone = demand(config, &first.teacher, &spec);
    let count = divisors(wanted, config.threads).find(|lanes| alone.of_lanes(*lanes).fits(batch_tokens, memory)).unwrap_or(1);
    if count < wanted {
        // With more threads each, and the first has too few.
        copies.truncate(count);
        drop(first);
        first = open(copies.swap_remove(0), count)?;
    }
    let others = pool.install(|| copies.into_par_iter().map(|copy| open(copy, count)).collect::<Result<Vec<_>>>())?;
    Ok(Opened { lanes: std::iter::once(first).chain(others).collect(), spec, demand: alone.of_lanes(count) })
}

fn change_graph(config: &Config, inputs: &Inputs, prepared: &mut Prepared) -> Result<()> {
    let k = config.top_k.unwrap_or(DEFAULT_TOP_K) as usize;
    let on_processor = config.provider == "cpu";
    if !on_processor && prepared.task().task.is_language_model() {
        let temperatures = config.temperatures_for(prepared.task());
        prepared.reduce(Reduction { k, temperatures, half: config.precision == Precision::Float16 })?;
    }
    // The top-k reads every logit of a language model, and adds the bias on the way; where the graph has made targets, there is nothing to add.
    if !on_processor || !prepared.leave_head(k) {
        prepared.leave_bias();
    }
    if on_processor {
        prepared.fuse_attention(&inputs.runtime.version);
    }
    Ok(())
}

/// Bytes of the model's files.
fn model_bytes(prepared: &Prepared) -> Result<u64> {
    let size = |file: &Path| Ok(std::fs::metadata(file).map_err(Error::io("read", file))?.len());
    prepared.model_files().map(size).sum()
}

/// The most lanes whose copies of a model of `model_bytes` fit beside it.
fn most(threads: usize, model_bytes: u64, memory: Memory) -> usize {
    let fits = |lanes: &usize| (*lanes as u64 - 1).saturating_mul(model_bytes) <= memory.bytes / COPIES_SHARE;
    divisors(threads, threads).find(fits).unwrap_or(1)
}

/// How many lanes can share `threads` evenly, at most `most`, descending.
fn divisors(most: usize, threads: usize) -> impl Iterator<Item = usize> {
    (1..=most).rev().filter(move |lanes| threads.is_multiple_of(*lanes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_the_threads_evenly_and_their_copies_fit() {
        let memory = Memory::of(Some(8 << 30), None);
        for (threads, megabytes, expected) in
            [(1, 100, 1), (2, 100, 2), (2, 1024, 2), (2, 1025, 1), (16, 60, 16), (16, 400, 2), (6, 400, 3), (7, 400, 1), (16, 5000, 1)]
        {
            assert_eq!(most(threads, megabytes << 20, memory), expected, "{threads} threads, {megabytes} MiB");
        }
    }
}
