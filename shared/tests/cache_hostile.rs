//! Caches that are not what they say: each is refused with the file, the field, what was expected, what was found and what to do, and none
//! brings the reader down.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod synthetic;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use logitcache::cache::manifest::{Manifest, ShardEntry};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::writer::write_shard;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use synthetic::{Shape, fingerprints, records, spec, write_cache};
use tempfile::TempDir;

const LOGITS: &str = "logits-00000.parquet";
const HIDDEN: &str = "hidden-00000.parquet";
const VOCABULARY: &str = "vocabulary.parquet";
const SHAPE: Shape = Shape { longest: 12, share_asked: 0.7 };

fn cache() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let shards = [records(&spec(), SHAPE, 0, 0, 6, 1), records(&spec(), SHAPE, 0, 6, 5, 1)];
    write_cache(directory.path(), &spec(), "run", &shards);
    directory
}

fn read_everything(directory: &Path) -> Result<usize> {
    let cache = Cache::open(directory)?;
    let (mut rows, projection) = (0, Projection { hidden_layers: vec![12, 6] });
    for index in 0..cache.shards() {
        let shard = cache.shard(index)?;
        for group in 0..shard.row_groups() {
            rows += shard.read(group, &projection)?.len();
        }
    }
    Ok(rows)
}

/// The error's text, once it is known to be about data and to name each of `parts`.
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Data { .. }), "{error:?}");
    for part in parts.iter().chain(&["expected", "found", ";"]) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn edit_manifest(directory: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = directory.join("manifest.json");
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Makes the manifest's size and checksum those of the file as it is: only its content can be refused then.
fn adopt(directory: &Path, name: &str) {
    let bytes = fs::read(directory.join(name)).unwrap();
    let part = if name.starts_with("logits") { "logits" } else { "hidden" };
    edit_manifest(directory, |manifest| {
        let entry = &mut manifest["shards"][0][part];
        entry["bytes"] = bytes.len().into();
        entry["sha256"] = Fingerprint::of_bytes(&bytes).to_string().into();
    });
}

/// Writes shard 0's file again with other columns or other key-value metadata, and adopts it.
fn rewrite(directory: &Path, name: &str, columns: impl Fn(&Field, &ArrayRef) -> Option<(Field, ArrayRef)>, keys: impl Fn(&mut KeyValue)) {
    let path = directory.join(name);
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let mut key_values = builder.metadata().file_metadata().key_value_metadata().unwrap().clone();
    key_values.iter_mut().for_each(keys);
    let batch = builder.build().unwrap().next().unwrap().unwrap();
    let schema = batch.schema();
    let kept = schema.fields().iter().zip(batch.columns()).filter_map(|(field, column)| columns(field, column));
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = kept.unzip();
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder().set_key_value_metadata(Some(key_values)).build();
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), schema.clone(), Some(properties)).unwrap();
    writer.write(&RecordBatch::try_new(schema, arrays).unwrap()).unwrap();
    writer.close().unwrap();
    adopt(directory, name);
}

fn as_it_is(field: &Field, column: &ArrayRef) -> Option<(Field, ArrayRef)> {
    Some((field.clone(), column.clone()))
}

#[test]
fn a_sound_cache_is_read() {
    let directory = cache();
    assert_eq!(read_everything(directory.path()).unwrap(), 11);
    rewrite(directory.path(), LOGITS, as_it_is, |_| {});
    assert_eq!(read_everything(directory.path()).unwrap(), 11, "another writer's file with the same content");
}

#[test]
fn no_manifest() {
    assert_refused(Cache::open(tempfile::tempdir().unwrap().path()), &["manifest.json", "no such file", "precompute"]);
}

#[test]
fn a_manifest_that_is_none() {
    for (text, part) in [("", "format_version"), ("[1]", "format_version"), ("{\"format_version\": 1}", "missing field")] {
        let directory = cache();
        fs::write(directory.path().join("manifest.json"), text).unwrap();
        assert_refused(Cache::open(directory.path()), &["manifest.json", part]);
    }
}

#[test]
fn a_newer_version() {
    let directory = cache();
    edit_manifest(directory.path(), |manifest| {
        manifest["format_version"] = 2.into();
        manifest["something new"] = true.into();
    });
    assert_refused(Cache::open(directory.path()), &["manifest.json", "format_version", "version 1", "version 2", "newer programs"]);

    let directory = cache();
    rewrite(directory.path(), LOGITS, as_it_is, |entry| {
        if entry.key == "logitcache.format_version" {
            entry.value = Some("2".to_string());
        }
    });
    assert_refused(read_everything(directory.path()), &[LOGITS, "logitcache.format_version", "version 2", "newer programs"]);
}

