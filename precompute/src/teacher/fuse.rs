//! Self-attention as one operation.
//!
//! An exporter spells attention out in some fifteen nodes, which a processor walks through memory one after another. Where that is the whole of what they
//! do, ONNX Runtime's `Attention` takes their place: the three projections of a head together with their biases, its scores, softmax and weighted values,
//! with nothing transposed in between. The weights stay where they are in the file; joining them is two nodes over constants, which the runtime folds.
//!
//! Only on processors: what a GPU's own version of the operation would round has not been measured.

use super::prepare::Prepared;
use logitcache::onnx::builder::INT64;
use logitcache::onnx::messages::TensorProto;
use logitcache::onnx::written::{Attribute, Node};
use logitcache::onnx::{Attention, Edit, Graph, Model, find_attentions, unread};
use std::collections::{BTreeMap, BTreeSet};

/// ONNX Runtime's own operations.
const DOMAIN: &str = "com.microsoft";
/// Their only version.
const DOMAIN_VERSION: i64 = 1;
/// What the names of new tensors start with.
const PREFIX: &str = "logitcache.attention";

impl Prepared {
    /// Has the graph compute attention as one operation a layer, where it spells that out and nothing but that.
    pub fn fuse_attention(&mut self) {
        if let (Some(model), None) = (&self.graph, &self.reduction) {
            self.fuses = !attentions(&Graph::new(model.graph()), model.opset()).is_empty();
        }
    }
}

fn attentions(graph: &Graph<'_>, opset: i64) -> Vec<Attention> {
    if graph.has_inner_graphs() { Vec::new() } else { find_attentions(graph, opset) }
}

/// For people: that attention is computed as the file spells it out, and why.
pub(super) fn spelled_out(reason: &str) -> String {
    format!("the teacher's attention is computed as its graph spells it out, not as one operation: {reason}")
}

/// Exchanges the attentions, and takes out what served them alone. `kept`: tensors that will be outputs.
pub(super) fn fuse(model: &Model, kept: &BTreeSet<&str>, edit: &mut Edit) {
    let graph = Graph::new(model.graph());
    let mut fusing = Fusing { edit, masks: BTreeMap::new() };
    let mut exchanged = BTreeMap::new();
    for (layer, attention) in attentions(&graph, model.opset()).iter().enumerate() {
        exchanged.insert(attention.last, fusing.exchange(layer, attention));
    }
    if !model.operator_sets().any(|domain| domain == DOMAIN) {
        edit.operator_set(DOMAIN, DOMAIN_VERSION);
    }
    let outputs = model.graph().outputs.iter().map(|output| output.name.as_str());
    let unread = unread(&graph, &exchanged, outputs.chain(kept.iter().copied()));
    exchanged.keys().chain(&unread.nodes).for_each(|node| edit.remove(*node));
    // Old files list initialisers among the inputs, where they stay as defaults.
    let is_input = |name: &&String| model.graph().inputs.iter().any(|input| input.name == **name);
    unread.initializers.iter().filter(|name| !is_input(name)).for_each(|name| edit.drop_constant(name));
}

struct Fusing<'e> {
    edit: &'e mut Edit,
    /// What is added to scores, to the tensor that has it for every row and column.
    masks: BTreeMap<Vec<String>, String>,
}

impl Fusing<'_> {
    /// Puts the operation in the place of `attention`'s last node; gives the tensors of the file that it reads.
    fn exchange(&mut self, layer: usize, attention: &Attention) -> Vec<String> {
        let place = attention.last;
        let names = ["weight", "bias"].map(|part| format!("{PREFIX}.{part}_{layer}"));
        for ((parts, name), axis) in [&attention.weights, &attention.biases].into_iter().zip(&names).zip([1, 0]) {
            self.insert(place, "Concat", parts, name, vec![Attribute::of_int("axis", axis)]);
        }
        let [weight, bias] = names;
        let mut inputs = vec![attention.input.clone(), weight, bias];
        if let Some(mask) = self.mask(attention) {
            // Between them the mask of tokens and the cache of keys, which there are not.
            inputs.extend([String::new(), String::new(), mask]);
        }
        let attributes = vec![Attribute::of_int("num_heads", attention.heads), Attribute::of_float("scale", attention.scale)];
        let node = Node {
            inputs,
            outputs: vec![attention.output.clone()],
            name: format!("{PREFIX}/{layer}"),
            op_type: "Attention".to_owned(),
            attributes,
            domain: DOMAIN.to_owned(),
        };
        self.edit.insert(place, node);
        let read = std::iter::once(&attention.input).chain(&attention.weights).chain(&attention.biases).chain(&attention.added);
        read.cloned().collect()
    }

    /// The sum of what is added to the scores, `[1 or batch, 1 or heads, length, length]`: the operation repeats it for rows and heads alone.
    fn mask(&mut self, attention: &Attention) -> Option<String> {
        let (first, others) = attention.added.split_first()?;
        if let Some(mask) = self.masks.get(&attention.added) {
            return Some(mask.clone());
        }
        let (place, number) = (attention.last, self.masks.len());
        if number == 0 {
            self.square(place, &attention.input);
        }
        let mut sum = first.clone();
        for (index, other) in others.iter().enumerate() {
            let next = format!("{PREFIX}.sum_{number}_{index}");
            self.insert(place, "Add", &[sum, other.clone()], &next, Vec::new());
            sum = next;
        }
        let mask = format!("{PREFIX}.mask_{number}");
        self.insert(place, "Expand", &[sum, format!("{PREFIX}.square")], &mask, Vec::new());
        self.masks.insert(attention.added.clone(), mask.clone());
        Some(mask)
    }

    /// The shape `[1, 1, length, length]`, from that of `states`, `[batch, length, hidden]`.
    fn square(&mut self, place: usize, states: &str) {
        let named = |name: &str| format!("{PREFIX}.{name}");
        for (name, values) in [("second", &[1][..]), ("ones", &[1, 1])] {
            let bytes: Vec<u8> = values.iter().flat_map(|value: &i64| value.to_le_bytes()).collect();
            let dims = vec![values.len() as i64];
            self.edit.constant(TensorProto { name: named(name), data_type: INT64, dims, raw_data: bytes.into(), ..TensorProto::default() });
        }
        self.insert(place, "Shape", &[states.to_owned()], &named("shape"), Vec::new());
        let along_first = || vec![Attribute::of_int("axis", 0)];
        self.insert(place, "Gather", &[named("shape"), named("second")], &named("length"), along_first());
        self.insert(place, "Concat", &[named("ones"), named("length"), named("length")], &named("square"), along_first());
    }

    /// Puts a standard operation with one output before node number `place`.
    fn insert(&mut self, place: usize, op_type: &str, inputs: &[String], output: &str, attributes: Vec<Attribute>) {
        let (inputs, outputs) = (inputs.to_vec(), vec![output.to_owned()]);
        self.edit
            .insert(place, Node { inputs, outputs, name: output.to_owned(), op_type: op_type.to_owned(), attributes, ..Node::default() });
    }
}
