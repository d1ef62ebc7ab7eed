//! A cache directory: what a teacher answered, written once and read by any number of students.
//!
//! ```text
//! cache/
//!   manifest.json           the index: spec, fingerprints, settings, counts, and per shard its rows, bytes and sha256
//!   logits-00000.parquet    shard 0: one row per sequence, its inputs and the teacher's top-k
//!   hidden-00000.parquet    shard 0: the same rows in the same order and row groups; only where hidden layers are stored
//!   logits-00001.parquet    ...
//!   vocabulary.parquet      id, token: any Parquet tool turns ids into text with a join
//!   teacher/                the teacher's config and tokenizer files, as they were
//!   timing.json             how long it took: the one file that a rerun writes differently
//! ```
//!
//! A shard is a contiguous range of the sequences of one pass; the shards of pass 1 follow those of pass 0.
//!
//! | logits column | type | one value per |
//! | --- | --- | --- |
//! | `sequence_id`, `document_id` | uint64 | row |
//! | `pass` | uint16 | row |
//! | `input_ids` | list of id | token |
//! | `labels` | list of int32 | token, or one for the row; -100 where there is no gold answer |
//! | `label_values` | list of float | gold number; none in a row without |
//! | `token_type_ids` | list of uint8 | token; only where the teacher has segments |
//! | `positions` | list of uint16 | asked position |
//! | `top_ids` | list of list of id | asked position and k |
//! | `top_logits` | list of list of float | asked position and k: (z - z_max) / T at the first temperature |
//! | `max_logit` | list of float | asked position: z_max |
//! | `log_z` | list of list of float | asked position and temperature |
//! | `embedding` | list of float | dimension of the vector |
//!
//! Which of them there are follows from the task:
//!
//! | task | labels | positions asked | answers |
//! | --- | --- | --- | --- |
//! | masked-lm | the original id where masked | as the rule says | `top_ids` ... `log_z` over the vocabulary |
//! | causal-lm | the next id | as the rule says | the same |
//! | token-classification | the token's class | as the rule says | the same over the classes, k all of them |
//! | sequence-classification | the row's class in `labels`, or numbers in `label_values` | 0, for the row | the same |
//! | sentence-embedding | a number for a pair of rows in `label_values` | no such columns | `embedding` |
//!
//! | hidden column | type | one value per |
//! | --- | --- | --- |
//! | `sequence_id` | uint64 | row |
//! | `hidden_N` | list of list of float | token and hidden unit |
//!
//! An id is uint16 where the vocabulary (or the classes, for `top_ids`) has at most 65,536 entries, else uint32. No field is nullable and every list's items are named
//! `element`. `top_logits`, `embedding` and `hidden_N` are rounded to float16 values unless the spec says float32, but held as FLOAT: BYTE_STREAM_SPLIT
//! and zstd squeeze the empty bits out again, and every reader knows the type.
//!
//! Every shard carries, as Parquet key-value metadata, `logitcache.format_version`, `logitcache.part` (`logits` or `hidden`),
//! `logitcache.shard` (its number), `logitcache.spec` and `logitcache.fingerprints` (JSON) and `logitcache.columns` (their meaning in words):
//! one file alone says what it is.
//!
//! # What never changes
//!
//! - `manifest.json` is a JSON object with an integer `format_version`, and a shard has the key `logitcache.format_version`: any reader can
//!   tell that a cache is too new for it, and says so.
//! - A version's columns, their types and their meaning. Another meaning is another version ([`manifest::FORMAT_VERSION`]), and the readers
//!   of published versions stay.
//! - The bytes of a shard follow from its records, the spec, the fingerprints and the version of this crate: no clock, no host, no threads.
//! - A file appears under its final name whole, and the manifest names a shard only once its files are there.
//!
//! [`writer`] and [`reader`] mirror each other, as `encode` and `decode` do beneath them; [`record`] is what passes through.

mod decode;
mod encode;
pub mod guard;
mod in_order;
pub mod manifest;
mod parquet_file;
pub mod reader;
pub mod record;
pub mod schema;
mod vocabulary;
pub mod writer;
