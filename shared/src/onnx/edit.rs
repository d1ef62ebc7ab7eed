//! A model file with a part of its graph changed, byte for byte the same elsewhere.
//!
//! The messages that are read hold a part of a file, so nothing is encoded anew but what changes: the file is walked field by field, a node whose
//! inputs are exchanged is walked likewise, and what is added follows in a second graph message, which protobuf merges with the first.

use super::messages::{TensorProto, ValueInfoProto};
use super::written::{Node, OperatorSet, Value};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, message, skip_field, string};
use prost::{DecodeError, Message};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Field numbers of ONNX's `ModelProto`, `GraphProto`, `NodeProto`, `ValueInfoProto` and `TensorProto`.
mod field {
    pub(super) const GRAPH: u32 = 7;
    pub(super) const OPERATOR_SETS: u32 = 8;
    pub(super) const NODES: u32 = 1;
    pub(super) const INITIALIZERS: u32 = 5;
    pub(super) const INPUTS: u32 = 11;
    pub(super) const OUTPUTS: u32 = 12;
    pub(super) const INNER_TYPES: u32 = 13;
    pub(super) const NODE_INPUTS: u32 = 1;
    pub(super) const VALUE_NAME: u32 = 1;
    pub(super) const TENSOR_NAME: u32 = 8;
}

/// What changes in a graph. Nodes are numbered as in [`super::Graph`].
#[derive(Clone, Debug, Default)]
pub struct Edit {
    /// Node number to the nodes that are put before it.
    inserted: BTreeMap<usize, Vec<Node>>,
    appended: Vec<Node>,
    /// Node number to the inputs that are exchanged.
    redirected: BTreeMap<usize, BTreeMap<String, String>>,
    constants: Vec<TensorProto>,
    inputs: Vec<Value>,
    outputs: Vec<String>,
    removed: BTreeSet<usize>,
    hidden: BTreeSet<String>,
    untyped: BTreeSet<String>,
    dropped: BTreeSet<String>,
    operator_sets: Vec<OperatorSet>,
}

impl Edit {
    /// Puts a node before node number `place`.
    pub fn insert(&mut self, place: usize, node: Node) {
        self.inserted.entry(place).or_default().push(node);
    }

    /// Puts a node after every other.
    pub fn append(&mut self, node: Node) {
        self.appended.push(node);
    }

    /// Makes a node read the tensor `to` wherever it reads `from`.
    pub fn redirect(&mut self, node: usize, from: &str, to: &str) {
        self.redirected.entry(node).or_default().insert(from.to_owned(), to.to_owned());
    }

    /// Takes a node out, whose outputs then have no maker.
    pub fn remove(&mut self, node: usize) {
        self.removed.insert(node);
    }

    /// Makes an output of the file no output any more.
    pub fn hide(&mut self, tensor: &str) {
        self.hidden.insert(tensor.to_owned());
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: TensorProto) {
        self.constants.push(tensor);
    }

    /// Takes an initialiser out.
    pub fn drop_constant(&mut self, tensor: &str) {
        self.dropped.insert(tensor.to_owned());
    }

    /// Says of which version the operations of `domain` are, of which the file says nothing.
    pub fn operator_set(&mut self, domain: &str, version: i64) {
        self.operator_sets.push(OperatorSet { domain: Some(domain.to_owned()), version: Some(version) });
    }

    /// Adds an input.
    pub fn input(&mut self, value: Value) {
        self.inputs.push(value);
    }

    /// Makes a tensor an output, whose type is left to the runtime.
    pub fn output(&mut self, tensor: &str) {
        self.outputs.push(tensor.to_owned());
    }

    /// Forgets what the file says of a tensor's type and shape, which then are the runtime's to infer.
    pub fn forget_type(&mut self, tensor: &str) {
        self.untyped.insert(tensor.to_owned());
    }

    /// The changed file.
    pub(super) fn apply(&self, model: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut pieces = Vec::new();
        let mut node = 0;
        for found in fields(model) {
            let found = found?;
            if found.number != field::GRAPH {
                pieces.push(Cow::Borrowed(found.whole));
                continue;
            }
            let graph = self.graph(found.content, &mut node)?;
            pieces.push(Cow::Owned(frame(field::GRAPH, graph.iter().map(|piece| piece.len()).sum())));
            pieces.extend(graph);
        }
        let addition = self.addition();
        pieces.push(Cow::Owned(frame(field::GRAPH, addition.len())));
        pieces.push(Cow::Owned(addition));
        for set in &self.operator_sets {
            let mut bytes = Vec::new();
            message::encode(field::OPERATOR_SETS, set, &mut bytes);
            pieces.push(Cow::Owned(bytes));
        }
        Ok(pieces.concat())
    }

