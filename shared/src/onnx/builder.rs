//! A graph being put together: nodes, constants, weights whose values come later, inputs and outputs.

use super::messages::TensorProto;
use super::written::{Attribute, Dimension, Node, Shape, TensorType, Value, ValueType};
use prost::bytes::Bytes;
use std::collections::HashMap;

/// ONNX's number for float32.
pub const FLOAT32: i32 = 1;

/// ONNX's number for int64.
pub const INT64: i32 = 7;

/// A float32 initialiser whose values are asked for when the model is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The initialiser's name.
    pub name: String,
    /// Its shape, as stored.
    pub shape: Vec<usize>,
}

impl Weight {
    /// Values it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A graph. Nodes are kept in the order in which they are added, which ONNX requires to be topological: a node's inputs are made before it.
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    pub(super) name: String,
    pub(super) nodes: Vec<Node>,
    pub(super) constants: Vec<TensorProto>,
    pub(super) weights: Vec<Weight>,
    pub(super) inputs: Vec<Value>,
    pub(super) outputs: Vec<Value>,
    /// How many nodes bear a name already.
    taken: HashMap<String, usize>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The weights, in the order in which their values are asked for.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Adds an input; gives its name.
    pub fn input(&mut self, name: &str, element: i32, dimensions: Vec<Dimension>) -> String {
        self.inputs.push(value(name, element, dimensions));
        name.to_owned()
    }

    /// Makes the tensor `name`, which some node gives, an output.
    pub fn output(&mut self, name: &str, element: i32, dimensions: Vec<Dimension>) {
        self.outputs.push(value(name, element, dimensions));
    }

    /// The weight of that name, added the first time it is asked for; gives its name.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> String {
        if !self.weights.iter().any(|weight| weight.name == name) {
            self.weights.push(Weight { name: name.to_owned(), shape: shape.to_owned() });
        }
        name.to_owned()
    }

    /// A float32 scalar, added the first time it is asked for; gives its name.
    pub fn scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, FLOAT32, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A list of float32, added the first time it is asked for; gives its name.
    pub fn floats(&mut self, name: &str, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, FLOAT32, vec![values.len() as i64], bytes)
    }

    /// A list of int64, added the first time it is asked for; gives its name.
    pub fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, INT64, vec![values.len() as i64], bytes)
    }

    /// An int64 scalar, added the first time it is asked for; gives its name.
    pub fn integer(&mut self, name: &str, value: i64) -> String {
        self.constant(name, INT64, Vec::new(), value.to_le_bytes().to_vec())
    }

    fn constant(&mut self, name: &str, data_type: i32, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        if !self.constants.iter().any(|constant| constant.name == name) {
            let constant = TensorProto { name: name.to_owned(), data_type, dims, raw_data: Bytes::from(bytes), ..TensorProto::default() };
            self.constants.push(constant);
        }
        name.to_owned()
    }

    /// Adds a node of the module `path` (`/bert/embeddings`), named after it and the operation as PyTorch's exporter does; gives its output's name.
    pub fn node(&mut self, path: &str, op_type: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        let output = format!("{}_output_0", self.free_name(path, op_type));
        self.named_node(path, op_type, inputs, attributes, &output)
    }

    /// [`node`](Self::node) with a name of its own for the output.
    pub fn named_node(&mut self, path: &str, op_type: &str, inputs: &[&str], attributes: Vec<Attribute>, output: &str) -> String {
        let name = self.free_name(path, op_type);
        *self.taken.entry(format!("{path}/{op_type}")).or_default() += 1;
        self.nodes.push(Node {
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            outputs: vec![output.to_owned()],
            name,
            op_type: op_type.to_owned(),
            attributes,
            ..Node::default()
        });
        output.to_owned()
    }

    fn free_name(&self, path: &str, op_type: &str) -> String {
        let name = format!("{path}/{op_type}");
        match self.taken.get(&name) {
            None => name,
            Some(count) => format!("{name}_{count}"),
        }
    }
}

/// An input or output of that name and type.
pub fn value(name: &str, element: i32, dimensions: Vec<Dimension>) -> Value {
    let tensor = TensorType { element, shape: Some(Shape { dimensions }) };
    Value { name: name.to_owned(), value_type: Some(ValueType { tensor: Some(tensor) }) }
}
