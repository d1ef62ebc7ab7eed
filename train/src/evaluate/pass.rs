//! One pass of a student over the sequences of a cache, of a masked language model over its masked positions, at temperature 1, with flat memory.

use crate::batcher::{Batch, Steps, Targets};
use crate::stream::{Order, Prefetch, RowStream, Selection};
use crate::student::Answers;
use candle_core::DType;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use logitcache::target::{TargetSpec, Task};

/// Tokens of a batch at most.
const BATCH_TOKENS: u64 = 2048;

/// The longest sequence that a record can hold.
const LONGEST_SEQUENCE: u64 = 1 << 16;

/// Logits of a batch, where every token is asked: 64 MB.
const BATCH_LOGITS: u64 = 1 << 24;

/// Tokens of a batch, so that its logits stay small whatever the vocabulary.
fn batch_tokens(spec: &TargetSpec) -> u64 {
    match spec.task() {
        // Of which few are asked.
        Task::MaskedLm => BATCH_TOKENS,
        _ => (BATCH_LOGITS / spec.classes().max(1) as u64).clamp(64, BATCH_TOKENS),
    }
}

/// Hands each batch to `score` with the student's answers: logits `[asked, classes]`, none for a batch that asks nothing, or the vectors
/// `[sequence, width]` of a sentence encoder.
///
/// # Errors
/// A shard that cannot be read, a sequence that the student cannot take, or what `score` refuses.
pub fn for_each_batch(
    cache: &Cache,
    selection: Selection,
    student: &dyn Answers,
    mut score: impl FnMut(&Batch, &[f32]) -> Result<()>,
) -> Result<()> {
    let targets = Targets::new(cache.spec(), 1.0, true, None)?;
    let rows = RowStream::new(cache, &[], selection, Order::Stored)?;
    let tokens = batch_tokens(cache.spec());
    // What is read at once takes the longest sequence, and no more: with many logits stored of each token, more would be gigabytes.
    let longest = cache.manifest().settings.get("max-length").and_then(serde_json::Value::as_u64).unwrap_or(LONGEST_SEQUENCE);
    for step in Prefetch::new(Steps::new(rows, targets, tokens, longest.div_ceil(tokens).max(1))) {
        for batch in step?.micro_batches {
            let computed = match cache.spec().task() {
                Task::SentenceEmbedding => student.embeddings(&batch),
                _ if batch.asked.is_empty() => {
                    score(&batch, &[])?;
                    continue;
                }
                _ => student.logits(&batch),
            };
            let answers = computed.and_then(|answers| answers.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
            score(&batch, &answers.map_err(|error| Error::invalid("evaluation", "a result", error.to_string()))?)?;
        }
    }
    Ok(())
}
