//! Arrow columns to records: the mirror of `encode`, believing nothing but the column types, which the schema check has settled.

use crate::cache::reader::RowCounts;
use crate::cache::record::{IGNORED_LABEL, Record};
use crate::cache::schema::{hidden_column, id_type};
use crate::target::TargetSpec;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, RecordBatch};
use arrow_schema::DataType;

/// Why a column cannot be what the schema says: (column, expected, found).
pub(super) type Mismatch = (String, String, String);

type Decoded<T> = std::result::Result<T, Mismatch>;

/// The records of a batch of the logits file, without hidden states. How the columns' lengths fit each other is [`Record::validate`]'s to
/// check; that every inner list has its width, which the flat fields no longer show, is checked here.
pub(super) fn records(spec: &TargetSpec, batch: &RecordBatch) -> Decoded<Vec<Record>> {
    let rows = batch.num_rows();
    let sequence_ids = scalars::<UInt64Type>(batch, "sequence_id")?;
    let document_ids = scalars::<UInt64Type>(batch, "document_id")?;
    let passes = scalars::<UInt16Type>(batch, "pass")?;
    let mut input_ids = ids(spec.vocabulary_size(), batch, "input_ids", None)?;
    let labels = if spec.labels_of(1) > 0 { lists::<Int32Type>(batch, "labels", None)? } else { vec![&[][..]; rows] };
    let label_values = if spec.has_label_values() { lists::<Float32Type>(batch, "label_values", None)? } else { vec![&[][..]; rows] };
    let token_type_ids = if spec.token_type_ids() { lists::<UInt8Type>(batch, "token_type_ids", None)? } else { vec![&[][..]; rows] };
    let inputs = |row: usize, input_ids: Vec<u32>| Record {
        sequence_id: sequence_ids[row],
        document_id: document_ids[row],
        pass: passes[row],
        input_ids,
        labels: labels[row].to_vec(),
        label_values: label_values[row].to_vec(),
        token_type_ids: token_type_ids[row].to_vec(),
        ..Record::default()
    };
    if spec.embedding_size() > 0 {
        let embeddings = lists::<Float32Type>(batch, "embedding", None)?;
        let record = |(row, ids): (usize, Vec<u32>)| Record { embedding: embeddings[row].to_vec(), ..inputs(row, ids) };
        return Ok(input_ids.into_iter().enumerate().map(record).collect());
    }
    let positions = lists::<UInt16Type>(batch, "positions", None)?;
    let mut top_ids = ids(spec.classes(), batch, "top_ids", Some(spec.top_k()))?;
    let top_logits = lists::<Float32Type>(batch, "top_logits", Some(spec.top_k()))?;
    let max_logit = lists::<Float32Type>(batch, "max_logit", None)?;
    let log_z = lists::<Float32Type>(batch, "log_z", Some(spec.temperatures().len()))?;
    let record = |row: usize| Record {
        positions: positions[row].to_vec(),
        top_ids: std::mem::take(&mut top_ids[row]),
        top_logits: top_logits[row].to_vec(),
        max_logit: max_logit[row].to_vec(),
        log_z: log_z[row].to_vec(),
        ..inputs(row, std::mem::take(&mut input_ids[row]))
    };
    Ok((0..rows).map(record).collect())
}

/// The columns that [`row_counts`] looks at, where there are such.
pub(super) const COUNTED_COLUMNS: [&str; 3] = ["document_id", "input_ids", "labels"];

/// What each row of a batch of [`COUNTED_COLUMNS`] comes to.
pub(super) fn row_counts(spec: &TargetSpec, batch: &RecordBatch) -> Decoded<Vec<RowCounts>> {
    let documents = scalars::<UInt64Type>(batch, "document_id")?;
    let (starts, _) = offsets("input_ids", column(batch, "input_ids")?)?;
    let tokens = starts.windows(2).map(|pair| usize::try_from(i64::from(pair[1]) - i64::from(pair[0])).unwrap_or(0));
    let labels = if spec.labels_of(1) > 0 { lists::<Int32Type>(batch, "labels", None)? } else { vec![&[][..]; batch.num_rows()] };
    let labelled = labels.into_iter().map(|labels| labels.iter().filter(|label| **label != IGNORED_LABEL).count());
    let counts = documents.iter().zip(tokens).zip(labelled);
    Ok(counts.map(|((document_id, tokens), labelled)| RowCounts { document_id: *document_id, tokens, labelled }).collect())
}

