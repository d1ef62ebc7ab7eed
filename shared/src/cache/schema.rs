//! Names, types and encodings of the columns, and the key-value metadata by which one shard explains itself.

use crate::cache::manifest::{FORMAT_VERSION, Fingerprints, check_format_version};
use crate::error::{Error, Result};
use crate::target::{TargetSpec, Task};
use arrow_schema::{DataType, Field, Schema};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// The largest vocabulary, or number of classes, whose ids are stored as `UInt16`; larger ones take `UInt32`.
pub const LARGEST_16_BIT_VOCABULARY: usize = 1 << 16;

/// The name of every list's items, as the Parquet format has it.
pub const LIST_ITEM: &str = "element";

/// Level of zstd: a higher one saves under 1 %, but for `top_logits`.
const ZSTD_LEVEL: i32 = 1;

/// Level of zstd for values that fall within each list: a seventh less of their bytes than at level 1. Higher ones save next to nothing up to
/// level 18, and those from there on are slower than a teacher may be.
const ZSTD_LEVEL_FALLING: i32 = 5;

const KEY_VERSION: &str = "logitcache.format_version";
const KEY_PART: &str = "logitcache.part";
const KEY_SHARD: &str = "logitcache.shard";
const KEY_SPEC: &str = "logitcache.spec";
const KEY_FINGERPRINTS: &str = "logitcache.fingerprints";
const KEY_COLUMNS: &str = "logitcache.columns";

pub(super) const RESTORE: &str =
    "restore the file from a copy, or remove it and give precompute its command again, which makes this shard alone";

const LOGITS_COLUMNS: &str = "One row per sequence and pass. input_ids are as the teacher saw them. labels are the gold answers, -100 where there is \
    none: the original ids where masked, the next tokens, the classes of tokens, or one class of the sequence; label_values are gold numbers. \
    embedding is the teacher's vector for the sequence. One entry per asked position in positions, top_ids, top_logits, max_logit and log_z: top_ids are the ids of the largest \
    logits, descending; top_logits are (z - z_max) / T at the spec's first temperature T; max_logit is z_max; log_z has one value per \
    temperature of the spec, log(sum over all classes of exp((z - z_max) / T)). Log-probability at the first T: top_logits - log_z[first].";
const HIDDEN_COLUMNS: &str = "The rows of the logits file with the same number, in the same order. hidden_N is the output of the teacher's encoder layer N \
    (0: of its embeddings), one inner list per token.";

/// `logits-00000.parquet` for shard 0.
pub fn logits_file_name(index: u32) -> String {
    Part::Logits.file_name(index)
}

/// `hidden-00000.parquet` for shard 0.
pub fn hidden_file_name(index: u32) -> String {
    Part::Hidden.file_name(index)
}

