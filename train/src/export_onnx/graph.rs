//! The student's computation as ONNX nodes, opset 17: what [`crate::student`] computes on packed rows, on padded ones.
//!
//! Linear weights are stored transposed, as MatMul takes them, under a name that says so. The word embeddings are stored once and transposed in the
//! graph for the decoder, which the runtime does once, when it opens the model.

mod heads;

use super::decoder_graph;
use crate::kernels::Activation;
use crate::student::{Family, LayerPart, Role, StudentConfig, layout};
use logitcache::onnx::GraphBuilder;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};

/// What a transposed weight's name ends with.
pub(super) const TRANSPOSED: &str = "_transposed";

/// The student's parameter that a weight of the graph holds.
pub(super) fn parameter_of(weight: &str) -> &str {
    weight.strip_suffix(TRANSPOSED).unwrap_or(weight)
}

/// The graph's inputs, in order. As in optimum's exports, BERT and ALBERT take token types; a RoBERTa has one, which is built in.
pub(super) fn input_names(config: &StudentConfig) -> Vec<&'static str> {
    if config.decoder.is_some() {
        return decoder_graph::INPUTS.to_vec();
    }
    let mut names = vec!["input_ids", "attention_mask"];
    if matches!(config.family, Family::Bert | Family::Albert) {
        names.push("token_type_ids");
    }
    names
}

/// The whole student, with the outputs of its task: `logits`, or the last state and the vector of a sentence encoder.
pub(super) fn build(config: &StudentConfig) -> GraphBuilder {
    if let Some(decoder) = &config.decoder {
        return decoder_graph::build(config, decoder);
    }
    let mut graph = GraphBuilder::new("main_graph");
    for name in input_names(config) {
        graph.input(name, INT64, vec![Dimension::open("batch_size"), Dimension::open("sequence_length")]);
    }
    let mut model = Model { config, graph };
    let mut hidden = model.embeddings();
    let bias = model.attention_bias();
    for layer in 0..config.num_hidden_layers {
        hidden = model.layer(layer.min(config.layers_with_parameters() - 1), &hidden, &bias);
    }
    model.head(&hidden);
    model.graph
}

struct Model<'a> {
    config: &'a StudentConfig,
    graph: GraphBuilder,
}