#[test]
fn a_manifest_that_contradicts_itself() {
    type Edit = fn(&mut serde_json::Value);
    let edits: [(Edit, &str); 7] = [
        (|manifest| manifest["shards"][1]["index"] = 5.into(), "shards[1].index"),
        (|manifest| manifest["shards"][0]["logits"]["name"] = "../../elsewhere".into(), "shards[0].logits.name"),
        (|manifest| manifest["shards"][0]["hidden"] = serde_json::Value::Null, "shards[0].hidden"),
        (|manifest| manifest["shards"][0]["hidden"]["rows"] = 7.into(), "shards[0].hidden.rows"),
        (|manifest| manifest["shards"][0]["first_sequence"] = u64::MAX.into(), "shards[0].logits.rows"),
        (|manifest| manifest["counts"] = serde_json::Value::Null, "counts"),
        (|manifest| manifest["spec"]["top_k"] = 10_000.into(), "top_k"),
    ];
    for (edit, field) in edits {
        let directory = cache();
        edit_manifest(directory.path(), edit);
        assert_refused(Cache::open(directory.path()), &["manifest.json", field]);
    }
}

#[test]
fn an_unfinished_run() {
    let directory = cache();
    let mut manifest = Manifest::read(directory.path()).unwrap();
    (manifest.complete, manifest.counts) = (false, None);
    manifest.write(directory.path()).unwrap();
    assert_refused(Cache::open(directory.path()), &["manifest.json", "complete", "2 shards", "continues"]);
}

#[test]
fn a_truncated_shard() {
    let directory = cache();
    let path = directory.path().join(LOGITS);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(Cache::open(directory.path()), &[LOGITS, "size", &format!("{} bytes", bytes.len() / 2)]);
    for length in [0, 4, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        adopt(directory.path(), LOGITS);
        assert_refused(read_everything(directory.path()), &[LOGITS, "a Parquet file"]);
    }
}

#[test]
fn a_missing_shard() {
    let directory = cache();
    fs::remove_file(directory.path().join("hidden-00001.parquet")).unwrap();
    assert_refused(Cache::open(directory.path()), &["hidden-00001.parquet", "no such file"]);
}

#[test]
fn a_shard_of_another_run() {
    let directory = cache();
    write_shard(directory.path(), 2, &spec(), &fingerprints("another"), &records(&spec(), SHAPE, 0, 11, 3, 1), 1).unwrap();
    assert_refused(Cache::open(directory.path()), &["hidden-00002.parquet", "another run", "remove it"]);

    for (name, part) in [(LOGITS, "logits"), (HIDDEN, "hidden")] {
        let (directory, other) = (cache(), tempfile::tempdir().unwrap());
        let entry = write_shard(other.path(), 0, &spec(), &fingerprints("another"), &records(&spec(), SHAPE, 0, 0, 6, 1), 1).unwrap();
        fs::copy(other.path().join(name), directory.path().join(name)).unwrap();
        let sizes = (fs::metadata(other.path().join(name)).unwrap().len(), entry.logits.rows);
        assert!(sizes.0 > 0 && sizes.1 == 6, "{part}");
        assert_refused(read_everything(directory.path()), &[name, "sha256"]);
        adopt(directory.path(), name);
        assert_refused(read_everything(directory.path()), &[name, "logitcache.fingerprints: run", "of another run"]);
    }
}

#[test]
fn files_that_changed_places() {
    let directory = cache();
    fs::copy(directory.path().join("logits-00001.parquet"), directory.path().join(LOGITS)).unwrap();
    adopt(directory.path(), LOGITS);
    assert_refused(read_everything(directory.path()), &[LOGITS, "logitcache.shard", "expected 0", "found 1"]);

    let directory = cache();
    fs::copy(directory.path().join(HIDDEN), directory.path().join(LOGITS)).unwrap();
    adopt(directory.path(), LOGITS);
    assert_refused(read_everything(directory.path()), &[LOGITS, "logitcache.part", "expected logits", "found hidden"]);
}

#[test]
fn columns_of_another_type() {
    let directory = cache();
    let as_labels = |field: &Field, column: &ArrayRef| match field.name().as_str() {
        "pass" => {
            Some((Field::new("pass", DataType::UInt64, false), Arc::new(arrow_array::UInt64Array::from(vec![0; column.len()])) as ArrayRef))
        }
        _ => as_it_is(field, column),
    };
    rewrite(directory.path(), LOGITS, as_labels, |_| {});
    assert_refused(read_everything(directory.path()), &[LOGITS, "column pass", "expected UInt16", "found UInt64"]);

    let directory = cache();
    let nullable = |field: &Field, column: &ArrayRef| Some((field.clone().with_nullable(field.name() == "hidden_12"), column.clone()));
    rewrite(directory.path(), HIDDEN, nullable, |_| {});
    assert_refused(read_everything(directory.path()), &[HIDDEN, "column hidden_12", "found nullable list of list of Float32"]);
}

#[test]
fn columns_that_are_missing_or_too_many() {
    let directory = cache();
    let without = |field: &Field, column: &ArrayRef| (field.name() != "log_z").then(|| (field.clone(), column.clone()));
    rewrite(directory.path(), LOGITS, without, |_| {});
    assert_refused(read_everything(directory.path()), &[LOGITS, "column log_z", "list of list of Float32", "no such column"]);

    let directory = cache();
    let renamed = |field: &Field, column: &ArrayRef| {
        Some((if field.name() == "hidden_6" { field.clone().with_name("hidden_7") } else { field.clone() }, column.clone()))
    };
    rewrite(directory.path(), HIDDEN, renamed, |_| {});
    assert_refused(read_everything(directory.path()), &[HIDDEN, "column hidden_6", "no such column"]);
}

