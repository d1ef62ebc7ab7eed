//! Parquet: some columns of a file, a few rows at a time.
//!
//! Only the chosen columns are read, page by page, so memory holds a page of each and [`BATCH_ROWS`] rows, however large the row groups are.

use super::document::Place;
use super::fields::{Field, Records, Row, Step, Value, columns};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use logitcache::cache::guard::guarded;
use logitcache::error::{Error, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 64;

/// The rows of a file.
pub(super) struct ParquetRecords {
    path: Arc<Path>,
    reader: ParquetRecordBatchReader,
    /// For each field, its column in a batch.
    places: Vec<usize>,
    batch: Option<RecordBatch>,
    next_in_batch: usize,
    /// Rows given so far, and those of the file.
    rows: u64,
    all_rows: u64,
    progress: Progress,
}

/// The file's bytes, told as its rows are read: what is read of a chosen column says nothing of the file's size.
struct Progress {
    told: u64,
    bytes: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Progress {
    fn tell(&mut self, rows: u64, all_rows: u64) {
        let read = (u128::from(self.bytes) * u128::from(rows.min(all_rows))).checked_div(u128::from(all_rows)).unwrap_or(0) as u64;
        let read = if rows >= all_rows { self.bytes } else { read };
        self.bytes_read.fetch_add(read - self.told, Ordering::Relaxed);
        self.told = read;
    }
}

impl ParquetRecords {
    /// Opens `path` and looks at its schema; `bytes` is its size on disk.
    ///
    /// # Errors
    /// A file that is not Parquet, a column that is not there or has a type that is neither text, number, nor a list of them.
    pub(super) fn open(path: &Arc<Path>, bytes: u64, bytes_read: &Arc<AtomicU64>, fields: &[Field]) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // Without the writer's Arrow schema a text is a text, whether or not it was a dictionary or a view in the writer's memory.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new_with_options(file, options));
        let builder = builder.map_err(Error::library("read the schema of the Parquet file", path))?;
        let schema = Arc::clone(builder.schema());
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let chosen = columns(fields, Some(&names), names.len(), path)?;
        for (field, column) in fields.iter().zip(&chosen) {
            let data_type = schema.field(*column).data_type();
            if !is_readable(data_type) {
                let expected = "text, numbers, booleans, or lists of them";
                let remedy = format!("name another column with {}", field.flag);
                return Err(Error::data(path, format!("column {:?}", names[*column]), expected, format!("{data_type}"), remedy));
            }
        }
        let mut read: Vec<usize> = chosen.clone();
        read.sort_unstable();
        read.dedup();
        let places = chosen.iter().filter_map(|column| read.binary_search(column).ok()).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), read);
        let all_rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        let reader = guarded(|| builder.with_projection(mask).with_batch_size(BATCH_ROWS).build());
        let reader = reader.map_err(Error::library("read the columns of the Parquet file", path))?;
        let progress = Progress { told: 0, bytes, bytes_read: Arc::clone(bytes_read) };
        Ok(Self { path: Arc::clone(path), reader, places, batch: None, next_in_batch: 0, rows: 0, all_rows, progress })
    }

    fn next_batch(&mut self) -> Result<bool> {
        self.progress.tell(self.rows, self.all_rows);
        (self.batch, self.next_in_batch) = (None, 0);
        while let Some(batch) = guarded(|| Ok(self.reader.next().transpose()?))
            .map_err(Error::library(format!("decode the rows from {} on of", self.rows + 1), &self.path))?
        {
            if batch.num_rows() > 0 {
                self.batch = Some(batch);
                return Ok(true);
            }
        }
        self.progress.tell(self.all_rows, self.all_rows);
        Ok(false)
    }
}

impl Records for ParquetRecords {
    fn next(&mut self) -> Result<Step> {
        if self.batch.as_ref().is_none_or(|batch| self.next_in_batch == batch.num_rows()) && !self.next_batch()? {
            return Ok(Step::End);
        }
        let Some(batch) = &self.batch else { return Ok(Step::End) };
        let row = self.next_in_batch;
        self.next_in_batch += 1;
        self.rows += 1;
        let place = Place::Row(self.rows);
        let values: Option<Vec<Value>> = self.places.iter().map(|place| value(batch.column(*place), row)).collect();
        Ok(match values {
            Some(values) => Step::Row(Row { place, values }),
            None => {
                let remedy = "convert the column to UTF-8 text";
                Step::Malformed(Error::data(&self.path, place.to_string(), "UTF-8 text", "bytes that are none", remedy))
            }
        })
    }
}

fn is_readable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary | DataType::Boolean | DataType::Null => true,
        DataType::List(items) | DataType::LargeList(items) | DataType::FixedSizeList(items, _) => is_readable(items.data_type()),
        other => other.is_integer() || other.is_floating(),
    }
}

/// The value of a row; none for bytes that are not UTF-8. Only the types of [`is_readable`] come here.
fn value(array: &dyn Array, row: usize) -> Option<Value> {
    if array.is_null(row) {
        return Some(Value::Null);
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| Value::Text(text.to_owned()));
    let list = |items: Arc<dyn Array>| (0..items.len()).map(|item| value(&items, item)).collect::<Option<Vec<_>>>().map(Value::List);
    Some(match array.data_type() {
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Value::Text(array.as_string::<i64>().value(row).to_owned()),
        DataType::Binary => text(array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => text(array.as_binary::<i64>().value(row))?,
        DataType::List(_) => list(array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row))?,
        DataType::Boolean => Value::Boolean(array.as_boolean().value(row)),
        DataType::Int8 => Value::Integer(array.as_primitive::<Int8Type>().value(row).into()),
        DataType::Int16 => Value::Integer(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Value::Integer(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Value::Integer(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Value::Integer(array.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Value::Integer(array.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => Value::Integer(array.as_primitive::<UInt32Type>().value(row).into()),
        DataType::UInt64 => {
            let number = array.as_primitive::<UInt64Type>().value(row);
            i64::try_from(number).map_or(Value::Number(number as f64), Value::Integer)
        }
        DataType::Float16 => Value::Number(array.as_primitive::<Float16Type>().value(row).into()),
        DataType::Float32 => Value::Number(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Value::Number(array.as_primitive::<Float64Type>().value(row)),
        _ => Value::Other("a value of another type"),
    })
}

#[cfg(test)]
mod tests;