impl Model<'_> {
    fn path(&self, role: Role) -> String {
        let specs = layout(self.config);
        let name = specs.iter().find(|spec| spec.role == role).map(|spec| spec.name.rsplit_once('.').map_or("", |(module, _)| module));
        module_path(name.expect("the family's layout has the role"))
    }

    fn embeddings_path(&self) -> String {
        parent(&self.path(Role::WordEmbeddings))
    }

    /// The weight or bias of a role as it is stored in the student.
    fn parameter(&mut self, role: Role, bias: bool) -> String {
        let specs = layout(self.config);
        let spec = specs.iter().find(|spec| spec.role == role && spec.bias == bias).expect("the family's layout has the role");
        self.graph.weight(&spec.name, &spec.shape)
    }

    /// `[batch, sequence, hidden]` of the ids.
    fn embeddings(&mut self) -> String {
        let path = self.embeddings_path();
        let words = self.lookup(Role::WordEmbeddings, "input_ids");
        let mut sum = words;
        if self.config.family.has_token_types() {
            let types = match self.config.family {
                Family::Roberta => self.graph.integers("/constants/first", &[0]),
                _ => "token_type_ids".to_owned(),
            };
            let types = self.lookup(Role::TokenTypeEmbeddings, &types);
            sum = self.graph.node(&path, "Add", &[&sum, &types], vec![]);
        }
        let positions = match self.config.family {
            Family::Roberta => self.counted_positions(&path),
            _ => self.plain_positions(&path),
        };
        let positions = self.lookup(Role::PositionEmbeddings, &positions);
        let sum = self.graph.node(&path, "Add", &[&sum, &positions], vec![]);
        let normalised = self.layer_norm(Role::EmbeddingNorm, &sum);
        match self.config.family {
            Family::Albert => self.linear(Role::EmbeddingMapping, &normalised),
            _ => normalised,
        }
    }

    fn lookup(&mut self, role: Role, indices: &str) -> String {
        let (path, table) = (self.path(role), self.parameter(role, false));
        self.graph.node(&path, "Gather", &[&table, indices], vec![Attribute::of_int("axis", 0)])
    }

    /// `[sequence]`: 0, 1, 2, ...
    fn plain_positions(&mut self, path: &str) -> String {
        let (zero, one) = (self.graph.integer("/constants/zero", 0), self.graph.integer("/constants/one", 1));
        let shape = self.graph.node(path, "Shape", &["input_ids"], vec![]);
        let length = self.graph.node(path, "Gather", &[&shape, &one], vec![Attribute::of_int("axis", 0)]);
        self.graph.node(path, "Range", &[&zero, &length, &one], vec![])
    }

    /// `[batch, sequence]`: a RoBERTa counts the tokens that are not padding from the padding id + 1; padding has the place of its id.
    fn counted_positions(&mut self, path: &str) -> String {
        let padding = i64::from(self.config.pad_token_id.expect("a RoBERTa's settings are refused without one"));
        let (padding, axis) = (self.graph.integer("/constants/padding", padding), self.graph.integer("/constants/one", 1));
        let padded = self.graph.node(path, "Equal", &["input_ids", &padding], vec![]);
        let kept = self.graph.node(path, "Not", &[&padded], vec![]);
        let kept = self.graph.node(path, "Cast", &[&kept], vec![Attribute::of_int("to", i64::from(INT64))]);
        let counted = self.graph.node(path, "CumSum", &[&kept, &axis], vec![]);
        let counted = self.graph.node(path, "Mul", &[&counted, &kept], vec![]);
        self.graph.node(path, "Add", &[&counted, &padding], vec![])
    }

    /// `[batch, 1, 1, sequence]`: 0 for a token and the least finite number for padding, to be added to scores. Even a row of padding alone stays
    /// finite.
    fn attention_bias(&mut self) -> String {
        let path = format!("/{}", self.config.family);
        let (one, least) = (self.graph.scalar("/constants/one_f", 1.0), self.graph.scalar("/constants/least", f32::MIN));
        let axes = self.graph.integers("/constants/axes", &[1, 2]);
        let mask = self.graph.node(&path, "Cast", &["attention_mask"], vec![Attribute::of_int("to", i64::from(FLOAT32))]);
        let missing = self.graph.node(&path, "Sub", &[&one, &mask], vec![]);
        let bias = self.graph.node(&path, "Mul", &[&missing, &least], vec![]);
        self.graph.node(&path, "Unsqueeze", &[&bias, &axes], vec![])
    }

    /// A transformer layer with the parameters of layer `own`.
    fn layer(&mut self, own: usize, hidden: &str, bias: &str) -> String {
        let role = |part| Role::Layer(own, part);
        let attended = self.attention(own, hidden, bias);
        let path = parent(&self.path(role(LayerPart::AttentionNorm)));
        let sum = self.graph.node(&path, "Add", &[&attended, hidden], vec![]);
        let hidden = self.layer_norm(role(LayerPart::AttentionNorm), &sum);
        let widened = self.linear(role(LayerPart::Widen), &hidden);
        let path = parent(&self.path(role(LayerPart::Widen)));
        let active = self.activation(&format!("{path}/activation"), self.config.activation, &widened);
        let narrowed = self.linear(role(LayerPart::Narrow), &active);
        let path = parent(&self.path(role(LayerPart::OutputNorm)));
        let sum = self.graph.node(&path, "Add", &[&narrowed, &hidden], vec![]);
        self.layer_norm(role(LayerPart::OutputNorm), &sum)
    }

    fn attention(&mut self, own: usize, hidden: &str, bias: &str) -> String {
        let role = |part| Role::Layer(own, part);
        let path = parent(&self.path(role(LayerPart::Query)));
        let (heads, size) = (self.config.num_attention_heads as i64, self.config.head_size());
        let split = self.graph.integers("/constants/heads", &[0, 0, heads, size as i64]);
        let joined = self.graph.integers("/constants/joined", &[0, 0, self.config.hidden_size as i64]);
        let mut projected = |part, order: [i64; 4]| {
            let rows = self.linear(role(part), hidden);
            let heads = self.graph.node(&path, "Reshape", &[&rows, &split], vec![]);
            self.graph.node(&path, "Transpose", &[&heads], vec![Attribute::of_ints("perm", &order)])
        };
        let query = projected(LayerPart::Query, [0, 2, 1, 3]);
        let key = projected(LayerPart::Key, [0, 2, 3, 1]);
        let value = projected(LayerPart::Value, [0, 2, 1, 3]);
        let scale = self.graph.scalar("/constants/scale", (1.0 / (size as f64).sqrt()) as f32);
        let scores = self.graph.node(&path, "MatMul", &[&query, &key], vec![]);
        let scores = self.graph.node(&path, "Mul", &[&scores, &scale], vec![]);
        let scores = self.graph.node(&path, "Add", &[&scores, bias], vec![]);
        let shares = self.graph.node(&path, "Softmax", &[&scores], vec![Attribute::of_int("axis", -1)]);
        let mixed = self.graph.node(&path, "MatMul", &[&shares, &value], vec![]);
        let mixed = self.graph.node(&path, "Transpose", &[&mixed], vec![Attribute::of_ints("perm", &[0, 2, 1, 3])]);
        let mixed = self.graph.node(&path, "Reshape", &[&mixed, &joined], vec![]);
        self.linear(role(LayerPart::AttentionOutput), &mixed)
    }

    fn linear(&mut self, role: Role, rows: &str) -> String {
        let (path, product, bias) = self.product(role, rows);
        self.graph.node(&path, "Add", &[&product, &bias], vec![])
    }

    /// The module's path, the product with the weight and the bias that is still to be added.
    fn product(&mut self, role: Role, rows: &str) -> (String, String, String) {
        let path = self.path(role);
        let specs = layout(self.config);
        let spec = specs.iter().find(|spec| spec.role == role && !spec.bias).expect("the family's layout has the role");
        let weight = self.graph.weight(&format!("{}{TRANSPOSED}", spec.name), &[spec.shape[1], spec.shape[0]]);
        let bias = self.parameter(role, true);
        (path.clone(), self.graph.node(&path, "MatMul", &[rows, &weight], vec![]), bias)
    }

    fn layer_norm(&mut self, role: Role, rows: &str) -> String {
        let (path, scale, bias) = (self.path(role), self.parameter(role, false), self.parameter(role, true));
        let epsilon = Attribute::of_float("epsilon", self.config.layer_norm_eps as f32);
        self.graph.node(&path, "LayerNormalization", &[rows, &scale, &bias], vec![Attribute::of_int("axis", -1), epsilon])
    }

    fn activation(&mut self, path: &str, activation: Activation, x: &str) -> String {
        activated(&mut self.graph, path, activation, x)
    }
}

