//! A model's graph without its weights' values: what a reader needs that takes some of the weights and leaves the others in the file.
//!
//! The file is walked field by field. The values of an initialiser are stepped over, and the tensor says where they lie in the way in which ONNX
//! names values in another file: with this very file as the other one. Whoever reads external values reads these.

use super::messages::{EXTERNAL, EntryProto, GraphProto, ModelProto, TensorProto};
use super::model::refuse_without_nodes;
use crate::error::{Error, Result};
use prost::Message;
use prost::bytes::Bytes;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Values of up to this many bytes are read with the graph: constants, biases, what is cheaper to read than to step over.
const LARGEST_READ: u64 = 4096;

const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const RAW_DATA: u64 = 9;

/// Reads the graph of a model file. An initialiser whose values are larger than 4 KiB names this file as the one that holds them
/// ([`EXTERNAL`] with `location`, `offset` and `length`), unless they lie in another one already.
///
/// # Errors
/// The file cannot be read, is no ONNX protobuf, or holds no graph.
pub fn read_outline(path: &Path) -> Result<GraphProto> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let bytes = file.metadata().map_err(Error::io("read", path))?.len();
    // A name that is no UTF-8 cannot stand in a message.
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return super::Model::read(path).map(|model| model.graph().clone());
    };
    let mut walk = Walk { path, name, reader: BufReader::new(file), at: 0 };
    let mut graph = GraphProto::default();
    let rest = walk.message(bytes, |walk, field, end| match field {
        GRAPH => walk.graph(end, &mut graph).map(|()| true),
        _ => Ok(false),
    })?;
    // What is not the graph must be of a model, or this is another file.
    ModelProto::decode(Bytes::from(rest)).map_err(Error::library("parse as an ONNX model", path))?;
    refuse_without_nodes(path, Some(&graph))?;
    Ok(graph)
}

struct Walk<'a> {
    path: &'a Path,
    name: &'a str,
    reader: BufReader<File>,
    /// Offset in the file.
    at: u64,
}

