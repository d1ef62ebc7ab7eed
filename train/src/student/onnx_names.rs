//! Which initialiser of an exported graph is which parameter, where the exporter renamed, transposed, merged or doubled them.
//!
//! What is known, best first:
//!
//! 1. A linear layer's weight is what its MatMul or Gemm multiplies with, whatever its name and orientation. The module is told by the node: the path
//!    in its name (`/bert/encoder/layer.0/output/dense/MatMul`, TorchScript's exporter) or in its scopes (dynamo's).
//! 2. Where neither says it, by the bias that is added to the product and kept its name: `X.bias` makes the weight `X.weight`.
//! 3. Everything else (embeddings, biases, LayerNorms) by its own name; what lost its name to an identical one, by its node's path.
//!
//! A prefix that a wrapper put before all names (`model.`) is taken off.

use super::decoder::DecoderRole;
use super::family::Family;
use super::names::Role;
use logitcache::onnx::messages::{NodeProto, TensorProto, element_type};
use logitcache::onnx::{Graph, find_layer_norms};
use std::collections::{BTreeMap, HashMap};

/// Dynamo's key for the modules that a node is in, outermost first, the operation last.
const SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// A parameter's values, and whether they are stored the other way around.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) tensor: TensorProto,
    pub(super) transposed: bool,
}

/// Every parameter of the graph under its Hugging Face name.
pub(super) fn parameters(graph: &Graph<'_>, initializers: &[TensorProto]) -> BTreeMap<String, Found> {
    let is_float = |tensor: &&TensorProto| element_type::FLOATS.contains(&tensor.data_type);
    let floats: Vec<&TensorProto> = initializers.iter().filter(is_float).collect();
    let prefix = prefix(&floats);
    let mut search = Search { graph, prefix, found: BTreeMap::new() };
    search.linear_layers();
    for tensor in floats {
        search.add(&tensor.name, tensor, false);
    }
    search.layer_norms();
    search.lookups();
    search.decoder_biases();
    search.found
}

struct Search<'a> {
    graph: &'a Graph<'a>,
    prefix: String,
    found: BTreeMap<String, Found>,
}

impl<'a> Search<'a> {
    /// Keeps what is known already.
    fn add(&mut self, name: &str, tensor: &TensorProto, transposed: bool) {
        let name = name.strip_prefix(&self.prefix).unwrap_or(name);
        self.found.entry(name.to_owned()).or_insert_with(|| Found { tensor: tensor.clone(), transposed });
    }

    fn linear_layers(&mut self) {
        let mut by_bias: HashMap<&str, Vec<(&TensorProto, bool)>> = HashMap::new();
        let consumers = consumers(self.graph);
        for node in self.graph.nodes() {
            let Some((tensor, transposed, mut bias)) = self.product(node) else { continue };
            if bias.is_none() {
                bias = node.outputs.first().and_then(|output| self.added_bias(&consumers, output));
            }
            if let Some(path) = module(node) {
                self.add(&format!("{path}.weight"), tensor, transposed);
                if let Some(values) = bias.and_then(|bias| self.graph.constant(bias)) {
                    self.add(&format!("{path}.bias"), values, false);
                }
            }
            if let Some(bias) = bias {
                by_bias.entry(bias).or_default().push((tensor, transposed));
            }
        }
        for (bias, weights) in by_bias {
            // A bias that several linear layers share, merged with an identical one, tells of none of them.
            if let (Some(path), true) = (bias.strip_suffix(".bias"), weights.iter().all(|weight| weight.0.name == weights[0].0.name)) {
                self.add(&format!("{path}.weight"), weights[0].0, weights[0].1);
            }
        }
    }

    /// The constant matrix that a node multiplies with, whether it is `[input, output]`, and a bias inside the node.
    fn product(&self, node: &'a NodeProto) -> Option<(&'a TensorProto, bool, Option<&'a str>)> {
        let (tensor, turned) = self.stored(node.inputs.get(1)?)?;
        if tensor.dims.len() != 2 || !element_type::FLOATS.contains(&tensor.data_type) {
            return None;
        }
        match node.op_type.as_str() {
            "MatMul" => Some((tensor, !turned, None)),
            "Gemm" => {
                let outputs_first = node.attributes.iter().any(|attribute| attribute.name == "transB" && attribute.int == 1);
                Some((tensor, outputs_first == turned, node.inputs.get(2).map(String::as_str)))
            }
            _ => None,
        }
    }

    /// A constant behind copies, conversions and transpositions, and whether it is turned in the end.
    fn stored(&self, name: &'a str) -> Option<(&'a TensorProto, bool)> {
        if let Some(tensor) = self.graph.constant(name) {
            return Some((tensor, false));
        }
        let (_, node) = self.graph.producer(name)?;
        let (tensor, turned) = match node.op_type.as_str() {
            "Identity" | "Cast" | "Transpose" => self.stored(node.inputs.first()?)?,
            _ => return None,
        };
        Some((tensor, turned != (node.op_type == "Transpose")))
    }

