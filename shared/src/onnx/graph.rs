//! Who makes a tensor, and what it depends on.

use super::messages::{GraphProto, NodeProto, TensorProto};
use std::collections::HashMap;

/// Operations whose nodes hold graphs.
const WITH_GRAPHS: [&str; 4] = ["If", "Loop", "Scan", "SequenceMap"];

/// A graph with its tensors indexed by name. Nodes are numbered in file order, which ONNX requires to be topological.
#[derive(Clone, Debug)]
pub struct Graph<'a> {
    message: &'a GraphProto,
    producers: HashMap<&'a str, usize>,
    initializers: HashMap<&'a str, &'a TensorProto>,
}

impl<'a> Graph<'a> {
    /// Indexes a graph.
    pub fn new(message: &'a GraphProto) -> Self {
        let producers =
            message.nodes.iter().enumerate().flat_map(|(index, node)| node.outputs.iter().map(move |name| (name.as_str(), index)));
        let initializers = message.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor));
        Self { message, producers: producers.collect(), initializers: initializers.collect() }
    }

    /// The nodes, in topological order.
    pub fn nodes(&self) -> &'a [NodeProto] {
        &self.message.nodes
    }

    /// The node that makes `tensor`, with its number; none for an input, an initialiser or an unknown name.
    pub fn producer(&self, tensor: &str) -> Option<(usize, &'a NodeProto)> {
        self.producers.get(tensor).map(|index| (*index, &self.message.nodes[*index]))
    }

    /// Names of the initialisers, in no order.
    pub fn initializers(&self) -> impl Iterator<Item = &'a str> {
        self.initializers.keys().copied()
    }

    /// Whether nodes hold graphs of their own, which may read any tensor without naming it among their inputs.
    pub fn has_inner_graphs(&self) -> bool {
        self.message.nodes.iter().any(|node| WITH_GRAPHS.contains(&node.op_type.as_str()))
    }

    /// The initialiser of that name.
    pub fn initializer(&self, tensor: &str) -> Option<&'a TensorProto> {
        self.initializers.get(tensor).copied()
    }

    /// The constant of that name: an initialiser, or the value of a `Constant` node, seen through `Identity` nodes.
    pub fn constant(&self, tensor: &str) -> Option<&'a TensorProto> {
        let original = self.followed(tensor, |node| (node.op_type == "Identity").then(|| node.inputs.first().map(String::as_str))?);
        if let Some(initializer) = self.initializer(original) {
            return Some(initializer);
        }
        let (_, node) = self.producer(original).filter(|(_, node)| node.op_type == "Constant")?;
        node.attributes.iter().find(|attribute| attribute.name == "value")?.tensor.as_ref()
    }

    /// Where `tensor` comes from, as long as `step` names an input of the node that makes it. A damaged file may lead in a circle; the walk then
    /// ends somewhere on it.
    fn followed<'t>(&self, tensor: &'t str, step: impl Fn(&'a NodeProto) -> Option<&'a str>) -> &'t str
    where
        'a: 't,
    {
        let mut tensor = tensor;
        for _ in 0..self.message.nodes.len() {
            let Some(input) = self.producer(tensor).and_then(|(_, node)| step(node)) else { break };
            tensor = input;
        }
        tensor
    }

    /// The constant whose values `tensor` has, as they are, converted or quantised: for its shape and for whether there is one.
    pub fn stored(&self, tensor: &str) -> Option<&'a TensorProto> {
        let through =
            |node: &'a NodeProto| matches!(node.op_type.as_str(), "DequantizeLinear" | "Cast" | "Identity").then(|| node.inputs.first());
        self.constant(self.followed(tensor, |node| through(node)?.map(String::as_str)))
    }

    /// The tensor that `tensor` is a copy of: seen through `Identity`, `Cast` and `Dropout` nodes, and through a quantisation that is undone at once.
    pub fn origin(&self, tensor: &'a str) -> &'a str {
        self.followed(tensor, |node| self.copied(node))
    }

    fn copied(&self, node: &'a NodeProto) -> Option<&'a str> {
        let input = node.inputs.first()?;
        match node.op_type.as_str() {
            "Identity" | "Cast" | "Dropout" => Some(input),
            "DequantizeLinear" => {
                let (_, quantised) = self.producer(input)?;
                if quantised.op_type == "QuantizeLinear" { quantised.inputs.first().map(String::as_str) } else { None }
            }
            _ => None,
        }
    }

    /// Whether `tensor` is computed from `ancestor` (by any number of nodes, at least one).
    pub fn depends_on(&self, tensor: &str, ancestor: &str) -> bool {
        // Nothing before the ancestor's own producer can lead to it, which keeps the walk between two layers short.
        let first = self.producer(ancestor).map_or(0, |(index, _)| index);
        let mut seen = vec![false; self.message.nodes.len()];
        let mut pending = vec![tensor];
        while let Some(name) = pending.pop() {
            let Some((index, node)) = self.producer(name) else { continue };
            if index < first || std::mem::replace(&mut seen[index], true) {
                continue;
            }
            if node.inputs.iter().any(|input| input == ancestor) {
                return true;
            }
            pending.extend(node.inputs.iter().map(String::as_str));
        }
        false
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::onnx::messages::AttributeProto;

    /// `OP: inputs -> output`, a node a line; constants are the tensors named `c...`.
    pub(in crate::onnx) fn parse(text: &str) -> GraphProto {
        let nodes = text.trim().lines().map(|line| {
            let (op_type, rest) = line.trim().split_once(": ").unwrap();
            let (inputs, outputs) = rest.split_once("->").unwrap();
            let names = |text: &str| text.split_whitespace().map(|name| if name == "_" { "" } else { name }.to_owned()).collect();
            NodeProto { op_type: op_type.into(), inputs: names(inputs), outputs: names(outputs), ..NodeProto::default() }
        });
        let nodes: Vec<NodeProto> = nodes.collect();
        let mut constants: Vec<&String> = nodes.iter().flat_map(|node| &node.inputs).filter(|name| name.starts_with('c')).collect();
        constants.sort();
        constants.dedup();
        let initializers =
            constants.iter().map(|name| TensorProto { name: (*name).clone(), dims: vec![8], data_type: 1, ..TensorProto::default() });
        GraphProto { initializers: initializers.collect(), nodes, ..GraphProto::default() }
    }

    #[test]
    fn dependence_follows_every_input_and_stops_at_inputs() {
        let message = parse("Relu: x -> a\nMatMul: a c1 -> b\nAdd: y b -> d\nRelu: y -> e");
        let graph = Graph::new(&message);
        assert!(graph.depends_on("d", "a") && graph.depends_on("d", "x") && graph.depends_on("b", "c1"));
        assert!(!graph.depends_on("e", "a") && !graph.depends_on("a", "d") && !graph.depends_on("a", "a"));
    }

    #[test]
    fn a_circle_is_no_way_without_end() {
        let message = parse("Identity: x -> x\nCast: b -> a\nIdentity: a -> b");
        let graph = Graph::new(&message);
        for name in ["x", "a", "b"] {
            assert!(graph.constant(name).is_none() && graph.stored(name).is_none());
            assert!(["x", "a", "b"].contains(&graph.origin(name)));
        }
    }

    #[test]
    fn copies_are_seen_through() {
        let text = "Relu: x -> a\nCast: a -> b\nDropout: b -> d\nIdentity: c1 -> e\nQuantizeLinear: d s -> q\nDequantizeLinear: q s -> f";
        let message = parse(&format!("{text}\nDequantizeLinear: c1 s -> w\nDequantizeLinear: a s -> v"));
        let graph = Graph::new(&message);
        assert_eq!((graph.origin("d"), graph.origin("f"), graph.origin("v")), ("a", "a", "v"));
        assert_eq!(graph.stored("w").unwrap().name, "c1");
        assert!(graph.constant("w").is_none() && graph.stored("v").is_none());
        assert_eq!(graph.origin("x"), "x");
        assert_eq!(graph.constant("e").unwrap().name, "c1");
        assert!(graph.constant("a").is_none());
    }

    #[test]
    fn a_constant_node_is_a_constant() {
        let mut message = parse("Constant:  -> k");
        let tensor = TensorProto { int32_data: vec![1], ..TensorProto::default() };
        message.nodes[0].attributes.push(AttributeProto { name: "value".into(), tensor: Some(tensor), ..AttributeProto::default() });
        assert_eq!(Graph::new(&message).constant("k").unwrap().int32_data, [1]);
    }
}
