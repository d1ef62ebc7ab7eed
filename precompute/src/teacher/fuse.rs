//! Self-attention as one operation.
//!
//! An exporter spells attention out in some fifteen nodes, which a processor walks through memory one after another. Where that is the whole of what they
//! do, ONNX Runtime's `Attention` takes their place: the three projections of a head together with their biases, its scores, softmax and weighted values,
//! with nothing transposed in between. The weights stay where they are in the file; joining them is two nodes over constants, which the runtime folds.
//!
//! Only on processors: what a GPU's own version of the operation would round has not been measured.

use super::gather::kept;
use super::prepare::Prepared;
use logitcache::onnx::builder::INT64;
use logitcache::onnx::messages::TensorProto;
use logitcache::onnx::written::{Attribute, Node};
use logitcache::onnx::{Attention, Edit, Graph, Model, Unread, find_attentions, unread};
use std::collections::{BTreeMap, BTreeSet};

/// ONNX Runtime's own operations.
const DOMAIN: &str = "com.microsoft";
/// Their only version.
const DOMAIN_VERSION: i64 = 1;
/// What the names of new tensors start with.
const PREFIX: &str = "logitcache.attention";

/// Before this version the operation reads the scores' mask of every row after the first in a wrong place (microsoft/onnxruntime#24017).
const OLDEST_SOUND_RUNTIME: [u64; 3] = [1, 21, 1];

impl Prepared {
    /// Has the graph compute attention as one operation a layer, where it spells that out and nothing but that. Where the runtime, whose version is
    /// `runtime`, has an error in that operation, it does not, and a note says so.
    pub fn fuse_attention(&mut self, runtime: &str) {
        let (Some(model), None) = (&self.graph, &self.reduction) else { return };
        let found = !Exchange::find(model, &Graph::new(model.graph()), &kept(self)).attentions.is_empty();
        self.fuses = found && is_sound(runtime);
        if found && !self.fuses {
            self.notes.push(spelled_out(&format!("ONNX Runtime {runtime} has an error in it, which 1.21.1 has not")));
        }
    }
}

fn is_sound(runtime: &str) -> bool {
    let digits = |part: &str| part.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    let parts: Vec<u64> = runtime.split('.').map_while(digits).collect();
    parts[..] >= OLDEST_SOUND_RUNTIME[..]
}

/// For people: that attention is computed as the file spells it out, and why.
pub(super) fn spelled_out(reason: &str) -> String {
    format!("the teacher's attention is computed as its graph spells it out, not as one operation: {reason}")
}

/// What is exchanged in a graph.
struct Exchange {
    attentions: Vec<Attention>,
    /// What has served them alone.
    unread: Unread,
}

impl Exchange {
    /// Every attention but those whose result nobody reads, and those of whose inner tensors one is read by others, so that the nodes would have to stay.
    /// `kept`: tensors that will be outputs.
    fn find(model: &Model, graph: &Graph<'_>, kept: &BTreeSet<&str>) -> Self {
        let mut attentions = if graph.has_inner_graphs() { Vec::new() } else { find_attentions(graph, model.opset()) };
        let outputs: BTreeSet<&str> = model.graph().outputs.iter().map(|output| output.name.as_str()).chain(kept.iter().copied()).collect();
        loop {
            let exchanged = attentions.iter().map(|attention| (attention.last, read(attention))).collect();
            let unread = unread(graph, &exchanged, outputs.iter().copied());
            let all = attentions.len();
            let is_unread = |node: &usize| unread.nodes.contains(node);
            attentions.retain(|attention| !is_unread(&attention.last) && attention.products.iter().all(is_unread));
            if attentions.len() == all {
                return Self { attentions, unread };
            }
        }
    }
}

/// The tensors of the file that are read in an attention's place.
fn read(attention: &Attention) -> Vec<String> {
    let Attention { input, weights, biases, added, .. } = attention;
    std::iter::once(input).chain(weights).chain(biases).chain(added).cloned().collect()
}

