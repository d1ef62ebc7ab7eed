//! Writing a model that was built here, one weight at a time.
//!
//! A model of at most [`LARGEST_MODEL_BYTES`] is one file. A larger one is no protobuf message that a reader takes: its weights then go end to end
//! into `NAME.onnx_data` beside it, each beginning at a page, and the model says where each lies.

use super::builder::{FLOAT32, GraphBuilder, Weight};
use super::messages::{EXTERNAL, EntryProto, TensorProto};
use super::written::OperatorSet;
use crate::atomic_file::write_atomically;
use crate::error::{Error, Result};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int64, message, string};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of a protobuf message at most, as its readers have it.
pub const LARGEST_MODEL_BYTES: u64 = i32::MAX as u64;

/// The version of the standard operations that a model is written with: the first that has LayerNormalization.
pub const OPSET: i64 = 17;

/// The version of the file format that came with [`OPSET`].
const IR_VERSION: i64 = 8;

/// Where the operating system can map a weight into memory.
const PAGE_BYTES: u64 = 4096;

/// Field numbers of ONNX's `ModelProto`, `GraphProto` and `TensorProto`.
mod field {
    pub(super) const IR_VERSION: u32 = 1;
    pub(super) const PRODUCER: u32 = 2;
    pub(super) const PRODUCER_VERSION: u32 = 3;
    pub(super) const GRAPH: u32 = 7;
    pub(super) const OPSETS: u32 = 8;
    pub(super) const NODES: u32 = 1;
    pub(super) const GRAPH_NAME: u32 = 2;
    pub(super) const INITIALIZERS: u32 = 5;
    pub(super) const INPUTS: u32 = 11;
    pub(super) const OUTPUTS: u32 = 12;
    pub(super) const RAW_DATA: u32 = 9;
}

/// The file beside a model in which its weights lie where they are too many: `model.onnx_data` for `model.onnx`.
pub fn data_path(model: &Path) -> PathBuf {
    let mut name = model.as_os_str().to_owned();
    name.push("_data");
    PathBuf::from(name)
}

/// Publishes the model at `path`; where it would be larger than `largest_bytes` ([`LARGEST_MODEL_BYTES`] but in tests), the weights beside it,
/// before it. `values(i)` gives those of weight i, row-major; one weight is in memory at a time. Gives the bytes of all that was written.
///
/// # Errors
/// Whatever `values` returns, values of another number than the shape's, a refusal of the file system; an existing model is then as it was, unless
/// both the old and the new one have their weights beside them.
pub fn write_model(
    path: &Path,
    graph: &GraphBuilder,
    largest_bytes: u64,
    mut values: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<u64> {
    let tail = graph_tail(graph);
    let headers: Vec<Vec<u8>> = graph.weights.iter().map(inline_header).collect();
    let inline: u64 = headers.iter().zip(&graph.weights).map(|(header, weight)| framed(header.len() as u64 + bytes(weight))).sum();
    let model_bytes = framed(tail.len() as u64 + inline) + model_head().len() as u64;
    if model_bytes <= largest_bytes {
        write_atomically(path, |file| {
            let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", path));
            write(&model_head())?;
            write(&frame(field::GRAPH, tail.len() as u64 + inline))?;
            write(&tail)?;
            for (i, (header, weight)) in headers.iter().zip(&graph.weights).enumerate() {
                write(&frame(field::INITIALIZERS, header.len() as u64 + bytes(weight)))?;
                write(header)?;
                write(&little_endian(weight, values(i)?)?)?;
            }
            Ok(())
        })?;
        // Of an earlier model that was larger; nothing refers to it any more.
        let _ = std::fs::remove_file(data_path(path));
        return Ok(model_bytes);
    }
    let beside = data_path(path);
    let offsets = offsets(&graph.weights);
    write_atomically(&beside, |file| {
        let mut written = 0;
        for (i, (weight, offset)) in graph.weights.iter().zip(&offsets).enumerate() {
            let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", &beside));
            write(&vec![0; (offset - written) as usize])?;
            write(&little_endian(weight, values(i)?)?)?;
            written = offset + bytes(weight);
        }
        Ok(())
    })?;
    let location = beside.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut initializers = tail;
    for (weight, offset) in graph.weights.iter().zip(&offsets) {
        message::encode(field::INITIALIZERS, &external(weight, &location, *offset), &mut initializers);
    }
    let mut whole = model_head();
    whole.extend(frame(field::GRAPH, initializers.len() as u64));
    whole.extend(initializers);
    crate::atomic_file::write_bytes_atomically(path, &whole)?;
    let data = offsets.last().zip(graph.weights.last()).map_or(0, |(offset, weight)| offset + bytes(weight));
    Ok(whole.len() as u64 + data)
}

/// Everything of the model but the graph.
fn model_head() -> Vec<u8> {
    let mut head = Vec::new();
    int64::encode(field::IR_VERSION, &IR_VERSION, &mut head);
    string::encode(field::PRODUCER, &env!("CARGO_PKG_NAME").to_owned(), &mut head);
    string::encode(field::PRODUCER_VERSION, &env!("CARGO_PKG_VERSION").to_owned(), &mut head);
    message::encode(field::OPSETS, &OperatorSet { domain: Some(String::new()), version: Some(OPSET) }, &mut head);
    head
}

/// Everything of the graph but the weights, which may follow: the order of fields is free.
fn graph_tail(graph: &GraphBuilder) -> Vec<u8> {
    let mut tail = Vec::new();
    graph.nodes.iter().for_each(|node| message::encode(field::NODES, node, &mut tail));
    string::encode(field::GRAPH_NAME, &graph.name, &mut tail);
    graph.constants.iter().for_each(|constant| message::encode(field::INITIALIZERS, constant, &mut tail));
    graph.inputs.iter().for_each(|input| message::encode(field::INPUTS, input, &mut tail));
    graph.outputs.iter().for_each(|output| message::encode(field::OUTPUTS, output, &mut tail));
    tail
}

fn described(weight: &Weight) -> TensorProto {
    let dims = weight.shape.iter().map(|size| *size as i64).collect();
    TensorProto { name: weight.name.clone(), dims, data_type: FLOAT32, ..TensorProto::default() }
}

/// A weight's message up to its values, the field's own frame included.
fn inline_header(weight: &Weight) -> Vec<u8> {
    let mut header = described(weight).encode_to_vec();
    header.extend(frame(field::RAW_DATA, bytes(weight)));
    header
}

fn external(weight: &Weight, location: &str, offset: u64) -> TensorProto {
    let entry = |key: &str, value: String| EntryProto { key: key.to_owned(), value };
    let entries =
        vec![entry("location", location.to_owned()), entry("offset", offset.to_string()), entry("length", bytes(weight).to_string())];
    TensorProto { external_data: entries, data_location: EXTERNAL, ..described(weight) }
}

/// Where each weight begins in the file beside the model.
fn offsets(weights: &[Weight]) -> Vec<u64> {
    let mut end = 0u64;
    let place = |weight: &Weight| {
        let start = end.next_multiple_of(PAGE_BYTES);
        end = start + bytes(weight);
        start
    };
    weights.iter().map(place).collect()
}

fn bytes(weight: &Weight) -> u64 {
    (weight.elements() * size_of::<f32>()) as u64
}

/// A length-delimited field's key and length.
fn frame(number: u32, length: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut frame);
    encode_varint(length, &mut frame);
    frame
}