    /// One graph message; `node` counts across them.
    fn graph<'m>(&self, graph: &'m [u8], node: &mut usize) -> Result<Vec<Cow<'m, [u8]>>, DecodeError> {
        let mut pieces = Vec::new();
        for found in fields(graph) {
            let found = found?;
            match found.number {
                field::NODES => {
                    for inserted in self.inserted.get(node).into_iter().flatten() {
                        let mut bytes = Vec::new();
                        message::encode(field::NODES, inserted, &mut bytes);
                        pieces.push(Cow::Owned(bytes));
                    }
                    match self.redirected.get(node) {
                        _ if self.removed.contains(node) => {}
                        None => pieces.push(Cow::Borrowed(found.whole)),
                        Some(exchanged) => pieces.push(Cow::Owned(redirected(found.content, exchanged)?)),
                    }
                    *node += 1;
                }
                field::INITIALIZERS if !self.dropped.is_empty() && self.is_dropped(found.content)? => {}
                field::OUTPUTS | field::INNER_TYPES => {
                    let name = ValueInfoProto::decode(found.content)?.name;
                    match (self.untyped.contains(&name), found.number) {
                        _ if self.hidden.contains(&name) => {}
                        (false, _) => pieces.push(Cow::Borrowed(found.whole)),
                        (true, field::OUTPUTS) => pieces.push(Cow::Owned(untyped_output(&name))),
                        (true, _) => {}
                    }
                }
                _ => pieces.push(Cow::Borrowed(found.whole)),
            }
        }
        Ok(pieces)
    }

    /// Whether an initialiser is to be taken out. Its values are stepped over.
    fn is_dropped(&self, tensor: &[u8]) -> Result<bool, DecodeError> {
        for found in fields(tensor) {
            let found = found?;
            if found.number == field::TENSOR_NAME {
                return Ok(std::str::from_utf8(found.content).is_ok_and(|name| self.dropped.contains(name)));
            }
        }
        Ok(false)
    }

    /// What is new, as a graph message of its own.
    fn addition(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.appended.iter().for_each(|node| message::encode(field::NODES, node, &mut bytes));
        self.constants.iter().for_each(|constant| message::encode(field::INITIALIZERS, constant, &mut bytes));
        self.inputs.iter().for_each(|input| message::encode(field::INPUTS, input, &mut bytes));
        self.outputs.iter().for_each(|name| bytes.extend(untyped_output(name)));
        bytes
    }
}

fn untyped_output(name: &str) -> Vec<u8> {
    let mut content = Vec::new();
    string::encode(field::VALUE_NAME, &name.to_owned(), &mut content);
    [frame(field::OUTPUTS, content.len()), content].concat()
}

/// A node's field with some of its inputs exchanged.
fn redirected(node: &[u8], exchanged: &BTreeMap<String, String>) -> Result<Vec<u8>, DecodeError> {
    let mut content = Vec::with_capacity(node.len());
    for found in fields(node) {
        let found = found?;
        let name = std::str::from_utf8(found.content).ok().filter(|_| found.number == field::NODE_INPUTS);
        match name.and_then(|name| exchanged.get(name)) {
            Some(other) => string::encode(field::NODE_INPUTS, other, &mut content),
            None => content.extend_from_slice(found.whole),
        }
    }
    Ok([frame(field::NODES, content.len()), content].concat())
}

/// A field of a message: all of its bytes, and its content where that is of a length of its own (else nothing).
struct Field<'m> {
    number: u32,
    whole: &'m [u8],
    content: &'m [u8],
}

/// The fields of a message, in the file's order.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, DecodeError>> {
    let mut rest = message;
    std::iter::from_fn(move || if rest.is_empty() { None } else { Some(next_field(&mut rest)) })
}

fn next_field<'m>(rest: &mut &'m [u8]) -> Result<Field<'m>, DecodeError> {
    let start = *rest;
    let (number, wire_type) = decode_key(rest)?;
    let mut content = *rest;
    skip_field(wire_type, number, rest, DecodeContext::default())?;
    match wire_type {
        WireType::LengthDelimited => decode_varint(&mut content).map(|_| ())?,
        _ => content = *rest,
    }
    Ok(Field { number, whole: &start[..start.len() - rest.len()], content: &content[..content.len() - rest.len()] })
}

/// A length-delimited field's key and length.
fn frame(number: u32, length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut frame);
    encode_varint(length as u64, &mut frame);
    frame
}

