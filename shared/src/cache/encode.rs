//! Records to Arrow columns.
//!
//! A nested list whose inner lists all have one width is a flat row-major array with regular offsets, and flat is how [`Record`] holds it:
//! so a column is one concatenation, and the rounding one pass over it.

use crate::cache::record::Record;
use crate::cache::schema::{LIST_ITEM, Part, hidden_column, id_type};
use crate::error::{Error, Result};
use crate::target::{Precision, TargetSpec};
use arrow_array::types::{Float32Type, Int32Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, ArrowPrimitiveType, ListArray, PrimitiveArray, RecordBatch};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::sync::Arc;

/// The largest finite float16.
const FLOAT16_MAX: f32 = 65504.0;

/// The logits file's columns of `records`, which are valid and few enough for 32-bit offsets.
pub(super) fn logits_batch(spec: &TargetSpec, records: &[Record]) -> Result<RecordBatch> {
    let scalars =
        |value: fn(&Record) -> u64| Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(records.iter().map(value))) as ArrayRef;
    let asked = |record: &Record| record.positions.len();
    let mut columns: Vec<ArrayRef> = vec![
        scalars(|record| record.sequence_id),
        scalars(|record| record.document_id),
        Arc::new(PrimitiveArray::<UInt16Type>::from_iter_values(records.iter().map(|record| record.pass))),
        list(ids(spec.vocabulary_size(), records, |record| &record.input_ids), records.iter().map(|record| record.input_ids.len())),
    ];
    if spec.labels_of(1) > 0 {
        let labels = values::<Int32Type>(records, |record| &record.labels);
        columns.push(list(labels, records.iter().map(|record| record.labels.len())));
    }
    if spec.has_label_values() {
        let numbers = values::<Float32Type>(records, |record| &record.label_values);
        columns.push(list(numbers, records.iter().map(|record| record.label_values.len())));
    }
    if spec.token_type_ids() {
        let types = values::<UInt8Type>(records, |record| &record.token_type_ids);
        columns.push(list(types, records.iter().map(|record| record.token_type_ids.len())));
    }
    if spec.embedding_size() > 0 {
        let embeddings = embeddings(spec, records)?;
        columns.push(list(floats(embeddings), records.iter().map(|record| record.embedding.len())));
        return batch(Part::Logits, spec, columns);
    }
    columns.push(list(values::<UInt16Type>(records, |record| &record.positions), records.iter().map(asked)));
    columns.push(nested(ids(spec.classes(), records, |record| &record.top_ids), spec.top_k(), records.iter().map(asked)));
    columns.push(nested(floats(top_logits(spec, records)), spec.top_k(), records.iter().map(asked)));
    columns.push(list(values::<Float32Type>(records, |record| &record.max_logit), records.iter().map(asked)));
    let log_z = values::<Float32Type>(records, |record| &record.log_z);
    columns.push(nested(log_z, spec.temperatures().len(), records.iter().map(asked)));
    batch(Part::Logits, spec, columns)
}

/// The hidden file's columns of `records`.
///
/// # Errors
/// [`Error::Invalid`] for a state that float16 cannot hold where the spec rounds to it.
pub(super) fn hidden_batch(spec: &TargetSpec, records: &[Record]) -> Result<RecordBatch> {
    let sequence_ids = PrimitiveArray::<UInt64Type>::from_iter_values(records.iter().map(|record| record.sequence_id));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(sequence_ids)];
    for (i, layer) in spec.hidden_layers().iter().enumerate() {
        let states = rounded(spec, records, &hidden_column(*layer), |record| &record.hidden_states[i])?;
        columns.push(nested(floats(states), spec.hidden_size(), records.iter().map(|record| record.input_ids.len())));
    }
    batch(Part::Hidden, spec, columns)
}

/// `[position, k]` of all records, as they are stored: rounded where the spec says so. A value below float16's range becomes its lowest,
/// whose exponential is 0 as well.
pub(super) fn top_logits(spec: &TargetSpec, records: &[Record]) -> Vec<f32> {
    let mut logits = concatenate(records, |record| &record.top_logits);
    if spec.precision() == Precision::Float16 {
        logits.iter_mut().for_each(|logit| *logit = logit.max(-FLOAT16_MAX));
        round_to_float16(&mut logits);
    }
    logits
}

fn embeddings(spec: &TargetSpec, records: &[Record]) -> Result<Vec<f32>> {
    rounded(spec, records, "embedding", |record| &record.embedding)
}

/// All records' values of a column, rounded where the spec says so.
fn rounded(spec: &TargetSpec, records: &[Record], column: &str, field: impl Fn(&Record) -> &[f32]) -> Result<Vec<f32>> {
    let mut values = concatenate(records, &field);
    if spec.precision() == Precision::Float16 {
        round_to_float16(&mut values);
        if values.iter().any(|value| value.is_infinite()) {
            let expected = format!("values up to {FLOAT16_MAX} in size (--precision float32 stores larger ones)");
            let found = records.iter().find_map(|record| Some((record, too_large(field(record))?)));
            let found = found.map(|(record, value)| format!("{value} in sequence {}", record.sequence_id));
            return Err(Error::invalid(column, expected, found.unwrap_or_default()));
        }
    }
    Ok(values)
}

fn too_large(states: &[f32]) -> Option<f32> {
    states.iter().copied().find(|state| f16::from_f32(*state).is_infinite())
}

/// Rounds to the nearest float16 value, in pieces since `half` converts slices with the processor's own instructions.
fn round_to_float16(values: &mut [f32]) {
    let mut rounded = [f16::ZERO; 512];
    for chunk in values.chunks_mut(rounded.len()) {
        let rounded = &mut rounded[..chunk.len()];
        rounded.convert_from_f32_slice(chunk);
        rounded.convert_to_f32_slice(chunk);
    }
}

fn batch(part: Part, spec: &TargetSpec, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let build = RecordBatch::try_new(Arc::new(part.schema(spec)), columns);
    build.map_err(|error| Error::invalid(part.name(), "columns of the schema's types and one length", error.to_string()))
}

fn concatenate<T: Copy>(records: &[Record], field: impl Fn(&Record) -> &[T]) -> Vec<T> {
    let mut all = Vec::with_capacity(records.iter().map(|record| field(record).len()).sum());
    records.iter().for_each(|record| all.extend_from_slice(field(record)));
    all
}

fn values<T: ArrowPrimitiveType>(records: &[Record], field: impl Fn(&Record) -> &[T::Native]) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(concatenate(records, field).into(), None))
}

fn floats(values: Vec<f32>) -> ArrayRef {
    Arc::new(PrimitiveArray::<Float32Type>::new(values.into(), None))
}

/// Ids below `end`.
fn ids(end: usize, records: &[Record], field: impl Fn(&Record) -> &[u32]) -> ArrayRef {
    if id_type(end) == DataType::UInt32 {
        return values::<UInt32Type>(records, field);
    }
    let narrow = records.iter().flat_map(|record| field(record).iter().map(|id| *id as u16));
    Arc::new(PrimitiveArray::<UInt16Type>::from_iter_values(narrow))
}

/// One list per length.
fn list(items: ArrayRef, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let field = Arc::new(Field::new(LIST_ITEM, items.data_type().clone(), false));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), items, None))
}

/// One list of lists of `width` per length.
fn nested(items: ArrayRef, width: usize, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let inner = items.len() / width;
    list(list(items, std::iter::repeat_n(width, inner)), lengths)
}
