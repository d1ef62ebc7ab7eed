//! The part of a graph that treats every position by itself: from some tensor of `[batch, length, ...]` to the answers, without a look at any other
//! position. For a language model that is the head, and of the last layer what follows its attention.
//!
//! It is found from the answers backwards, by what the operations do, not by the names or the order in which a family has them. An operation belongs
//! to it where it does, and nothing outside wants what it gives. Of a sum of two computed tensors the graph does not say whether both have a value
//! for every position; who cuts the region out must try that, with more than one sequence and more than one position.

use super::graph::Graph;
use super::messages::NodeProto;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Operations that treat every value by itself, or two of the same place, as broadcasting pairs them.
const ELEMENT_WISE: [&str; 36] = [
    "Abs",
    "Add",
    "BiasGelu",
    "Cast",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "FastGelu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
];

/// Nodes that treat every position by itself, and the tensors that enter them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region<'a> {
    /// Numbers of the nodes.
    pub nodes: BTreeSet<usize>,
    /// Tensors of `[batch, length, ...]` made elsewhere, each with the nodes of the region that read it so.
    pub entrances: Vec<(&'a str, Vec<usize>)>,
    /// Whether a multiplication by a matrix is among the nodes, which is what there is to save.
    pub multiplies: bool,
}

/// The largest region of a graph that gives `output` of `[batch, length, width]` and none of the tensors in `kept`, nor anything they are made of.
/// Empty where there is none.
pub fn position_wise<'a>(graph: &Graph<'a>, output: &str, kept: &BTreeSet<&str>) -> Region<'a> {
    let Some((last, _)) = graph.producer(output) else { return Region::default() };
    if graph.has_inner_graphs() {
        return Region::default();
    }
    let reading = Reading { graph, computed: computed(graph) };
    let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().for_each(|input| consumers.entry(input).or_default().push(index));
    }
    let mut region = Region::default();
    let mut along: HashMap<usize, Vec<&str>> = HashMap::new();
    for (index, node) in graph.nodes()[..=last].iter().enumerate().rev() {
        let readers = |tensor: &String| consumers.get(tensor.as_str()).map_or(&[][..], Vec::as_slice);
        let made = || node.outputs.iter().filter(|tensor| !tensor.is_empty());
        let wanted = made().any(|tensor| tensor == output || !readers(tensor).is_empty());
        let inside =
            made().all(|tensor| !kept.contains(tensor.as_str()) && readers(tensor).iter().all(|reader| region.nodes.contains(reader)));
        if let (true, true, Some(inputs)) = (wanted, inside, reading.by_position(node)) {
            region.nodes.insert(index);
            region.multiplies |= node.op_type.contains("MatMul");
            along.insert(index, inputs);
        }
    }
    for index in &region.nodes {
        for tensor in &along[index] {
            if graph.producer(tensor).is_some_and(|(producer, _)| region.nodes.contains(&producer)) {
                continue;
            }
            match region.entrances.iter_mut().find(|(entrance, _)| entrance == tensor) {
                Some((_, readers)) => readers.push(*index),
                None => region.entrances.push((tensor, vec![*index])),
            }
        }
    }
    region
}

/// What is fed, and every tensor that depends on it.
fn computed<'a>(graph: &Graph<'a>) -> HashSet<&'a str> {
    let mut computed = HashSet::new();
    for node in graph.nodes() {
        let fed = |name: &&str| !name.is_empty() && graph.producer(name).is_none() && graph.initializer(name).is_none();
        let inputs = || node.inputs.iter().map(String::as_str);
        computed.extend(inputs().filter(fed));
        if inputs().any(|name| computed.contains(name)) {
            computed.extend(node.outputs.iter().map(String::as_str));
        }
    }
    computed
}

struct Reading<'g, 'a> {
    graph: &'g Graph<'a>,
    computed: HashSet<&'a str>,
}