#[cfg(test)]
mod tests {
    use super::super::builder::{INT64, value};
    use super::super::messages::ModelProto;
    use super::super::written::Dimension;
    use super::*;

    fn node(inputs: &[&str], output: &str) -> Node {
        Node {
            inputs: inputs.iter().map(|name| (*name).to_owned()).collect(),
            outputs: vec![output.to_owned()],
            op_type: "Add".to_owned(),
            ..Node::default()
        }
    }

    /// Two graph messages, as an output that was appended leaves them, with fields that `messages` does not know: 6 of the model (a text), 3 of a
    /// node (its name is known; 6, a text, is not), 10 of the graph (a text) and a number in front.
    fn example() -> Vec<u8> {
        let unknown = |number: u32| [frame(number, 3), b"abc".to_vec()].concat();
        let with = |node: Node| [node.encode_to_vec(), unknown(6)].concat();
        let framed = |number: u32, content: Vec<u8>| [frame(number, content.len()), content].concat();
        let typed = |number: u32, name: &str| framed(number, value(name, 1, vec![Dimension::open("batch")]).encode_to_vec());
        let constant =
            |name: &str| framed(5, TensorProto { name: name.to_owned(), dims: vec![2], ..TensorProto::default() }.encode_to_vec());
        let graph = [
            framed(1, with(node(&["x", "c"], "a"))),
            unknown(10),
            framed(1, with(node(&["a", "x", "a"], "b"))),
            constant("c"),
            constant("w"),
            typed(13, "a"),
            typed(13, "b"),
            typed(12, "b"),
        ];
        let second = [framed(1, with(node(&["b", "a"], "d"))), typed(12, "d")].concat();
        [vec![8, 200, 1], framed(7, graph.concat()), unknown(6), framed(7, second)].concat()
    }

    #[test]
    fn what_is_named_changes_and_nothing_else() {
        let mut edit = Edit::default();
        edit.insert(1, node(&["a", "asked"], "a.asked"));
        edit.redirect(1, "a", "a.asked");
        edit.redirect(2, "b", "other");
        edit.append(node(&["d", "d"], "e"));
        edit.input(value("asked", INT64, vec![Dimension::fixed(1)]));
        edit.output("e");
        edit.forget_type("b");
        edit.constant(TensorProto { name: "k".to_owned(), ..TensorProto::default() });
        edit.drop_constant("c");
        edit.operator_set("com.microsoft", 1);
        let original = example();
        let bytes = edit.apply(&original).unwrap();
        let model = ModelProto::decode(&bytes[..]).unwrap();
        let sets: Vec<_> = model.operator_sets.iter().map(|set| (set.domain.as_str(), set.version)).collect();
        assert_eq!(sets, [("com.microsoft", 1)]);
        let graph = model.graph.unwrap();
        let nodes: Vec<_> = graph.nodes.iter().map(|node| (node.inputs.join(" "), node.outputs.join(" "))).collect();
        let expected = [("x c", "a"), ("a asked", "a.asked"), ("a.asked x a.asked", "b"), ("other a", "d"), ("d d", "e")];
        assert_eq!(nodes, expected.map(|(inputs, output)| (inputs.to_owned(), output.to_owned())));
        let outputs: Vec<_> = graph.outputs.iter().map(|output| (output.name.as_str(), output.shape().is_some())).collect();
        assert_eq!(outputs, [("b", false), ("d", true), ("e", false)]);
        let constants: Vec<_> = graph.initializers.iter().map(|constant| constant.name.as_str()).collect();
        assert_eq!((graph.inputs[0].name.as_str(), &constants[..]), ("asked", &["w", "k"][..]));
        let unknown = |bytes: &[u8]| bytes.windows(3).filter(|window| *window == b"abc").count();
        assert_eq!((unknown(&bytes), unknown(&original)), (5, 5), "fields that are not known stay");
        let inner: Vec<_> = fields(&bytes).map(Result::unwrap).filter(|found| found.number == field::GRAPH).collect();
        let types = fields(inner[0].content).map(Result::unwrap).filter(|found| found.number == field::INNER_TYPES);
        assert_eq!(types.count(), 1);
    }

    #[test]
    fn no_change_adds_an_empty_message_alone() {
        let original = example();
        let bytes = Edit::default().apply(&original).unwrap();
        assert_eq!(bytes, [original, frame(field::GRAPH, 0)].concat());
    }

    #[test]
    fn a_file_that_ends_early_is_refused() {
        let original = example();
        for length in [1, 2, 5, 40, original.len() - 1] {
            assert!(Edit::default().apply(&original[..length]).is_err(), "{length}");
        }
    }
}
