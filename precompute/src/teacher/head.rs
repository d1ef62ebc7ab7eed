//! The head of a language model, left to whoever makes targets.
//!
//! The projection to the vocabulary is the last and often the largest product of a graph, and writes a hundred times more than it reads. Where the graph
//! ends in MatMul(states, weights), with or without a bias added to it, both in float32, these nodes and the weights are taken out, the states are
//! answered in place of logits, and [`crate::topk::Head`] computes what the nodes would have, a part of the vocabulary at a time, without writing the
//! logits down.

use super::gather::{asked_name, kept, region};
use super::prepare::Prepared;
use crate::topk::{Head, Layout};
use logitcache::onnx::messages::{NodeProto, TensorProto};
use logitcache::onnx::{Edit, Graph, Model, unread};
use logitcache::target::Task;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A head that the graph is not to compute.
#[derive(Clone, Debug)]
pub(super) struct LeftHead {
    /// What is answered in place of logits, `[batch, length, depth]`.
    states: String,
    /// Whether the asked positions are gathered in front of the head itself, so that the states are those of every position.
    is_entrance: bool,
    pub head: Arc<Head>,
}

impl Prepared {
    /// Leaves the head to the reader of the answers where that is faster for `k` ids a position, and the graph has one that can be told apart: from then
    /// on answers are the states that [`Teacher::head`](super::Teacher::head) makes logits of. Whether it is left.
    pub fn leave_head(&mut self, k: usize) -> bool {
        self.leave_head_where(|width| Head::pays(k, width))
    }

    /// The same for a vocabulary of which `pays` is true.
    pub(super) fn leave_head_where(&mut self, pays: impl Fn(usize) -> bool) -> bool {
        let language_model = matches!(self.task.task, Task::MaskedLm | Task::CausalLm);
        if let (Some(model), true, None) = (&self.graph, language_model, &self.reduction) {
            self.head = self.find_head(model, pays);
        }
        self.head.is_some()
    }

    fn find_head(&self, model: &Model, pays: impl Fn(usize) -> bool) -> Option<LeftHead> {
        let graph = Graph::new(model.graph());
        let found = Found::in_graph(&graph, &self.output).filter(|found| found.width().is_some_and(pays))?;
        let unread = unread(&graph, &BTreeMap::new(), wanted(model, &self.output, &kept(self), &found.states));
        if graph.has_inner_graphs() || !unread.nodes.contains(&found.product) {
            return None;
        }
        let bias = found.bias.map_or(Some(Vec::new()), TensorProto::floats)?;
        let depth = usize::try_from(found.weights.dims[usize::from(found.layout == Layout::ById)]).ok()?;
        let head = Arc::new(Head::new(depth, &found.weights.floats()?, found.layout, &bias)?);
        let entrances = region(model, &self.output, &kept(self)).map(|region| region.entrances).unwrap_or_default();
        let is_entrance = entrances.iter().any(|(tensor, _)| *tensor == found.states);
        Some(LeftHead { states: found.states, is_entrance, head })
    }
}

impl LeftHead {
    /// The output of the changed graph that is read.
    pub(super) fn output(&self, gathers: bool) -> String {
        if gathers && self.is_entrance { asked_name(&self.states) } else { self.states.clone() }
    }

    /// Takes the nodes and their weights out of the graph whose output is `output`. `kept`: other tensors that will be outputs.
    pub(super) fn take_out(&self, model: &Model, output: &str, kept: &BTreeSet<&str>, gathers: bool, edit: &mut Edit) {
        let graph = Graph::new(model.graph());
        let unread = unread(&graph, &BTreeMap::new(), wanted(model, output, kept, &self.states));
        unread.nodes.iter().for_each(|node| edit.remove(*node));
        unread.initializers.iter().for_each(|name| edit.drop_constant(name));
        edit.hide(output);
        let answered = self.output(gathers);
        // As a hidden state, or by itself, it may be an output already.
        let mut outputs = model.graph().outputs.iter().map(|other| other.name.as_str()).chain(kept.iter().copied());
        if !outputs.any(|other| other == answered) {
            edit.output(&answered);
        }
    }
}

/// What is to be computed where the head is not.
fn wanted<'m>(model: &'m Model, output: &'m str, kept: &BTreeSet<&'m str>, states: &'m str) -> Vec<&'m str> {
    let outputs = model.graph().outputs.iter().map(|other| other.name.as_str()).filter(|other| *other != output);
    // Old files list initialisers among the inputs, where they stay as defaults.
    let inputs = model.graph().inputs.iter().map(|input| input.name.as_str());
    outputs.chain(inputs).chain(kept.iter().copied()).chain([states]).collect()
}

/// A product that ends a graph.
struct Found<'m> {
    /// The number of the MatMul.
    product: usize,
    states: String,
    weights: &'m TensorProto,
    layout: Layout,
    bias: Option<&'m TensorProto>,
}

impl<'m> Found<'m> {
    fn in_graph(graph: &Graph<'m>, output: &str) -> Option<Self> {
        let (number, last) = graph.producer(output).filter(|(_, node)| node.is_known_domain())?;
        let (product, matmul, bias) = match last.op_type.as_str() {
            "MatMul" => (number, last, None),
            "Add" => {
                let [first, second] = last.inputs.as_slice() else { return None };
                let (product, bias) = if graph.constant(second).is_some() { (first, second) } else { (second, first) };
                let (number, matmul) = graph.producer(product)?;
                (number, matmul, Some(graph.constant(bias)?))
            }
            _ => return None,
        };
        let [states, weights] = matmul.inputs.as_slice() else { return None };
        let (weights, layout) = matrix(graph, weights)?;
        let is_matmul = matmul.op_type == "MatMul" && matmul.is_known_domain() && graph.constant(states).is_none();
        let found = Self { product, states: states.clone(), weights, layout, bias };
        let is_row = |bias: &TensorProto| bias.dims.last().is_some_and(|last| *last > 0 && bias.elements() == *last as u64);
        (is_matmul && bias.is_none_or(is_row)).then_some(found)
    }

    /// Ids.
    fn width(&self) -> Option<usize> {
        usize::try_from(self.weights.dims[usize::from(self.layout == Layout::ByDepth)]).ok()
    }
}

/// A constant matrix, as it is stored or transposed.
fn matrix<'m>(graph: &Graph<'m>, name: &str) -> Option<(&'m TensorProto, Layout)> {
    let is_matrix = |tensor: &&TensorProto| tensor.dims.len() == 2;
    if let Some(weights) = graph.constant(name).filter(is_matrix) {
        return Some((weights, Layout::ByDepth));
    }
    let (_, transpose) = graph.producer(name).filter(|(_, node)| node.op_type == "Transpose" && node.is_known_domain())?;
    let turns = |node: &NodeProto| node.attribute("perm").is_none_or(|order| order.ints == [1, 0]);
    let weights = graph.constant(transpose.inputs.first()?).filter(is_matrix)?;
    turns(transpose).then_some((weights, Layout::ById))
}