impl<'a> Reading<'_, 'a> {
    /// The inputs that have a value for every position, where the node treats each by itself and the rest is the same for all of them.
    fn by_position(&self, node: &'a NodeProto) -> Option<Vec<&'a str>> {
        let input = |place: usize| node.inputs.get(place).map_or("", String::as_str);
        let rest = |first: usize| node.inputs.iter().skip(first).map(String::as_str).filter(|name| !name.is_empty());
        let computed = |name: &'a str| (self.computed.contains(name) && !self.is_uniform(name)).then_some(name);
        let integer = |name: &str, default: i64| node.attribute(name).map_or(default, |attribute| attribute.int);
        // Behind [batch, length], which the whole region keeps, the last axis is number 2.
        let is_last = |axis: i64| axis == -1 || axis == 2;
        if !node.is_known_domain() {
            return None;
        }
        match node.op_type.as_str() {
            operation if ELEMENT_WISE.contains(&operation) => {
                let inputs: Vec<&str> = rest(0).filter_map(computed).collect();
                let others = rest(0).all(|name| inputs.contains(&name) || self.is_uniform(name));
                (others && !inputs.is_empty()).then_some(inputs)
            }
            "MatMul" | "FusedMatMul" => {
                let straight = integer("transA", 0) == 0 && integer("transBatchA", 0) == 0 && integer("transBatchB", 0) == 0;
                (straight && self.is_matrix(input(1))).then_some(vec![computed(input(0))?])
            }
            "MatMulInteger" => {
                let zero_points = self.is_absent_or_single(input(2)) && (input(3).is_empty() || self.is_uniform(input(3)));
                (zero_points && self.is_matrix(input(1))).then_some(vec![computed(input(0))?])
            }
            "QLinearMatMul" => {
                let scales = [1, 2, 6, 7].into_iter().all(|place| self.is_single(input(place)));
                let uniform = scales && self.is_uniform(input(4)) && self.is_uniform(input(5));
                (uniform && self.is_matrix(input(3))).then_some(vec![computed(input(0))?])
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                (is_last(integer("axis", -1)) && rest(1).all(|name| self.is_uniform(name))).then_some(vec![computed(input(0))?])
            }
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
                rest(2).all(|name| self.is_uniform(name)).then_some(vec![computed(input(0))?, computed(input(1))?])
            }
            "ReduceMean" | "ReduceSum" | "ReduceL2" | "ReduceMax" => {
                let axes = match node.attribute("axes") {
                    Some(attribute) => attribute.ints.clone(),
                    None => self.graph.constant(input(1))?.integers(),
                };
                (integer("keepdims", 1) == 1 && matches!(axes[..], [axis] if is_last(axis))).then_some(vec![computed(input(0))?])
            }
            // Below opset 13 the axis that is not said is number 1.
            "Softmax" | "LogSoftmax" => is_last(node.attribute("axis")?.int).then_some(vec![computed(input(0))?]),
            "QuantizeLinear" | "DequantizeLinear" => rest(1).all(|name| self.is_single(name)).then_some(vec![computed(input(0))?]),
            _ => None,
        }
    }

    /// Whether a tensor is the same for every position: a constant along the last axis alone, a scale that was measured over the whole batch, or
    /// what is computed from such.
    fn is_uniform(&self, tensor: &str) -> bool {
        if let Some(constant) = self.graph.stored(tensor) {
            return constant.dims.iter().rev().skip(1).all(|size| *size == 1);
        }
        if self.is_measured(tensor) {
            return true;
        }
        let Some((_, node)) = self.graph.producer(tensor) else { return false };
        let inputs = node.inputs.iter().filter(|name| !name.is_empty());
        ELEMENT_WISE.contains(&node.op_type.as_str()) && !node.inputs.is_empty() && inputs.clone().all(|name| self.is_uniform(name))
    }

    fn is_single(&self, tensor: &str) -> bool {
        self.is_measured(tensor) || self.graph.stored(tensor).is_some_and(|constant| constant.elements() == 1)
    }

    fn is_absent_or_single(&self, tensor: &str) -> bool {
        tensor.is_empty() || self.is_single(tensor)
    }

    /// Whether a tensor is the scale or the zero point of a dynamic quantisation: one number, of all positions together.
    fn is_measured(&self, tensor: &str) -> bool {
        let node = self.graph.producer(tensor).map(|(_, node)| node);
        node.is_some_and(|node| node.op_type == "DynamicQuantizeLinear" && node.outputs[1..].iter().any(|output| output == tensor))
    }

    /// Whether a tensor is a constant matrix, as it is stored or transposed.
    fn is_matrix(&self, tensor: &str) -> bool {
        if let Some(constant) = self.graph.stored(tensor) {
            return constant.dims.len() == 2;
        }
        let transposed = self.graph.producer(tensor).filter(|(_, node)| node.op_type == "Transpose");
        transposed.is_some_and(|(_, node)| self.is_matrix(&node.inputs[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::parse;
    use super::super::messages::{AttributeProto, GraphProto};
    use super::*;

    /// As `parse` makes it, with square matrices for the constants named `cw...`.
    fn graph(text: &str) -> GraphProto {
        let mut message = parse(text);
        for tensor in message.initializers.iter_mut().filter(|tensor| tensor.name.starts_with("cw")) {
            tensor.dims = vec![8, 8];
        }
        message
    }

    fn names<'a>(region: &Region<'a>) -> Vec<&'a str> {
        region.entrances.iter().map(|(name, _)| *name).collect()
    }

    const BLOCK: &str = "Softmax: ids -> mix
        MatMul: mix cw1 -> out
        Add: out residual0 -> sum
        LayerNormalization: sum c2 c3 -> state
        MatMul: state cw4 -> wide
        Gelu: wide -> bent
        MatMul: bent cw5 -> narrow
        Add: narrow state -> next
        MatMul: next cw6 -> logits";

    #[test]
    fn it_reaches_back_to_what_looks_at_other_positions() {
        let text = format!("Relu: x -> residual0\nTranspose: x -> ids0\nReshape: ids0 cs -> ids\n{BLOCK}");
        let message = graph(&text);
        let region = position_wise(&Graph::new(&message), "logits", &BTreeSet::new());
        // Only the residual's Relu leads from what is fed to the sum without a look at other positions.
        assert_eq!(names(&region), ["x", "mix"]);
        assert!(region.multiplies);
    }

    #[test]
    fn it_ends_before_what_is_kept_or_read_elsewhere() {
        let message = graph(&format!("Relu: x -> residual0\nReshape: x cs -> ids\n{BLOCK}"));
        let region = position_wise(&Graph::new(&message), "logits", &BTreeSet::from(["state"]));
        assert_eq!((names(&region), region.nodes), (vec!["state"], BTreeSet::from([6, 7, 8, 9, 10])));
        let read = graph(&format!("Relu: x -> residual0\nReshape: x cs -> ids\n{BLOCK}\nConcat: next next -> elsewhere"));
        let region = position_wise(&Graph::new(&read), "logits", &BTreeSet::new());
        assert_eq!((names(&region), region.nodes.len()), (vec!["next"], 1));
    }

    #[test]
    fn what_mixes_positions_or_may_is_left_out() {
        for text in [
            "Reshape: x c1 -> logits",
            "MatMul: x y -> logits",
            "MatMul: cw1 x -> logits",
            "MatMul: x c1 -> logits",
            "Add: x cw1 -> logits",
            "Softmax: x -> logits",
            "ReduceMean: x c1 -> logits",
            "DynamicQuantizeLinear: x -> logits s z",
            "If: x -> y\nMatMul: x cw1 -> logits",
            "Add: c1 c2 -> logits",
        ] {
            let message = graph(text);
            assert_eq!(position_wise(&Graph::new(&message), "logits", &BTreeSet::new()), Region::default(), "{text}");
        }
        let mut message = graph("MatMul: x cw1 -> logits");
        message.nodes[0].domain = "someone.else".to_owned();
        assert_eq!(position_wise(&Graph::new(&message), "logits", &BTreeSet::new()), Region::default());
    }

    #[test]
    fn a_quantisation_over_the_whole_batch_stays_before_it() {
        let text =
            "DynamicQuantizeLinear: x -> q s z\nMatMulInteger: q cw1 z c2 -> i\nCast: i -> f\nMul: s c3 -> scale\nMul: f scale -> logits";
        let message = graph(text);
        let region = position_wise(&Graph::new(&message), "logits", &BTreeSet::new());
        assert_eq!((names(&region), region.nodes), (vec!["q"], BTreeSet::from([1, 2, 4])));
    }

    #[test]
    fn normalisations_and_sums_along_the_last_axis_belong_to_it() {
        let attribute = |name: &str, int: i64, ints: &[i64]| AttributeProto {
            name: name.into(),
            int,
            ints: ints.to_vec(),
            ..AttributeProto::default()
        };
        for (attributes, belongs) in [
            (vec![attribute("axes", 0, &[-1])], true),
            (vec![attribute("axes", 0, &[2])], true),
            (vec![attribute("axes", 0, &[1])], false),
            (vec![attribute("axes", 0, &[-1]), attribute("keepdims", 0, &[])], false),
        ] {
            let mut message = graph("ReduceMean: x -> mean\nSub: x mean -> logits");
            message.nodes[0].attributes = attributes;
            let region = position_wise(&Graph::new(&message), "logits", &BTreeSet::new());
            assert_eq!(region.nodes.contains(&0), belongs);
            assert_eq!(names(&region), if belongs { vec!["x"] } else { vec!["x", "mean"] });
        }
        for (axis, belongs) in [(-1, true), (2, true), (1, false)] {
            let mut message = graph("LogSoftmax: x -> logits");
            message.nodes[0].attributes = vec![attribute("axis", axis, &[])];
            assert_eq!(position_wise(&Graph::new(&message), "logits", &BTreeSet::new()).nodes.len(), usize::from(belongs));
        }
    }
}
