//! `vocabulary.parquet`: the tokens by id, so that any Parquet tool turns ids into text.

use crate::cache::guard::guarded;
use crate::cache::parquet_file::write_parquet;
use crate::cache::schema::{RESTORE, base_properties, id_type};
use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, UInt16Array, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

const FILE: &str = "vocabulary.parquet";
/// Rows of a row group, as parquet has it by default: more than most vocabularies have.
const GROUP_ROWS: usize = 1 << 20;

fn schema(id: DataType) -> Schema {
    Schema::new(vec![Field::new("id", id, false), Field::new("token", DataType::Utf8, false)])
}

/// Publishes `vocabulary.parquet` in `directory`: row i holds id i and `tokens[i]`.
///
/// # Errors
/// [`Error::Invalid`] for no token at all or more than 2^32; [`Error::Io`] and [`Error::Library`] where the file cannot be written.
pub fn write_vocabulary(directory: &Path, tokens: &[String]) -> Result<()> {
    let count = u32::try_from(tokens.len()).ok().filter(|count| *count > 0);
    let count = count.ok_or_else(|| Error::invalid("vocabulary", "1 to 2^32 - 1 tokens", tokens.len().to_string()))?;
    let id = id_type(tokens.len());
    let ids: ArrayRef = if id == DataType::UInt32 {
        Arc::new(UInt32Array::from_iter_values(0..count))
    } else {
        Arc::new(UInt16Array::from_iter_values((0..count).map(|id| id as u16)))
    };
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(tokens));
    let path = directory.join(FILE);
    let batch = RecordBatch::try_new(Arc::new(schema(id.clone())), vec![ids, texts]).map_err(Error::library("write", &path))?;
    let group = |group: usize| Ok(batch.slice(group * GROUP_ROWS, GROUP_ROWS.min(batch.num_rows() - group * GROUP_ROWS)));
    write_parquet(&path, schema(id), base_properties().build(), 1, batch.num_rows().div_ceil(GROUP_ROWS), group)?;
    Ok(())
}

/// The tokens of `vocabulary.parquet` in `directory`, by id.
pub(super) fn read_vocabulary(directory: &Path, vocabulary_size: usize) -> Result<Vec<String>> {
    let path = directory.join(FILE);
    let refuse = |field: &str, expected: String, found: String| Error::data(&path, field, expected, found, RESTORE);
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    // An Arrow schema that another writer embedded must not change what the columns are taken for.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata =
        guarded(|| ArrowReaderMetadata::load(&file, options)).map_err(|found| refuse("footer", "a Parquet file".to_string(), found))?;
    for (i, expected) in schema(DataType::Utf8).fields().iter().enumerate() {
        let found = metadata
            .schema()
            .fields()
            .get(i)
            .map_or_else(|| "no such column".to_string(), |field| format!("{} {}", field.name(), field.data_type()));
        let accepted: &[DataType] = if i == 0 { &[DataType::UInt16, DataType::UInt32] } else { &[DataType::Utf8] };
        if !accepted.iter().any(|accepted| found == format!("{} {accepted}", expected.name())) {
            return Err(refuse(expected.name(), format!("column {i} of type {accepted:?}"), found));
        }
    }
    let batches = guarded(|| {
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).build()?;
        Ok(batches.collect::<std::result::Result<Vec<RecordBatch>, _>>()?)
    })
    .map_err(|found| refuse("file", "columns that decode".to_string(), found))?;
    let mut tokens: Vec<String> = Vec::new();
    for batch in batches {
        tokens.extend(batch.column(1).as_string::<i32>().iter().map(|token| token.unwrap_or_default().to_string()));
        check_ids(batch.column(0), tokens.len() - batch.num_rows()).map_err(|(expected, found)| refuse("id", expected, found))?;
    }
    if tokens.is_empty() || tokens.len() > vocabulary_size {
        return Err(refuse("id", format!("1 to {vocabulary_size} tokens"), tokens.len().to_string()));
    }
    Ok(tokens)
}

fn check_ids(ids: &dyn Array, first: usize) -> std::result::Result<(), (String, String)> {
    let ids: Vec<u32> = match ids.data_type() {
        DataType::UInt16 => ids.as_primitive::<arrow_array::types::UInt16Type>().values().iter().map(|id| u32::from(*id)).collect(),
        _ => ids.as_primitive::<arrow_array::types::UInt32Type>().values().to_vec(),
    };
    let wrong = ids.iter().enumerate().find(|(row, id)| **id as usize != first + row);
    wrong.map_or(Ok(()), |(row, id)| Err(((first + row).to_string(), id.to_string())))
}