impl Walk<'_> {
    fn graph(&mut self, end: u64, graph: &mut GraphProto) -> Result<()> {
        let mut tensors = Vec::new();
        let rest = self.message(end, |walk, field, end| match field {
            INITIALIZER => walk.tensor(end).map(|tensor| {
                tensors.push(tensor);
                true
            }),
            _ => Ok(false),
        })?;
        graph.merge(Bytes::from(rest)).map_err(Error::library("parse as an ONNX model", self.path))?;
        graph.initializers.append(&mut tensors);
        Ok(())
    }

    fn tensor(&mut self, end: u64) -> Result<TensorProto> {
        let mut values = None;
        let rest = self.message(end, |walk, field, end| {
            let (offset, length) = (walk.at, end - walk.at);
            if field != RAW_DATA || length <= LARGEST_READ {
                return Ok(false);
            }
            values = Some((offset, length));
            walk.step_over(length).map(|()| true)
        })?;
        let mut tensor = TensorProto::decode(Bytes::from(rest)).map_err(Error::library("parse as an ONNX model", self.path))?;
        if let Some((offset, length)) = values.filter(|_| tensor.data_location != EXTERNAL) {
            let entry = |key: &str, value: String| EntryProto { key: key.to_owned(), value };
            tensor.data_location = EXTERNAL;
            tensor.external_data =
                vec![entry("location", self.name.to_owned()), entry("offset", offset.to_string()), entry("length", length.to_string())];
        }
        Ok(tensor)
    }

    /// Walks the fields up to `end`. `take` is told the number and the end of each that has a length, and says whether it has read it; the
    /// others are returned, as they stand.
    fn message(&mut self, end: u64, mut take: impl FnMut(&mut Self, u64, u64) -> Result<bool>) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        while self.at < end {
            let start = rest.len();
            let tag = self.varint(end, &mut rest)?;
            let length = match tag & 7 {
                0 => {
                    self.varint(end, &mut rest)?;
                    continue;
                }
                1 => 8,
                5 => 4,
                2 => self.varint(end, &mut rest)?,
                other => return Err(self.refuse(format!("wire type {other}"))),
            };
            let field_end = self.at.checked_add(length).filter(|field_end| *field_end <= end);
            let field_end = field_end.ok_or_else(|| self.refuse(format!("a field of {length} bytes where {} are left", end - self.at)))?;
            if tag & 7 == 2 && take(self, tag >> 3, field_end)? {
                rest.truncate(start);
                continue;
            }
            self.copy(length, &mut rest)?;
        }
        Ok(rest)
    }

    /// A number of seven bits a byte, the lowest first; its bytes are kept.
    fn varint(&mut self, end: u64, kept: &mut Vec<u8>) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            if self.at == end {
                break;
            }
            self.copy(1, kept)?;
            let byte = kept.last().copied().unwrap_or_default();
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.refuse("a number that does not end"))
    }

    fn copy(&mut self, length: u64, to: &mut Vec<u8>) -> Result<()> {
        let copied = (&mut self.reader).take(length).read_to_end(to).map_err(Error::io("read", self.path))?;
        self.at += copied as u64;
        if copied as u64 == length { Ok(()) } else { Err(self.refuse("its end")) }
    }

    fn step_over(&mut self, length: u64) -> Result<()> {
        // The caller has seen that it lies within the file, whose length is an i64.
        self.reader.seek_relative(length as i64).map_err(Error::io("seek in", self.path))?;
        self.at += length;
        Ok(())
    }

    fn refuse(&self, found: impl std::fmt::Display) -> Error {
        let found = format!("{found} at byte {}", self.at);
        Error::data(self.path, "message", "an ONNX model", found, "the file is cut short or is no ONNX model: export or copy it again")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Model;
    use super::super::messages::NodeProto;
    use super::*;

    fn tensor(name: &str, values: usize) -> TensorProto {
        let raw_data = (0..values).flat_map(|value| (value as f32).to_le_bytes()).collect::<Vec<u8>>().into();
        TensorProto { name: name.into(), data_type: 1, dims: vec![values as i64], raw_data, ..TensorProto::default() }
    }

    fn written(directory: &Path) -> (std::path::PathBuf, GraphProto) {
        let node = NodeProto { op_type: "Identity".into(), inputs: vec!["large".into()], ..NodeProto::default() };
        let elsewhere = EntryProto { key: "location".into(), value: "other".into() };
        let external = TensorProto { data_location: EXTERNAL, external_data: vec![elsewhere], ..tensor("external", 0) };
        let initializers = vec![tensor("small", 3), tensor("large", 5000), external, tensor("last", 2000)];
        let graph = GraphProto { nodes: vec![node], initializers, ..GraphProto::default() };
        let path = directory.join("model.onnx");
        // Field 6 (producer_version) is one that the messages do not know, field 1 (ir_version) a number.
        let model = ModelProto { graph: Some(graph.clone()), ..ModelProto::default() }.encode_to_vec();
        std::fs::write(&path, [&[0x32, 1, b'x'], &model[..], &[0x08, 0x88, 0x01]].concat()).unwrap();
        (path, graph)
    }

    #[test]
    fn a_graph_is_the_same_but_for_where_large_values_lie() {
        let directory = tempfile::tempdir().unwrap();
        let (path, whole) = written(directory.path());
        let mut outline = read_outline(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for (tensor, expected) in outline.initializers.iter_mut().zip(&whole.initializers) {
            if expected.raw_data.len() as u64 <= LARGEST_READ {
                continue;
            }
            let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value.clone();
            assert_eq!((tensor.data_location, entry("location").as_str()), (EXTERNAL, "model.onnx"));
            let (offset, length): (usize, usize) = (entry("offset").parse().unwrap(), entry("length").parse().unwrap());
            assert!(tensor.raw_data.is_empty() && bytes[offset..offset + length] == expected.raw_data[..], "{}", tensor.name);
            *tensor = expected.clone();
        }
        assert_eq!(outline, whole);
        assert_eq!(outline, *Model::read(&path).unwrap().graph());
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_flipped_bytes_never_panic() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = written(directory.path());
        let whole = std::fs::read(&path).unwrap();
        let cut = directory.path().join("cut.onnx");
        for length in (0..whole.len() - 3).step_by(97) {
            std::fs::write(&cut, &whole[..length]).unwrap();
            assert!(read_outline(&cut).unwrap_err().to_string().contains("cut.onnx"), "{length} bytes");
        }
        for at in (0..200).chain(whole.len() - 200..whole.len()) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0xff;
            std::fs::write(&cut, flipped).unwrap();
            let _ = read_outline(&cut);
        }
    }
}