/// Adds the hidden states of `layers`, in that order, from a batch of the hidden file with the same rows.
pub(super) fn add_hidden_states(spec: &TargetSpec, layers: &[u32], batch: &RecordBatch, records: &mut [Record]) -> Decoded<()> {
    let sequence_ids = scalars::<UInt64Type>(batch, "sequence_id")?;
    let logits_ids = records.iter().map(|record| record.sequence_id);
    if let Some((found, expected)) = sequence_ids.iter().copied().zip(logits_ids).find(|(found, expected)| found != expected) {
        return Err(("sequence_id".into(), format!("the logits file's {expected}"), found.to_string()));
    }
    for layer in layers {
        let name = hidden_column(*layer);
        let states = lists::<Float32Type>(batch, &name, Some(spec.hidden_size()))?;
        for (record, states) in records.iter_mut().zip(states) {
            check_states(record, spec.hidden_size(), states).map_err(|(expected, found)| (name.clone(), expected, found))?;
            record.hidden_states.push(states.to_vec());
        }
    }
    Ok(())
}

fn check_states(record: &Record, hidden_size: usize, states: &[f32]) -> std::result::Result<(), (String, String)> {
    let tokens = record.input_ids.len();
    if states.len() / hidden_size != tokens {
        let found = format!("{} states in sequence {}", states.len() / hidden_size, record.sequence_id);
        return Err((format!("{tokens} states, one per token"), found));
    }
    match states.iter().find(|state| !state.is_finite()) {
        None => Ok(()),
        Some(state) => Err(("finite values".into(), format!("{state} in sequence {}", record.sequence_id))),
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Decoded<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| (name.to_string(), "a column".to_string(), "no such column".to_string()))
}

fn wrong_type(name: &str, expected: impl Into<String>, found: &dyn Array) -> Mismatch {
    (name.to_string(), expected.into(), found.data_type().to_string())
}

fn primitives<'a, T: ArrowPrimitiveType>(name: &str, array: &'a dyn Array) -> Decoded<&'a [T::Native]> {
    let values = array.as_primitive_opt::<T>().ok_or_else(|| wrong_type(name, T::DATA_TYPE.to_string(), array))?;
    match array.null_count() {
        0 => Ok(values.values()),
        nulls => Err((name.to_string(), "no nulls".to_string(), format!("{nulls} nulls"))),
    }
}

fn scalars<'a, T: ArrowPrimitiveType>(batch: &'a RecordBatch, name: &str) -> Decoded<&'a [T::Native]> {
    primitives::<T>(name, column(batch, name)?)
}

/// Where each row's items begin in the items' array, and where the last row's end.
fn offsets<'a>(name: &str, array: &'a dyn Array) -> Decoded<(&'a [i32], &'a ArrayRef)> {
    let lists = array.as_list_opt::<i32>().ok_or_else(|| wrong_type(name, "a list", array))?;
    match array.null_count() {
        0 => Ok((lists.value_offsets(), lists.values())),
        nulls => Err((name.to_string(), "no nulls".to_string(), format!("{nulls} nulls"))),
    }
}

/// One slice per row. With a width the column is a list of lists of just that width, and a row's slice is `[list, width]`.
fn lists<'a, T: ArrowPrimitiveType>(batch: &'a RecordBatch, name: &str, width: Option<usize>) -> Decoded<Vec<&'a [T::Native]>> {
    let (rows, mut items) = offsets(name, column(batch, name)?)?;
    let mut starts: Vec<i32> = rows.to_vec();
    if let Some(width) = width {
        let (inner, values) = offsets(name, items)?;
        items = values;
        let lengths = inner.windows(2).map(|pair| i64::from(pair[1]) - i64::from(pair[0]));
        if let Some(length) = lengths.into_iter().find(|length| usize::try_from(*length) != Ok(width)) {
            return Err((name.to_string(), format!("inner lists of {width} values"), format!("one of {length}")));
        }
        starts = rows.iter().map(|start| usize::try_from(*start).ok().and_then(|start| inner.get(start)).copied().unwrap_or(-1)).collect();
    }
    let values = primitives::<T>(name, items)?;
    let slice = |pair: &[i32]| values.get(usize::try_from(pair[0]).ok()?..usize::try_from(pair[1]).ok()?);
    let broken = || (name.to_string(), format!("offsets within {} values", values.len()), "others".to_string());
    starts.windows(2).map(|pair| slice(pair).ok_or_else(broken)).collect()
}

/// Ids below `end`.
fn ids(end: usize, batch: &RecordBatch, name: &str, width: Option<usize>) -> Decoded<Vec<Vec<u32>>> {
    if id_type(end) == DataType::UInt32 {
        return Ok(lists::<UInt32Type>(batch, name, width)?.into_iter().map(<[u32]>::to_vec).collect());
    }
    let widen = |ids: &[u16]| ids.iter().map(|id| u32::from(*id)).collect();
    Ok(lists::<UInt16Type>(batch, name, width)?.into_iter().map(widen).collect())
}