/// Exchanges the attentions, and takes out what served them alone. `kept`: tensors that will be outputs.
pub(super) fn fuse(model: &Model, kept: &BTreeSet<&str>, edit: &mut Edit) {
    let graph = Graph::new(model.graph());
    let Exchange { attentions, unread } = Exchange::find(model, &graph, kept);
    let mut fusing = Fusing { edit, masks: BTreeMap::new() };
    attentions.iter().enumerate().for_each(|(layer, attention)| fusing.exchange(layer, attention));
    if !model.operator_sets().any(|domain| domain == DOMAIN) {
        edit.operator_set(DOMAIN, DOMAIN_VERSION);
    }
    let exchanged = attentions.iter().map(|attention| &attention.last);
    exchanged.chain(&unread.nodes).for_each(|node| edit.remove(*node));
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
    /// Puts the operation in the place of `attention`'s last node.
    fn exchange(&mut self, layer: usize, attention: &Attention) {
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
    }

    /// The sum of what is added to the scores, `[1 or batch, 1 or heads, length, length]`: the operation repeats it for rows and heads alone.
    fn mask(&mut self, attention: &Attention) -> Option<String> {
        let (first, others) = attention.added.split_first()?;
        if let Some(mask) = self.masks.get(&attention.added) {
            return Some(mask.clone());
        }
        let (place, number) = (attention.last, self.masks.len());
        let square = self.square(place, number, &attention.input);
        let mut sum = first.clone();
        for (index, other) in others.iter().enumerate() {
            let next = format!("{PREFIX}.sum_{number}_{index}");
            self.insert(place, "Add", &[sum, other.clone()], &next, Vec::new());
            sum = next;
        }
        let mask = format!("{PREFIX}.mask_{number}");
        self.insert(place, "Expand", &[sum, square], &mask, Vec::new());
        self.masks.insert(attention.added.clone(), mask.clone());
        Some(mask)
    }

    /// The shape `[1, 1, length, length]` for mask number `number`, from that of `states`, `[batch, length, hidden]`, of the first layer that has the mask.
    fn square(&mut self, place: usize, number: usize, states: &str) -> String {
        if number == 0 {
            self.integers("second", &[1]);
            self.integers("ones", &[1, 1]);
        }
        let [shape, length, square] = ["shape", "length", "square"].map(|name| format!("{PREFIX}.{name}_{number}"));
        let along_first = || vec![Attribute::of_int("axis", 0)];
        self.insert(place, "Shape", &[states.to_owned()], &shape, Vec::new());
        self.insert(place, "Gather", &[shape, format!("{PREFIX}.second")], &length, along_first());
        self.insert(place, "Concat", &[format!("{PREFIX}.ones"), length.clone(), length], &square, along_first());
        square
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();
        let (name, dims) = (format!("{PREFIX}.{name}"), vec![values.len() as i64]);
        self.edit.constant(TensorProto { name, data_type: INT64, dims, raw_data, ..TensorProto::default() });
    }

    /// Puts a standard operation with one output before node number `place`.
    fn insert(&mut self, place: usize, op_type: &str, inputs: &[String], output: &str, attributes: Vec<Attribute>) {
        let (inputs, outputs) = (inputs.to_vec(), vec![output.to_owned()]);
        self.edit
            .insert(place, Node { inputs, outputs, name: output.to_owned(), op_type: op_type.to_owned(), attributes, ..Node::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn one_whose_inner_tensors_are_wanted_stays_as_it_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/onnx/bert/torchscript-17.onnx");
        let model = Model::read(&path).unwrap();
        let graph = Graph::new(model.graph());
        let softmax = graph.nodes().iter().find(|node| node.op_type == "Softmax").unwrap();
        let found = |kept: &[&str]| Exchange::find(&model, &graph, &kept.iter().copied().collect()).attentions;
        let (all, others) = (found(&[]), found(&[&softmax.outputs[0]]));
        assert_eq!((all.len(), others.len()), (3, 2));
        assert_eq!(others, all[1..]);
        assert_eq!(found(&[&all[0].output]), all, "what leaves it may be wanted");
    }

    #[test]
    fn versions_with_the_error_are_known() {
        assert!(["1.21.1", "1.22.0", "1.32.0", "1.100.0-dev", "2.0.0", "1.32.0+cpu"].into_iter().all(is_sound));
        assert!(!["1.17.0", "1.20.2", "1.21.0", "1.9.9", "", "unknown"].into_iter().any(is_sound));
    }
}
