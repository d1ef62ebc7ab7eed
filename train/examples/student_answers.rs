//! Writes what a student directory's student answers on the first sequences of a cache, for another implementation to compare with.
//!
//! `student_answers STUDENT CACHE COUNT OUT.safetensors` takes a student of any family and task and writes `offsets` `[sequences + 1]` and `input_ids`
//! `[tokens]` (I64), where the cache has token types `token_type_ids` `[tokens]` (I64), and its answers (F32): of a sentence encoder `embeddings`
//! `[sequences, width]`, of every other student `asked` `[asked]` (I64) and `logits` `[asked, classes]`, not divided by a temperature.

use anyhow::{Context, bail};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::target::Task;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use train::batcher::Batch;
use train::export;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [student, cache, count, out] = arguments.as_slice() else { bail!("usage: student_answers STUDENT CACHE COUNT OUT.safetensors") };
    let student = export::load(Path::new(student))?;
    let batch = first_sequences(Path::new(cache), count.parse().context("COUNT is no number")?)?;
    let is_encoder = student.config().task == Task::SentenceEmbedding;
    let answers = if is_encoder { student.embeddings(&batch)? } else { student.logits(&batch)? };
    let shape = answers.dims().to_vec();
    let answers: Vec<u8> = answers.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|value| value.to_le_bytes()).collect();
    let integers: Vec<(&str, Vec<i64>)> = [
        ("offsets", batch.offsets.iter().map(|offset| *offset as i64).collect()),
        ("input_ids", batch.input_ids.iter().map(|id| i64::from(*id)).collect()),
        ("asked", batch.asked.iter().map(|row| i64::from(*row)).collect()),
        ("token_type_ids", batch.token_type_ids.iter().map(|kind| i64::from(*kind)).collect()),
    ]
    .into_iter()
    .filter(|(_, values): &(_, Vec<i64>)| !values.is_empty())
    .collect();
    let bytes: Vec<Vec<u8>> = integers.iter().map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let mut tensors = vec![(if is_encoder { "embeddings" } else { "logits" }, TensorView::new(Dtype::F32, shape, &answers)?)];
    for ((name, values), bytes) in integers.iter().zip(&bytes) {
        tensors.push((name, TensorView::new(Dtype::I64, vec![values.len()], bytes)?));
    }
    safetensors::serialize_to_file(tensors, None, Path::new(out))?;
    Ok(())
}

/// The first `count` records, packed; of the targets only where they lie.
fn first_sequences(cache: &Path, count: usize) -> anyhow::Result<Batch> {
    let cache = Cache::open(cache)?;
    let mut batch = Batch { offsets: vec![0], ..Batch::default() };
    let records = cache.shard(0)?.read(0, &Projection { hidden_layers: Vec::new() })?;
    for record in records.into_iter().take(count) {
        let first = batch.input_ids.len() as u32;
        batch.asked.extend(record.positions.iter().map(|position| first + u32::from(*position)));
        batch.input_ids.extend(&record.input_ids);
        batch.token_type_ids.extend(record.token_type_ids.iter().map(|kind| u32::from(*kind)));
        batch.offsets.push(batch.input_ids.len());
        batch.sequence_ids.push(record.sequence_id);
        batch.passes.push(record.pass);
    }
    Ok(batch)
}
