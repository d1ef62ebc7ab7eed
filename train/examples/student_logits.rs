//! Writes what a student directory's student answers on the first sequences of a cache, for another implementation to compare with.
//!
//! `student_logits STUDENT CACHE COUNT OUT.safetensors` takes a student of any family and writes `offsets` `[sequences + 1]`, `input_ids` `[tokens]`, `asked` `[asked]` (I64),
//! where the cache has token types `token_type_ids` `[tokens]` (I64), and `logits` `[asked, vocabulary]` (F32, not divided by a temperature).

use anyhow::{Context, bail};
use logitcache::cache::reader::{Cache, Projection};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use train::batcher::Batch;
use train::export;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [student, cache, count, out] = arguments.as_slice() else { bail!("usage: student_logits STUDENT CACHE COUNT OUT.safetensors") };
    let student = export::load(Path::new(student))?;
    let batch = first_sequences(Path::new(cache), count.parse().context("COUNT is no number")?)?;
    let logits = student.logits(&batch)?;
    let shape = logits.dims().to_vec();
    let logits: Vec<u8> = logits.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|value| value.to_le_bytes()).collect();
    let offsets = bytes(batch.offsets.iter().map(|offset| *offset as i64));
    let input_ids = bytes(batch.input_ids.iter().map(|id| i64::from(*id)));
    let asked = bytes(batch.asked.iter().map(|row| i64::from(*row)));
    let token_type_ids = bytes(batch.token_type_ids.iter().map(|kind| i64::from(*kind)));
    let mut tensors = vec![
        ("offsets", TensorView::new(Dtype::I64, vec![batch.offsets.len()], &offsets)?),
        ("input_ids", TensorView::new(Dtype::I64, vec![batch.input_ids.len()], &input_ids)?),
        ("asked", TensorView::new(Dtype::I64, vec![batch.asked.len()], &asked)?),
        ("logits", TensorView::new(Dtype::F32, shape, &logits)?),
    ];
    if !batch.token_type_ids.is_empty() {
        tensors.push(("token_type_ids", TensorView::new(Dtype::I64, vec![batch.token_type_ids.len()], &token_type_ids)?));
    }
    safetensors::serialize_to_file(tensors, None, Path::new(out))?;
    Ok(())
}

fn bytes(values: impl Iterator<Item = i64>) -> Vec<u8> {
    values.flat_map(i64::to_le_bytes).collect()
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
