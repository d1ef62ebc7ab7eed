//! Parquet files written by the Rust writer; those of pyarrow are read by the end-to-end tests.

use super::*;
use arrow_array::builder::{ListBuilder, StringBuilder, StringDictionaryBuilder};
use arrow_array::{ArrayRef, BooleanArray, Float32Array, Int64Array, StringArray, TimestampMillisecondArray, UInt8Array};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

fn words(rows: &[Option<&[Option<&str>]>]) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for row in rows {
        row.iter().copied().flatten().for_each(|word| builder.values().append_option(*word));
        builder.append(row.is_some());
    }
    Arc::new(builder.finish())
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, compression: Compression) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(100)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn open(path: &Path, names: &[&str]) -> (Result<ParquetRecords>, Arc<AtomicU64>) {
    let fields: Vec<Field> = names.iter().map(|name| Field { flag: "--text-field", name: (*name).to_owned() }).collect();
    let bytes_read = Arc::new(AtomicU64::new(0));
    (ParquetRecords::open(&path.into(), path.metadata().unwrap().len(), &bytes_read, &fields), bytes_read)
}

fn rows(mut records: ParquetRecords) -> Vec<(u64, Vec<Value>)> {
    let step = || match records.next().unwrap() {
        Step::Row(Row { place: Place::Row(number), values }) => Some((number, values)),
        Step::End => None,
        other => panic!("{other:?}"),
    };
    std::iter::from_fn(step).collect()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn chosen_columns_of_every_type_come_in_the_order_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.parquet");
    let mut dictionary = StringDictionaryBuilder::<arrow_array::types::Int32Type>::new();
    ["pos", "neg", "pos"].iter().for_each(|label| dictionary.append_value(label));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("when", Arc::new(TimestampMillisecondArray::from(vec![1, 2, 3]))),
        ("text", Arc::new(StringArray::from(vec![Some("one"), None, Some("gr\u{fc}n")]))),
        ("label", Arc::new(dictionary.finish())),
        ("words", words(&[Some(&[Some("a"), None]), Some(&[]), None])),
        ("id", Arc::new(Int64Array::from(vec![-1, 0, i64::MAX]))),
        ("byte", Arc::new(UInt8Array::from(vec![0, 1, 255]))),
        ("score", Arc::new(Float32Array::from(vec![0.5, -1.0, 0.0]))),
        ("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
    ];
    write(&path, columns, Compression::SNAPPY);
    let (records, bytes_read) = open(&path, &["words", "text", "label", "id", "byte", "score", "flag", "text"]);
    let found = rows(records.unwrap());
    assert_eq!(bytes_read.load(Ordering::Relaxed), path.metadata().unwrap().len());
    let row = |words, text_: Value, label, id, byte, score, flag| {
        let (id, byte) = (Value::Integer(id), Value::Integer(byte));
        vec![words, text_.clone(), text(label), id, byte, Value::Number(score), Value::Boolean(flag), text_]
    };
    let expected = [
        (1, row(Value::List(vec![text("a"), Value::Null]), text("one"), "pos", -1, 0, 0.5, true)),
        (2, row(Value::List(vec![]), Value::Null, "neg", 0, 1, -1.0, false)),
        (3, row(Value::Null, text("gr\u{fc}n"), "pos", i64::MAX, 255, 0.0, true)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn rows_are_numbered_through_row_groups_in_every_codec() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.parquet");
    let codecs = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::LZ4_RAW, Compression::LZ4];
    for codec in codecs.into_iter().chain([Compression::GZIP(GzipLevel::default()), Compression::ZSTD(ZstdLevel::default())]) {
        let column = StringArray::from_iter_values((0..333).map(|number| format!("document {number}")));
        write(&path, vec![("text", Arc::new(column))], codec);
        let found = rows(open(&path, &["text"]).0.unwrap());
        assert_eq!(found.len(), 333, "{codec}");
        assert!(
            found
                .iter()
                .zip(0_u64..)
                .all(|((place, values), number)| *place == number + 1 && values[0] == text(&format!("document {number}")))
        );
    }
}

#[test]
fn refusals_name_file_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.parquet");
    write(&path, vec![("when", Arc::new(TimestampMillisecondArray::from(vec![1])))], Compression::UNCOMPRESSED);
    let refused = |names: &[&str], parts: &[&str]| {
        let message = open(&path, names).0.err().unwrap().to_string();
        for part in parts.iter().chain([&"a.parquet"]) {
            assert!(message.contains(part), "{part} in {message}");
        }
    };
    refused(&["text"], &["\"text\"", "\"when\"", "--text-field"]);
    refused(&["when"], &["column \"when\"", "Timestamp", "lists"]);
    std::fs::write(&path, "text\nno Parquet\n").unwrap();
    refused(&["text"], &["Parquet"]);
    std::fs::write(&path, "").unwrap();
    refused(&["text"], &["Parquet"]);
}

#[test]
fn damage_within_a_file_names_the_row() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.parquet");
    let column = StringArray::from_iter_values((0..200).map(|number| format!("{number:x>50}")));
    write(&path, vec![("text", Arc::new(column))], Compression::ZSTD(ZstdLevel::default()));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40..80].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let mut records = open(&path, &["text"]).0.unwrap();
    let error = records.next().unwrap_err().to_string();
    assert!(error.contains("a.parquet") && error.contains("rows from 1 on"), "{error}");
}

#[test]
fn damaged_pages_are_errors_and_no_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.parquet");
    let texts: Vec<String> = (0..300).map(|row| format!("text {}", row % 7)).collect();
    write(&path, vec![("text", Arc::new(StringArray::from(texts)))], Compression::UNCOMPRESSED);
    let sound = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for place in (4..sound.len()).step_by(3) {
        let mut damaged = sound.clone();
        damaged[place] ^= 0xff;
        std::fs::write(&path, damaged).unwrap();
        let (records, _) = open(&path, &["text"]);
        let read = records.and_then(|mut records| {
            loop {
                match records.next()? {
                    Step::End => return Ok(()),
                    Step::Row(_) | Step::Malformed(_) => {}
                }
            }
        });
        if let Err(error) = read {
            assert!(error.to_string().contains("a.parquet"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused}");
}