/// Bytes of a length-delimited field below number 16.
fn framed(length: u64) -> u64 {
    1 + encoded_len_varint(length) as u64 + length
}

fn little_endian(weight: &Weight, values: Vec<f32>) -> Result<Vec<u8>> {
    if values.len() != weight.elements() {
        return Err(Error::invalid(&weight.name, format!("{} values", weight.elements()), values.len().to_string()));
    }
    let mut bytes = Vec::with_capacity(size_of_val(values.as_slice()));
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::written::{Attribute, Dimension};
    use super::super::{Graph, Model};
    use super::*;

    fn graph() -> GraphBuilder {
        let mut graph = GraphBuilder::new("some");
        let ids = graph.input("ids", super::super::builder::INT64, vec![Dimension::open("batch")]);
        let table = graph.weight("table", &[3, 2]);
        assert_eq!(graph.weight("table", &[3, 2]), table);
        let scale = graph.weight("scale", &[2]);
        let rows = graph.node("/m", "Gather", &[&table, &ids], vec![Attribute::of_int("axis", 0)]);
        let half = graph.scalar("half", 0.5);
        let halved = graph.node("/m", "Mul", &[&rows, &half], vec![]);
        graph.named_node("/m", "Mul", &[&halved, &scale], vec![], "logits");
        graph.output("logits", FLOAT32, vec![Dimension::open("batch"), Dimension::fixed(2)]);
        graph
    }

    fn values(i: usize) -> Vec<f32> {
        [vec![1.0, 2.0, 3.0, 4.0, 5.0, -0.0], vec![0.1, 0.2]][i].clone()
    }

    fn raw(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn a_model_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.onnx");
        let length = write_model(&path, &graph(), LARGEST_MODEL_BYTES, |i| Ok(values(i))).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
        let model = Model::read(&path).unwrap();
        let graph = Graph::new(model.graph());
        assert_eq!(graph.initializer("table").unwrap().dims, [3, 2]);
        assert_eq!(graph.initializer("table").unwrap().raw_data[..], raw(&values(0)));
        assert_eq!(graph.initializer("scale").unwrap().raw_data[..], raw(&values(1)));
        let names: Vec<_> = graph.nodes().iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["/m/Gather", "/m/Mul", "/m/Mul_1"]);
        assert_eq!(graph.nodes()[1].outputs, ["/m/Mul_output_0"]);
        assert_eq!(model.graph().outputs[0].name, "logits");
    }

    #[test]
    fn weights_that_are_too_many_lie_beside_the_model() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.onnx");
        let inline = write_model(&path, &graph(), LARGEST_MODEL_BYTES, |i| Ok(values(i))).unwrap();
        write_model(&path, &graph(), inline - 1, |i| Ok(values(i))).unwrap();
        let model = Model::read(&path).unwrap();
        assert_eq!(model.external_files(), ["model.onnx_data"]);
        let beside = std::fs::read(data_path(&path)).unwrap();
        assert_eq!((beside.len(), &beside[..24], &beside[4096..]), (4096 + 8, &raw(&values(0))[..], &raw(&values(1))[..]));
        assert!(model.graph().initializers.iter().any(|tensor| tensor.name == "half" && tensor.data_location == 0));
        write_model(&path, &graph(), inline, |i| Ok(values(i))).unwrap();
        assert!(!data_path(&path).exists(), "nothing refers to it any more");
    }

    #[test]
    fn a_failed_write_leaves_the_old_model() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.onnx");
        std::fs::write(&path, "old").unwrap();
        let error = write_model(&path, &graph(), LARGEST_MODEL_BYTES, |_| Ok(vec![0.0])).unwrap_err().to_string();
        assert!(error.contains("table: expected 6 values, found 1"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
