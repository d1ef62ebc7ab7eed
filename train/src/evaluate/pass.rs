//! One pass of a student over the masked positions of a cache, at temperature 1, with flat memory.

use crate::batcher::{Batch, Steps, Targets};
use crate::stream::{Order, Prefetch, RowStream, Selection};
use crate::student::Student;
use candle_core::DType;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};

/// Tokens of a batch.
const BATCH_TOKENS: u64 = 2048;

/// Batches that are read at once; together they take the longest sequence that a record can hold.
const BATCHES_READ_AT_ONCE: u64 = 32;

/// Hands each batch to `score` with the student's logits, `[asked, vocabulary]`; none for a batch that asks nothing.
///
/// # Errors
/// A shard that cannot be read, a sequence that the student cannot take, or what `score` refuses.
pub fn for_each_batch(
    cache: &Cache,
    selection: Selection,
    student: &Student,
    mut score: impl FnMut(&Batch, &[f32]) -> Result<()>,
) -> Result<()> {
    let targets = Targets::new(cache.spec(), 1.0, true, None)?;
    let rows = RowStream::new(cache, &[], selection, Order::Stored)?;
    for step in Prefetch::new(Steps::new(rows, targets, BATCH_TOKENS, BATCHES_READ_AT_ONCE)) {
        for batch in step?.micro_batches {
            let mut logits = Vec::new();
            if !batch.asked.is_empty() {
                let computed = student.logits(&batch).and_then(|logits| logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
                logits = computed.map_err(|error| Error::invalid("evaluation", "a result", error.to_string()))?;
            }
            score(&batch, &logits)?;
        }
    }
    Ok(())
}