/// The two files of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Inputs and logits.
    Logits,
    /// Hidden states.
    Hidden,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Logits => "logits",
            Self::Hidden => "hidden",
        }
    }

    pub(super) fn file_name(self, index: u32) -> String {
        format!("{}-{index:05}.parquet", self.name())
    }

    /// The Arrow schema of this part: every field non-null, list items included.
    pub(super) fn schema(self, spec: &TargetSpec) -> Schema {
        let fields: Vec<Field> = self.columns(spec).into_iter().map(|column| column.field()).collect();
        Schema::new(fields)
    }

    fn columns(self, spec: &TargetSpec) -> Vec<Column> {
        let id = id_type(spec.vocabulary_size());
        let split = |name: &str, item: DataType, nesting: usize| Column { name: name.to_string(), item, nesting, storage: Storage::Split };
        let column =
            |name: &str, item: DataType, nesting: usize, storage: Storage| Column { name: name.to_string(), item, nesting, storage };
        let mut columns = vec![column("sequence_id", DataType::UInt64, 0, Storage::Delta)];
        match self {
            Self::Hidden => {
                let hidden = |layer: &u32| column(&hidden_column(*layer), DataType::Float32, 2, Storage::Split);
                columns.extend(spec.hidden_layers().iter().map(hidden));
            }
            Self::Logits => {
                columns.push(column("document_id", DataType::UInt64, 0, Storage::Delta));
                columns.push(column("pass", DataType::UInt16, 0, Storage::Dictionary));
                columns.push(split("input_ids", id, 1));
                match spec.task() {
                    // Nearly every token has another label, so that a dictionary would be a second copy.
                    Task::CausalLm => columns.push(split("labels", DataType::Int32, 1)),
                    _ if spec.labels_of(1) > 0 => columns.push(column("labels", DataType::Int32, 1, Storage::Dictionary)),
                    _ => {}
                }
                if spec.has_label_values() {
                    columns.push(split("label_values", DataType::Float32, 1));
                }
                if spec.token_type_ids() {
                    columns.push(column("token_type_ids", DataType::UInt8, 1, Storage::Dictionary));
                }
                if spec.embedding_size() > 0 {
                    columns.push(split("embedding", DataType::Float32, 1));
                    return columns;
                }
                columns.push(column("positions", DataType::UInt16, 1, Storage::Delta));
                columns.push(split("top_ids", id_type(spec.classes()), 2));
                columns.push(column("top_logits", DataType::Float32, 2, Storage::SplitFalling));
                columns.push(split("max_logit", DataType::Float32, 1));
                columns.push(split("log_z", DataType::Float32, 2));
            }
        }
        columns
    }

    /// Encodings, compression and key-value metadata of a file of this part. Nothing in them depends on the clock or the machine.
    pub(super) fn properties(self, spec: &TargetSpec, fingerprints: &Fingerprints, index: u32) -> Result<WriterProperties> {
        let json = |key: &str, value: std::result::Result<String, serde_json::Error>| {
            value.map_err(|error| Error::invalid(key, "a value that JSON holds", error.to_string()))
        };
        let columns = if self == Self::Logits { LOGITS_COLUMNS } else { HIDDEN_COLUMNS };
        let key_values = [
            (KEY_VERSION, FORMAT_VERSION.to_string()),
            (KEY_PART, self.name().to_string()),
            (KEY_SHARD, index.to_string()),
            (KEY_SPEC, json(KEY_SPEC, serde_json::to_string(spec))?),
            (KEY_FINGERPRINTS, json(KEY_FINGERPRINTS, serde_json::to_string(fingerprints))?),
            (KEY_COLUMNS, columns.to_string()),
        ];
        let key_values = key_values.into_iter().map(|(key, value)| KeyValue::new(key.to_string(), value)).collect();
        let base = base_properties().set_key_value_metadata(Some(key_values));
        Ok(self.columns(spec).iter().fold(base, |builder, column| column.apply(builder)).build())
    }

    /// Checks the key-value metadata of a file against what the manifest promises of it.
    pub(super) fn check_key_values(self, path: &Path, found: &[KeyValue], promise: &Promise<'_>) -> Result<()> {
        check_format_version(path, KEY_VERSION, parse(path, found, KEY_VERSION)?)?;
        let fingerprints: Fingerprints = parse(path, found, KEY_FINGERPRINTS)?;
        let expected = promise.fingerprints;
        let pairs = [
            ("run", expected.run, fingerprints.run),
            ("teacher", expected.teacher, fingerprints.teacher),
            ("tokenizer", expected.tokenizer, fingerprints.tokenizer),
            ("corpus", expected.corpus, fingerprints.corpus),
        ];
        for (name, expected, found) in pairs {
            if expected != found {
                let (expected, found) = (format!("the manifest's {expected}"), format!("{found}, so this shard is of another run"));
                return Err(Error::data(path, format!("{KEY_FINGERPRINTS}: {name}"), expected, found, RESTORE));
            }
        }
        let spec: TargetSpec = parse(path, found, KEY_SPEC)?;
        if spec != *promise.spec {
            return Err(Error::data(path, KEY_SPEC, format!("the manifest's {:?}", promise.spec), format!("{spec:?}"), RESTORE));
        }
        let expect = |key: &str, expected: String, found: String| {
            if expected == found { Ok(()) } else { Err(Error::data(path, key, expected, found, RESTORE)) }
        };
        expect(KEY_PART, self.name().to_string(), text(path, found, KEY_PART)?.to_string())?;
        expect(KEY_SHARD, promise.index.to_string(), parse::<u32>(path, found, KEY_SHARD)?.to_string())
    }

    /// Checks a file's schema column by column.
    pub(super) fn check_schema(self, path: &Path, found: &Schema, spec: &TargetSpec) -> Result<()> {
        let expected = self.schema(spec);
        for (i, field) in expected.fields().iter().enumerate() {
            let place = format!("column {}", field.name());
            let Some((at, stored)) = found.column_with_name(field.name()) else {
                return Err(Error::data(path, place, describe(field), "no such column", RESTORE));
            };
            if describe(stored) != describe(field) {
                return Err(Error::data(path, place, describe(field), describe(stored), RESTORE));
            }
            if at != i {
                return Err(Error::data(path, place, format!("column number {i}"), format!("column number {at}"), RESTORE));
            }
        }
        match found.fields().get(expected.fields().len()) {
            None => Ok(()),
            Some(extra) => Err(Error::data(path, format!("column {}", extra.name()), "no such column", describe(extra), RESTORE)),
        }
    }
}

