//! A Parquet file from its row groups: encoded on several threads, appended in order, hashed on the way and published whole.

use crate::atomic_file::write_atomically;
use crate::cache::in_order::in_order;
use crate::error::{Error, Result};
use crate::fingerprint::{Fingerprint, Hasher};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{FieldRef, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowWriterOptions, compute_leaves};
use parquet::file::properties::{DEFAULT_WRITE_BATCH_SIZE, WriterProperties};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

/// What a written file came to.
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) sha256: Fingerprint,
}

/// Publishes a Parquet file of `groups` row groups, number i of the rows of `build(i)`. They are built, encoded and compressed on `threads` threads;
/// the bytes are those of parquet's [`ArrowWriter`] with a flush after each. Memory: `threads` row groups as values and as encoded, and the encoded
/// one that is being appended.
///
/// # Errors
/// The first of `build` in the order of the groups, and [`Error::Io`] and [`Error::Library`] where the file cannot be written; there is none then.
pub(super) fn write_parquet(
    path: &Path,
    schema: Schema,
    properties: WriterProperties,
    threads: usize,
    groups: usize,
    build: impl Fn(usize) -> Result<RecordBatch> + Sync,
) -> Result<Written> {
    let mut written = None;
    write_atomically(path, |file| {
        // Arrow's own copy of the schema would say nothing that Parquet's does not.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let hashing = HashingWriter { file, hasher: Hasher::new(), bytes: 0 };
        let writer = ArrowWriter::try_new_with_options(hashing, Arc::new(schema), options);
        let (mut writer, columns) = writer.and_then(ArrowWriter::into_serialized_writer).map_err(Error::library("write", path))?;
        let make = |group| {
            let batch = build(group)?;
            columns.create_column_writers(group).and_then(|columns| encode(&batch, columns)).map_err(Error::library("write", path))
        };
        let mut append = |chunks: Vec<ArrowColumnChunk>| {
            let mut group = writer.next_row_group()?;
            chunks.into_iter().try_for_each(|chunk| chunk.append_to_row_group(&mut group))?;
            group.close().map(drop)
        };
        in_order(threads, groups, make, |chunks| append(chunks).map_err(Error::library("write", path)))?;
        let hashing = writer.into_inner().map_err(Error::library("write", path))?;
        written = Some(Written { bytes: hashing.bytes, sha256: hashing.hasher.finish() });
        Ok(())
    })?;
    Ok(written.expect("write_atomically runs its closure"))
}

/// A row group's columns, one after the other. A field is one column: there are lists in a cache, and no structs.
fn encode(batch: &RecordBatch, columns: Vec<ArrowColumnWriter>) -> parquet::errors::Result<Vec<ArrowColumnChunk>> {
    let fields = batch.schema_ref().fields().iter().zip(batch.columns());
    let encode = |((field, array), mut column): ((&FieldRef, &ArrayRef), ArrowColumnWriter)| {
        for rows in pieces(array) {
            compute_leaves(field, &rows)?.iter().try_for_each(|leaf| column.write(leaf))?;
        }
        column.close()
    };
    fields.zip(columns).map(encode).collect()
}

/// A column row by row where that gives the same bytes, else whole. While it is written, a value of a nested list takes ten bytes of levels and
/// indices, which for a row fit into a processor's cache, and for a whole group are several times its size. The bytes are the same where every row
/// alone is as long as what parquet encodes at a time, since it never parts a row: then it takes the rows one by one by itself.
fn pieces(array: &ArrayRef) -> Vec<ArrayRef> {
    let mut ends: Vec<usize> = (0..=array.len()).collect();
    let mut items = array;
    while let Some(list) = items.as_list_opt::<i32>() {
        ends.iter_mut().for_each(|end| *end = list.value_offsets()[*end] as usize);
        items = list.values();
    }
    let long = ends.windows(2).all(|row| row[1] - row[0] >= DEFAULT_WRITE_BATCH_SIZE);
    if long { (0..array.len()).map(|row| array.slice(row, 1)).collect() } else { vec![array.clone()] }
}

/// Counts and hashes what passes, so that the file need not be read again.
struct HashingWriter<'a> {
    file: &'a mut BufWriter<File>,
    hasher: Hasher,
    bytes: u64,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::schema::{LIST_ITEM, base_properties};
    use arrow_array::types::Float32Type;
    use arrow_array::{ListArray, PrimitiveArray};
    use arrow_buffer::OffsetBuffer;
    use arrow_schema::{DataType, Field};

    const WIDTH: usize = 64;

    /// One column of lists of lists of [`WIDTH`] numbers, a row per length.
    fn batch(lengths: &[usize]) -> RecordBatch {
        let list = |items: ArrayRef, lengths: Vec<usize>| {
            let field = Arc::new(Field::new(LIST_ITEM, items.data_type().clone(), false));
            Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), items, None)) as ArrayRef
        };
        let inner: usize = lengths.iter().sum();
        let numbers = (0..inner * WIDTH).map(|number| (number * number % 1013) as f32);
        let numbers: ArrayRef = Arc::new(PrimitiveArray::<Float32Type>::from_iter_values(numbers));
        let column = list(list(numbers, vec![WIDTH; inner]), lengths.to_vec());
        let nested = Field::new(LIST_ITEM, DataType::List(Arc::new(Field::new(LIST_ITEM, DataType::Float32, false))), false);
        let schema = Schema::new(vec![Field::new("numbers", DataType::List(Arc::new(nested)), false)]);
        RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
    }

    /// The file as parquet writes it by itself.
    fn plainly(batches: &[RecordBatch]) -> Vec<u8> {
        let options = ArrowWriterOptions::new().with_properties(base_properties().build()).with_skip_arrow_metadata(true);
        let mut writer = ArrowWriter::try_new_with_options(Vec::new(), batches[0].schema(), options).unwrap();
        for batch in batches {
            writer.write(batch).unwrap();
            writer.flush().unwrap();
        }
        writer.into_inner().unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_a_plain_writer() {
        let long = [16, 17, 40, 128, 16, 300, 90];
        let mixed = [16, 3, 0, 128, 15, 1, 1, 40, 0];
        for lengths in [&long[..], &mixed[..], &[1; 50], &[0, 0], &[128; 60]] {
            let batches = [batch(lengths), batch(&long), batch(lengths), batch(&lengths[1..])];
            let expected = plainly(&batches);
            for threads in [1, 2, 4] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("file.parquet");
                let schema = batches[0].schema().as_ref().clone();
                let build = |group: usize| Ok(batches[group].clone());
                let written = write_parquet(&path, schema, base_properties().build(), threads, batches.len(), build).unwrap();
                assert!(std::fs::read(&path).unwrap() == expected, "{lengths:?} on {threads} threads");
                assert_eq!((written.bytes, written.sha256), (expected.len() as u64, Fingerprint::of_bytes(&expected)));
            }
        }
    }

    #[test]
    fn only_a_column_of_long_rows_is_cut() {
        let pieces_of = |lengths: &[usize]| pieces(batch(lengths).column(0)).len();
        assert_eq!([pieces_of(&[16, 17, 40]), pieces_of(&[16, 15, 40]), pieces_of(&[0, 40])], [3, 1, 1]);
    }
}