/// The activation of every number of `x`, by nodes of the module `path`.
pub(super) fn activated(graph: &mut GraphBuilder, path: &str, activation: Activation, x: &str) -> String {
    match activation {
        Activation::Relu => graph.node(path, "Relu", &[x], vec![]),
        Activation::Silu => {
            let gate = graph.node(path, "Sigmoid", &[x], vec![]);
            graph.node(path, "Mul", &[x, &gate], vec![])
        }
        Activation::Gelu => {
            let root = graph.scalar("/constants/root_2", std::f32::consts::SQRT_2);
            let scaled = graph.node(path, "Div", &[x, &root], vec![]);
            let error = graph.node(path, "Erf", &[&scaled], vec![]);
            half_of_one_more(graph, path, x, &error)
        }
        Activation::GeluNew => {
            let cubic = graph.scalar("/constants/cubic", 0.044_715);
            let root = graph.scalar("/constants/root_2_over_pi", (2.0 / std::f64::consts::PI).sqrt() as f32);
            let square = graph.node(path, "Mul", &[x, x], vec![]);
            let cube = graph.node(path, "Mul", &[&square, x], vec![]);
            let cube = graph.node(path, "Mul", &[&cube, &cubic], vec![]);
            let sum = graph.node(path, "Add", &[x, &cube], vec![]);
            let scaled = graph.node(path, "Mul", &[&sum, &root], vec![]);
            let tanh = graph.node(path, "Tanh", &[&scaled], vec![]);
            half_of_one_more(graph, path, x, &tanh)
        }
    }
}

/// x (1 + y) / 2.
fn half_of_one_more(graph: &mut GraphBuilder, path: &str, x: &str, y: &str) -> String {
    let (one, half) = (graph.scalar("/constants/one_f", 1.0), graph.scalar("/constants/half", 0.5));
    let sum = graph.node(path, "Add", &[y, &one], vec![]);
    let product = graph.node(path, "Mul", &[x, &sum], vec![]);
    graph.node(path, "Mul", &[&product, &half], vec![])
}

/// `/bert/encoder/layer.0/output` for `bert.encoder.layer.0.output`, as PyTorch's exporter writes it.
pub(super) fn module_path(name: &str) -> String {
    let mut path = String::new();
    for part in name.split('.') {
        path.push(if part.bytes().all(|byte| byte.is_ascii_digit()) { '.' } else { '/' });
        path.push_str(part);
    }
    path
}

pub(super) fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.to_owned())
}

#[cfg(test)]
mod tests;