#[test]
fn values_that_break_the_promise() {
    let directory = cache();
    let swapped = |field: &Field, column: &ArrayRef| match field.name().as_str() {
        "sequence_id" => Some((field.clone(), Arc::new(arrow_array::UInt64Array::from_iter_values(10..16)) as ArrayRef)),
        _ => as_it_is(field, column),
    };
    rewrite(directory.path(), LOGITS, swapped, |_| {});
    assert_refused(read_everything(directory.path()), &[LOGITS, "column sequence_id", "sequence 0 of pass 0", "sequence 10"]);

    let directory = cache();
    rewrite(directory.path(), HIDDEN, swapped, |_| {});
    assert_refused(read_everything(directory.path()), &[HIDDEN, "column sequence_id", "the logits file's 0", "found 10"]);
}

#[test]
fn flipped_bytes_are_seen_by_the_checksum() {
    let directory = cache();
    for name in [LOGITS, HIDDEN] {
        let path = directory.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 50) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            fs::write(&path, flipped).unwrap();
            assert_refused(Cache::open(directory.path()).unwrap().verify(), &[name, "sha256", "the content has changed"]);
            assert_refused(read_everything(directory.path()), &[name, "sha256"]);
        }
        fs::write(&path, bytes).unwrap();
    }
    Cache::open(directory.path()).unwrap().verify().unwrap();
}

/// Where a manifest vouches for broken content, a wrong value may pass for a right one, but nothing may bring the reader down.
#[test]
fn flipped_bytes_under_a_matching_checksum_never_panic() {
    let directory = cache();
    for name in [LOGITS, HIDDEN] {
        let path = directory.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(1.max(bytes.len() / 120)) {
            for bits in [0x01, 0x80, 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] ^= bits;
                fs::write(&path, flipped).unwrap();
                adopt(directory.path(), name);
                if let Err(error) = read_everything(directory.path()) {
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
        }
        fs::write(&path, bytes).unwrap();
        adopt(directory.path(), name);
    }
}

#[test]
fn a_vocabulary_that_is_none() {
    let directory = cache();
    let (cache, path) = (Cache::open(directory.path()).unwrap(), directory.path().join(VOCABULARY));
    assert_eq!(cache.vocabulary().unwrap()[590], "token 590");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_refused(cache.vocabulary(), &[VOCABULARY, "a Parquet file"]);
    }
    fs::copy(directory.path().join(LOGITS), &path).unwrap();
    assert_refused(cache.vocabulary(), &[VOCABULARY, "id", "sequence_id UInt64"]);
}

/// No checksum vouches for this file, so a flipped bit may change a token; it must not bring the reader down.
#[test]
fn flipped_bytes_of_the_vocabulary_never_panic() {
    let directory = cache();
    let (cache, path) = (Cache::open(directory.path()).unwrap(), directory.path().join(VOCABULARY));
    let bytes = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= bits;
            fs::write(&path, flipped).unwrap();
            if let Err(error) = cache.vocabulary() {
                assert!(error.to_string().contains(VOCABULARY), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn asking_for_what_is_not_there() {
    let directory = cache();
    let cache = Cache::open(directory.path()).unwrap();
    let message = cache.shard(2).unwrap_err().to_string();
    assert!(message.contains("below 2"), "{message}");
    let shard = cache.shard(0).unwrap();
    let message = shard.read(1, &Projection::default()).unwrap_err().to_string();
    assert!(message.contains("below 1"), "{message}");
    let message = shard.read(0, &Projection { hidden_layers: vec![7] }).unwrap_err().to_string();
    assert!(message.contains("hidden_7") && message.contains("[6, 12]"), "{message}");
}

#[test]
fn records_that_a_shard_cannot_hold() {
    let directory = tempfile::tempdir().unwrap();
    let write = |edit: &dyn Fn(&mut Vec<logitcache::cache::record::Record>)| -> Result<ShardEntry> {
        let mut rows = records(&spec(), Shape { share_asked: 1.0, ..SHAPE }, 0, 0, 3, 1);
        edit(&mut rows);
        write_shard(directory.path(), 0, &spec(), &fingerprints("run"), &rows, 1)
    };
    let message = |edit: &dyn Fn(&mut Vec<logitcache::cache::record::Record>)| write(edit).unwrap_err().to_string();
    assert!(message(&|rows| rows.clear()).contains("at least one row"));
    assert!(message(&|rows| rows[2].sequence_id = 7).contains("sequence 7"));
    assert!(message(&|rows| rows[1].pass = 1).contains("pass 1"));
    assert!(message(&|rows| rows[1].hidden_states[1][0] = 70_000.0).contains("70000 in sequence 1"));
    assert!(message(&|rows| rows[0].log_z[0] = f32::NAN).contains("log_z"));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() == "hidden-00000.parquet").count(),
        0
    );
    write(&|rows| rows[0].top_logits[3] = -1e9).unwrap();
}