/// What the manifest says of a shard's files.
pub(super) struct Promise<'a> {
    pub(super) spec: &'a TargetSpec,
    pub(super) fingerprints: &'a Fingerprints,
    pub(super) index: u32,
}

/// The column of `layer`'s hidden states: `hidden_6`.
pub fn hidden_column(layer: u32) -> String {
    format!("hidden_{layer}")
}

/// The type of token ids for a vocabulary.
pub(super) fn id_type(vocabulary_size: usize) -> DataType {
    if vocabulary_size <= LARGEST_16_BIT_VOCABULARY { DataType::UInt16 } else { DataType::UInt32 }
}

/// Compression and the defaults that every Parquet file of a cache shares.
pub(super) fn base_properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(zstd(ZSTD_LEVEL))
        .set_dictionary_enabled(false)
        .set_created_by(concat!("logitcache version ", env!("CARGO_PKG_VERSION")).to_string())
        // Readers skip by row group; per-page bounds of lists would cost more than they save.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
}

fn zstd(level: i32) -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(level).expect("zstd has levels 1 to 22"))
}

/// How a column is encoded before compression.
#[derive(Clone, Copy, Debug)]
enum Storage {
    /// DELTA_BINARY_PACKED: ascending numbers.
    Delta,
    /// A dictionary with run lengths: few distinct values.
    Dictionary,
    /// BYTE_STREAM_SPLIT: the n-th bytes of all values side by side, which lets zstd see the unused high bytes of an id and the exponents
    /// and empty low bits of float16-rounded values.
    Split,
    /// The same for values that fall within each list, compressed with more effort.
    SplitFalling,
}

/// A column: `nesting` lists around items.
struct Column {
    name: String,
    item: DataType,
    nesting: usize,
    storage: Storage,
}

impl Column {
    fn field(&self) -> Field {
        let nest = |inner: DataType, _| DataType::List(Arc::new(Field::new(LIST_ITEM, inner, false)));
        Field::new(&self.name, (0..self.nesting).fold(self.item.clone(), nest), false)
    }

    fn apply(&self, builder: WriterPropertiesBuilder) -> WriterPropertiesBuilder {
        let mut parts = vec![self.name.clone()];
        (0..self.nesting).for_each(|_| parts.extend(["list".to_string(), LIST_ITEM.to_string()]));
        let path = ColumnPath::new(parts);
        let statistics = if self.nesting == 0 { EnabledStatistics::Chunk } else { EnabledStatistics::None };
        let builder = builder.set_column_statistics_enabled(path.clone(), statistics);
        match self.storage {
            Storage::Dictionary => builder.set_column_dictionary_enabled(path, true),
            Storage::Delta => builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED),
            Storage::Split => builder.set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT),
            Storage::SplitFalling => builder
                .set_column_encoding(path.clone(), Encoding::BYTE_STREAM_SPLIT)
                .set_column_compression(path, zstd(ZSTD_LEVEL_FALLING)),
        }
    }
}

/// A field's type in words, nullability included: what the check compares and what its error says.
fn describe(field: &Field) -> String {
    let null = if field.is_nullable() { "nullable " } else { "" };
    match field.data_type() {
        DataType::List(item) if item.name() == LIST_ITEM => format!("{null}list of {}", describe(item)),
        DataType::List(item) => format!("{null}list of {} named {}", describe(item), item.name()),
        other => format!("{null}{other}"),
    }
}

fn text<'a>(path: &Path, found: &'a [KeyValue], key: &str) -> Result<&'a str> {
    let value = found.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref());
    value.ok_or_else(|| Error::data(path, key, "the key-value metadata of a cache's shard", "no such key", RESTORE))
}

fn parse<T: DeserializeOwned>(path: &Path, found: &[KeyValue], key: &str) -> Result<T> {
    let value = text(path, found, key)?;
    serde_json::from_str(value).map_err(|error| Error::data(path, key, "a value in JSON", error.to_string(), RESTORE))
}
