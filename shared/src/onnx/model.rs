//! A model file in memory.

use super::edit::Edit;
use super::messages::{EXTERNAL, GraphProto, ModelProto, OperatorSetProto, TensorProto, ValueInfoProto, element_type};
use crate::error::{Error, Result};
use prost::Message;
use prost::bytes::Bytes;
use std::path::{Path, PathBuf};

/// A model file: its bytes, and the part of them that is understood. Weights are not copied out of the bytes.
#[derive(Clone, Debug)]
pub struct Model {
    path: PathBuf,
    bytes: Bytes,
    message: ModelProto,
}

impl Model {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is no ONNX protobuf, or holds no graph.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::from_bytes(path, bytes)
    }

    /// The same from bytes; `path` is for messages.
    ///
    /// # Errors
    /// The bytes are no ONNX protobuf, or hold no graph.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let bytes = Bytes::from(bytes);
        let message = ModelProto::decode(bytes.clone()).map_err(Error::library("parse as an ONNX model", path))?;
        refuse_without_nodes(path, message.graph.as_ref())?;
        Ok(Self { path: path.to_owned(), bytes, message })
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        self.message.graph.as_ref().expect("from_bytes refuses a model without a graph")
    }

    /// Names of the functions the file defines; tensors inside them cannot be exposed.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.message.functions.iter().map(|function| function.name.as_str())
    }

    /// The version of the standard operations; 0 where the file does not say.
    pub fn opset(&self) -> i64 {
        let standard = |set: &&OperatorSetProto| matches!(set.domain.as_str(), "" | "ai.onnx");
        self.message.operator_sets.iter().find(standard).map_or(0, |set| set.version)
    }

    /// The domains of whose operations the file says a version.
    pub fn operator_sets(&self) -> impl Iterator<Item = &str> {
        self.message.operator_sets.iter().map(|set| set.domain.as_str())
    }

    /// The other files in which weights lie, sorted, as the model names them: relative to its directory.
    pub fn external_files(&self) -> Vec<&str> {
        let external = self.graph().initializers.iter().filter(|tensor| tensor.data_location == EXTERNAL);
        let locations = external.flat_map(|tensor| tensor.external_data.iter().filter(|entry| entry.key == "location"));
        let mut files: Vec<&str> = locations.map(|entry| entry.value.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Elements of the floating-point initialisers but for single numbers, which are a graph's constants, no weights, and of the matrices that are
    /// quantised to 4 or 8 bits. A decoder tied to the embeddings is usually two tensors in an export, and then counts twice.
    pub fn weight_elements(&self) -> u64 {
        let is_weight = |tensor: &&TensorProto| match tensor.data_type {
            float if element_type::FLOATS.contains(&float) => true,
            small => element_type::QUANTISED.contains(&small) && tensor.dims.len() >= 2,
        };
        self.graph().initializers.iter().filter(is_weight).map(TensorProto::elements).filter(|elements| *elements > 1).sum()
    }

    /// The file's bytes with `names` as further outputs of the graph; their types are left to the runtime. Names that are outputs already are left out.
    ///
    /// Concatenated protobuf messages merge: a repeated field of the second is appended to that of the first, in nested messages too. So a second
    /// message that holds nothing but the outputs adds them, and the file keeps every field that [`super::messages`] does not know.
    pub fn into_bytes_with_outputs<'n>(self, names: impl IntoIterator<Item = &'n str>) -> Vec<u8> {
        let is_output = |name: &&str| self.graph().outputs.iter().any(|output| output.name == *name);
        let outputs = names
            .into_iter()
            .filter(|name| !is_output(name))
            .map(|name| ValueInfoProto { name: name.to_owned(), declared: None })
            .collect();
        let addition = ModelProto { graph: Some(GraphProto { outputs, ..GraphProto::default() }), ..ModelProto::default() };
        // The decoded message shares the bytes: without it they are ours alone, and grow in place.
        drop(self.message);
        let mut bytes = Vec::from(self.bytes);
        bytes.extend_from_slice(&addition.encode_to_vec());
        bytes
    }

    /// The file's bytes with a part of the graph changed.
    ///
    /// # Errors
    /// None that reading the file has not had before.
    pub fn into_edited_bytes(self, edit: &Edit) -> Result<Vec<u8>> {
        // The decoded message is not needed any more; the bytes are, until the new ones are made.
        drop(self.message);
        edit.apply(&self.bytes).map_err(Error::library("change the graph of", &self.path))
    }
}

/// Refuses a model whose graph is missing or empty.
pub(super) fn refuse_without_nodes(path: &Path, graph: Option<&GraphProto>) -> Result<()> {
    if graph.is_none_or(|graph| graph.nodes.is_empty()) {
        let remedy = "export the model to ONNX again (a file in ONNX Runtime's own .ort format is not one)";
        return Err(Error::data(path, "graph", "an ONNX graph with nodes", "none", remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::messages::{EntryProto, NodeProto};

    /// A graph as `messages` writes it, with a field that they do not know (6: producer_version, `"x"`) in front.
    fn example() -> Vec<u8> {
        let location = EntryProto { key: "location".into(), value: "weights.bin".into() };
        let weight = |name: &str, data_type, dims: &[i64], data_location| TensorProto {
            name: name.into(),
            data_type,
            dims: dims.to_vec(),
            data_location,
            external_data: vec![location.clone(); data_location as usize],
            ..TensorProto::default()
        };
        let graph = GraphProto {
            nodes: vec![NodeProto { inputs: vec!["a".into()], outputs: vec!["b".into()], op_type: "Relu".into(), ..NodeProto::default() }],
            initializers: vec![
                weight("w", 1, &[3, 4], 0),
                weight("h", 10, &[5], EXTERNAL),
                weight("i", 7, &[100], 0),
                weight("q", 3, &[6, 2], 0),
                weight("zero_points", 3, &[6], 0),
                weight("c", 1, &[], 0),
            ],
            inputs: vec![ValueInfoProto { name: "a".into(), declared: None }],
            outputs: vec![ValueInfoProto { name: "logits".into(), declared: None }],
        };
        let mut bytes = vec![0x32, 1, b'x'];
        bytes.extend(ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec());
        bytes
    }

    #[test]
    fn outputs_are_appended_and_nothing_else_changes() {
        let original = example();
        let model = Model::from_bytes(Path::new("m.onnx"), original.clone()).unwrap();
        let bytes = model.into_bytes_with_outputs(["b", "logits"]);
        assert_eq!(bytes[..original.len()], original, "the file's own bytes come first, untouched");
        let changed = Model::from_bytes(Path::new("m.onnx"), bytes).unwrap();
        let names: Vec<_> = changed.graph().outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["logits", "b"], "an output that is there already is not added twice");
        assert_eq!(changed.graph().nodes.len(), 1);
    }

    #[test]
    fn weights_are_counted_by_type_and_external_data_is_seen() {
        let model = Model::from_bytes(Path::new("m.onnx"), example()).unwrap();
        assert_eq!(model.weight_elements(), 3 * 4 + 5 + 6 * 2);
        assert_eq!(model.external_files(), ["weights.bin"]);
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"ORTM", b"not a protobuf at all", &[0xff; 64]] {
            let error = Model::from_bytes(Path::new("m.onnx"), bytes.to_vec()).unwrap_err();
            assert!(error.to_string().contains("m.onnx"), "{error}");
        }
    }
}