    /// The name of the constant vector that is added to `product`, by a sum or by what one was fused into.
    fn added_bias(&self, consumers: &HashMap<&'a str, Vec<&'a NodeProto>>, product: &str) -> Option<&'a str> {
        consumers.get(product)?.iter().find_map(|node| {
            let candidates: Vec<&String> = match node.op_type.as_str() {
                "Add" | "BiasGelu" | "FastGelu" => node.inputs.iter().collect(),
                "SkipLayerNormalization" => node.inputs.get(4).into_iter().collect(),
                "Cast" | "Identity" => return self.added_bias(consumers, node.outputs.first()?),
                _ => Vec::new(),
            };
            let vector = |name: &&String| self.stored(name).is_some_and(|(tensor, _)| tensor.dims.len() == 1);
            candidates.into_iter().find(vector).map(String::as_str)
        })
    }

    fn layer_norms(&mut self) {
        for norm in find_layer_norms(self.graph) {
            let node = &self.graph.nodes()[norm.node];
            let Some(path) = module(node) else { continue };
            let bias = match node.op_type.as_str() {
                "LayerNormalization" => node.inputs.get(2),
                "Add" => node.inputs.iter().find(|input| self.stored(input).is_some()),
                _ => None,
            };
            for (name, part) in [(Some(norm.scale), "weight"), (bias.map(String::as_str), "bias")] {
                if let Some((tensor, _)) = name.and_then(|name| self.stored(name)) {
                    self.add(&format!("{path}.{part}"), tensor, false);
                }
            }
        }
    }

    /// Embeddings; the word embeddings also bear the name of the decoder that is tied to them.
    fn lookups(&mut self) {
        for node in self.graph.nodes().iter().filter(|node| node.op_type == "Gather") {
            let [table, indices] = &node.inputs[..] else { continue };
            let Some((tensor, false)) = self.stored(table) else { continue };
            if tensor.dims.len() != 2 || !element_type::FLOATS.contains(&tensor.data_type) {
                continue;
            }
            if let Some(path) = module(node) {
                self.add(&format!("{path}.weight"), tensor, false);
            }
            if self.graph.origin(indices) == "input_ids" {
                let family = Family::ALL.into_iter().find(|family| self.found.keys().any(|name| belongs(name, *family) == Some(0)));
                if let Some(family) = family {
                    self.add(&format!("{}.weight", words(family).name(family)), tensor, false);
                }
            }
        }
    }

    /// A decoder's bias is one tensor with two names in the newer models.
    fn decoder_biases(&mut self) {
        let twice: Vec<(String, Found)> = self.found.iter().map(|(name, found)| (name.clone(), found.clone())).collect();
        for (name, found) in twice {
            if let Some(head) = name.strip_suffix(".decoder.bias") {
                self.add(&format!("{head}.bias"), &found.tensor, false);
            }
        }
    }
}

fn consumers<'a>(graph: &Graph<'a>) -> HashMap<&'a str, Vec<&'a NodeProto>> {
    let mut consumers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in graph.nodes() {
        for input in &node.inputs {
            consumers.entry(input).or_default().push(node);
        }
    }
    consumers
}

/// What the family calls its word embeddings.
fn words(family: Family) -> Role {
    if family.is_decoder() { Role::Decoder(DecoderRole::Words) } else { Role::WordEmbeddings }
}

/// What stands before every name: `model.` where a wrapper was exported.
fn prefix(tensors: &[&TensorProto]) -> String {
    let place = |name: &str| Family::ALL.into_iter().find_map(|family| belongs(name, family)).map(|start| name[..start].to_owned());
    tensors.iter().find_map(|tensor| place(&tensor.name)).unwrap_or_default()
}

/// Where the family's embeddings, or a decoder's final norm, begin in a name that is of them: a tied head may lend the words its own name.
fn belongs(name: &str, family: Family) -> Option<usize> {
    let modules = match family.is_decoder() {
        true => vec![DecoderRole::Words.name(family), DecoderRole::FinalNorm.name(family)],
        false => vec![format!("{family}.embeddings")],
    };
    let start = modules.iter().find_map(|module| name.find(&format!("{module}.")))?;
    (start == 0 || name[..start].ends_with('.')).then_some(start)
}

/// The module that a node belongs to, dots between its parts.
fn module(node: &NodeProto) -> Option<String> {
    if let Some(path) = node.name.strip_prefix('/') {
        return path.rsplit_once('/').map(|(module, _)| module.replace('/', "."));
    }
    let scopes = node.metadata.iter().find(|entry| entry.key == SCOPES)?;
    let scopes: Vec<&str> = scopes.value.split('\'').skip(1).step_by(2).collect();
    scopes.len().checked_sub(2).map(|last| scopes[last].to_owned()).filter(|module| !module.is_empty())
}
