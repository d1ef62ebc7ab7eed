//! A decoder's computation as ONNX nodes, opset 17: logits of every position, of the tokens before it and its own.
//!
//! Positions count from 0 in every row, as `transformers` counts them where it is given none: pad on the right. A Llama's maps are stored transposed, as
//! MatMul takes them; a GPT-2's lie so already. The states enter a block through the sum that its name says, so that `precompute` finds them.

use super::graph::{TRANSPOSED, activated, module_path, parent};
use crate::student::decoder::{DecoderConfig, DecoderPart, DecoderRole};
use crate::student::{Family, ParameterSpec, Role, StudentConfig, layout};
use logitcache::onnx::GraphBuilder;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};

/// The graph's inputs, in order.
pub(super) const INPUTS: [&str; 2] = ["input_ids", "attention_mask"];

/// ONNX's number for a truth value.
const BOOL: i64 = 9;

/// The whole causal language model.
pub(super) fn build(config: &StudentConfig, decoder: &DecoderConfig) -> GraphBuilder {
    let mut graph = GraphBuilder::new("main_graph");
    for name in INPUTS {
        graph.input(name, INT64, vec![Dimension::open("batch_size"), Dimension::open("sequence_length")]);
    }
    let mut model = Model { config, decoder, specs: layout(config), graph };
    let positions = model.positions();
    let mut state = model.embeddings(&positions);
    let bias = model.attention_bias(&positions);
    let angles = model.angles(&positions);
    for layer in 0..config.num_hidden_layers {
        state = model.layer(layer, &state, &bias, angles.as_ref());
    }
    model.head(&state);
    let dimensions = vec![Dimension::open("batch_size"), Dimension::open("sequence_length"), Dimension::fixed(config.vocab_size)];
    model.graph.output("logits", FLOAT32, dimensions);
    model.graph
}

struct Model<'a> {
    config: &'a StudentConfig,
    decoder: &'a DecoderConfig,
    specs: Vec<ParameterSpec>,
    graph: GraphBuilder,
}

/// `[sequence, head width]`, those of both halves side by side.
struct Angles {
    cosines: String,
    sines: String,
}

impl Model<'_> {
    fn path(&self, role: DecoderRole) -> String {
        module_path(&role.name(self.config.family))
    }

    /// What stands before the layers' names.
    fn base(&self) -> &'static str {
        if self.config.family == Family::Gpt2 { "/transformer" } else { "/model" }
    }

    fn spec(&self, role: DecoderRole, bias: bool) -> Option<&ParameterSpec> {
        self.specs.iter().find(|spec| spec.role == Role::Decoder(role) && spec.bias == bias)
    }

    /// The weight or bias of a role as it is stored in the student; none where it has none.
    fn parameter(&mut self, role: DecoderRole, bias: bool) -> Option<String> {
        let (name, shape) = self.spec(role, bias).map(|spec| (spec.name.clone(), spec.shape.clone()))?;
        Some(self.graph.weight(&name, &shape))
    }

    fn weight(&mut self, role: DecoderRole) -> String {
        self.parameter(role, false).expect("the family's layout has the role")
    }

    /// `[sequence]`: 0, 1, 2, ...
    fn positions(&mut self) -> String {
        let path = self.base();
        let (zero, one) = (self.graph.integer("/constants/zero", 0), self.graph.integer("/constants/one", 1));
        let shape = self.graph.node(path, "Shape", &["input_ids"], vec![]);
        let length = self.graph.node(path, "Gather", &[&shape, &one], vec![Attribute::of_int("axis", 0)]);
        self.graph.node(path, "Range", &[&zero, &length, &one], vec![])
    }

    /// `[batch, sequence, hidden]` of the ids.
    fn embeddings(&mut self, positions: &str) -> String {
        let words = self.lookup(DecoderRole::Words, "input_ids");
        if self.decoder.rotary.is_some() {
            return words;
        }
        let places = self.lookup(DecoderRole::Positions, positions);
        self.graph.node(self.base(), "Add", &[&words, &places], vec![])
    }

    fn lookup(&mut self, role: DecoderRole, indices: &str) -> String {
        let (path, table) = (self.path(role), self.weight(role));
        self.graph.node(&path, "Gather", &[&table, indices], vec![Attribute::of_int("axis", 0)])
    }

    /// To be added to scores: 0 where a token sees another, and the least finite number where that comes later or is padding. `[batch, 1, sequence,
    /// sequence]`, with one more 1 where heads are grouped.
    fn attention_bias(&mut self, positions: &str) -> String {
        let path = self.base();
        let (zero, least) = (self.graph.scalar("/constants/zero_f", 0.0), self.graph.scalar("/constants/least", f32::MIN));
        let first = self.graph.integers("/constants/first", &[0]);
        let second = self.graph.integers("/constants/second", &[1]);
        let axes = self.graph.integers("/constants/axes", if self.is_grouped() { &[1, 2, 3] } else { &[1, 2] });
        let seen = self.graph.node(path, "Unsqueeze", &[positions, &first], vec![]);
        let seeing = self.graph.node(path, "Unsqueeze", &[positions, &second], vec![]);
        let later = self.graph.node(path, "Greater", &[&seen, &seeing], vec![]);
        let kept = self.graph.node(path, "Cast", &["attention_mask"], vec![Attribute::of_int("to", BOOL)]);
        let padding = self.graph.node(path, "Not", &[&kept], vec![]);
        let padding = self.graph.node(path, "Unsqueeze", &[&padding, &axes], vec![]);
        let hidden = self.graph.node(path, "Or", &[&later, &padding], vec![]);
        self.graph.node(path, "Where", &[&hidden, &least, &zero], vec![])
    }

    fn angles(&mut self, positions: &str) -> Option<Angles> {
        let frequencies = self.decoder.rotary?.frequencies(self.decoder.head_width);
        let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        let path = format!("{}/rotary_emb", self.base());
        let graph = &mut self.graph;
        let (frequencies, second) = (graph.floats("/constants/frequencies", &frequencies), graph.integers("/constants/second", &[1]));
        let places = graph.node(&path, "Cast", &[positions], vec![Attribute::of_int("to", i64::from(FLOAT32))]);
        let places = graph.node(&path, "Unsqueeze", &[&places, &second], vec![]);
        let angles = graph.node(&path, "Mul", &[&places, &frequencies], vec![]);
        let angles = graph.node(&path, "Concat", &[&angles, &angles], vec![Attribute::of_int("axis", -1)]);
        let cosines = graph.node(&path, "Cos", &[&angles], vec![]);
        Some(Angles { cosines, sines: graph.node(&path, "Sin", &[&angles], vec![]) })
    }

    fn layer(&mut self, layer: usize, state: &str, bias: &str, angles: Option<&Angles>) -> String {
        let role = |part| DecoderRole::Layer(layer, part);
        let path = parent(&self.path(role(DecoderPart::AttentionNorm)));
        let normalised = self.norm(role(DecoderPart::AttentionNorm), state);
        let attended = self.attention(layer, &normalised, bias, angles);
        let state = self.graph.node(&path, "Add", &[&attended, state], vec![]);
        let normalised = self.norm(role(DecoderPart::FeedForwardNorm), &state);
        let up = self.linear(role(DecoderPart::Up), &normalised);
        let mlp = parent(&self.path(role(DecoderPart::Up)));
        let (activation, function) = (self.config.activation, format!("{mlp}/act"));
        let between = match self.spec(role(DecoderPart::Gate), false) {
            None => activated(&mut self.graph, &function, activation, &up),
            Some(_) => {
                let gate = self.linear(role(DecoderPart::Gate), &normalised);
                let gate = activated(&mut self.graph, &function, activation, &gate);
                self.graph.node(&mlp, "Mul", &[&gate, &up], vec![])
            }
        };
        let down = self.linear(role(DecoderPart::Down), &between);
        self.graph.node(&path, "Add", &[&state, &down], vec![])
    }

    fn is_grouped(&self) -> bool {
        self.decoder.key_value_heads < self.config.num_attention_heads
    }

    /// Where query heads share keys they have an axis of their own behind that of the keys, which broadcasts over them.
    fn attention(&mut self, layer: usize, rows: &str, bias: &str, angles: Option<&Angles>) -> String {
        let role = |part| DecoderRole::Layer(layer, part);
        let path = parent(&self.path(role(DecoderPart::AttentionOutput)));
        let (heads, keys, width) = (self.config.num_attention_heads, self.decoder.key_value_heads, self.decoder.head_width);
        let parts = if self.spec(role(DecoderPart::QueryKeyValue), false).is_some() {
            let all = self.linear(role(DecoderPart::QueryKeyValue), rows);
            [0, 1, 2].map(|part| self.columns(&path, &all, part * heads * width, (part + 1) * heads * width))
        } else {
            [DecoderPart::Query, DecoderPart::Key, DecoderPart::Value].map(|part| self.linear(role(part), rows))
        };
        let shapes = [("queries", heads / keys), ("keys", 1), ("keys", 1)];
        let [query, key, value] = [0, 1, 2].map(|part| self.split(&path, &parts[part], shapes[part]));
        let (query, key) = match angles {
            Some(angles) => (self.turned(&path, &query, angles), self.turned(&path, &key, angles)),
            None => (query, key),
        };
        let last_exchanged: &[i64] = if self.is_grouped() { &[0, 1, 2, 4, 3] } else { &[0, 1, 3, 2] };
        let key = self.graph.node(&path, "Transpose", &[&key], vec![Attribute::of_ints("perm", last_exchanged)]);
        let scale = self.graph.scalar("/constants/scale", (1.0 / (width as f64).sqrt()) as f32);
        let scores = self.graph.node(&path, "MatMul", &[&query, &key], vec![]);
        let scores = self.graph.node(&path, "Mul", &[&scores, &scale], vec![]);
        let scores = self.graph.node(&path, "Add", &[&scores, bias], vec![]);
        let shares = self.graph.node(&path, "Softmax", &[&scores], vec![Attribute::of_int("axis", -1)]);
        let mixed = self.graph.node(&path, "MatMul", &[&shares, &value], vec![]);
        let back: &[i64] = if self.is_grouped() { &[0, 3, 1, 2, 4] } else { &[0, 2, 1, 3] };
        let mixed = self.graph.node(&path, "Transpose", &[&mixed], vec![Attribute::of_ints("perm", back)]);
        let joined = self.graph.integers("/constants/joined", &[0, 0, (heads * width) as i64]);
        let mixed = self.graph.node(&path, "Reshape", &[&mixed, &joined], vec![]);
        self.linear(role(DecoderPart::AttentionOutput), &mixed)
    }

    /// Rows as heads: `[batch, heads, sequence, width]`, or `[batch, key heads, heads that share one, sequence, width]`.
    fn split(&mut self, path: &str, rows: &str, (name, shared): (&str, usize)) -> String {
        let (keys, width) = (self.decoder.key_value_heads as i64, self.decoder.head_width as i64);
        let (shape, order): (&[i64], &[i64]) = match self.is_grouped() {
            true => (&[0, 0, keys, shared as i64, width], &[0, 2, 3, 1, 4]),
            false => (&[0, 0, keys, width], &[0, 2, 1, 3]),
        };
        let shape = self.graph.integers(&format!("/constants/{name}"), shape);
        let heads = self.graph.node(path, "Reshape", &[rows, &shape], vec![]);
        self.graph.node(path, "Transpose", &[&heads], vec![Attribute::of_ints("perm", order)])
    }

    /// Columns `first..end` of the last axis.
    fn columns(&mut self, path: &str, x: &str, first: usize, end: usize) -> String {
        let graph = &mut self.graph;
        let [first, end] = [first, end].map(|place| graph.integers(&format!("/constants/column_{place}"), &[place as i64]));
        let last = graph.integers("/constants/last", &[-1]);
        graph.node(path, "Slice", &[x, &first, &end, &last], vec![])
    }

    /// x cos + (the halves exchanged, the one that comes first negated) sin.
    fn turned(&mut self, path: &str, x: &str, angles: &Angles) -> String {
        let width = self.decoder.head_width;
        let (first, second) = (self.columns(path, x, 0, width / 2), self.columns(path, x, width / 2, width));
        let graph = &mut self.graph;
        let negated = graph.node(path, "Neg", &[&second], vec![]);
        let exchanged = graph.node(path, "Concat", &[&negated, &first], vec![Attribute::of_int("axis", -1)]);
        let along = graph.node(path, "Mul", &[x, &angles.cosines], vec![]);
        let across = graph.node(path, "Mul", &[&exchanged, &angles.sines], vec![]);
        graph.node(path, "Add", &[&along, &across], vec![])
    }

    fn head(&mut self, state: &str) {
        let normalised = self.norm(DecoderRole::FinalNorm, state);
        let path = self.path(DecoderRole::Head);
        let weight = match self.decoder.tied {
            true => {
                let words = self.weight(DecoderRole::Words);
                self.graph.node(&path, "Transpose", &[&words], vec![Attribute::of_ints("perm", &[1, 0])])
            }
            false => self.inputs_first(DecoderRole::Head),
        };
        self.graph.named_node(&path, "MatMul", &[&normalised, &weight], vec![], "logits");
    }

    /// A map's weight as MatMul takes it.
    fn inputs_first(&mut self, role: DecoderRole) -> String {
        let spec = self.spec(role, false).expect("the family's layout has the role").clone();
        match self.config.family == Family::Gpt2 && role != DecoderRole::Head {
            true => self.graph.weight(&spec.name, &spec.shape),
            false => self.graph.weight(&format!("{}{TRANSPOSED}", spec.name), &[spec.shape[1], spec.shape[0]]),
        }
    }

    fn linear(&mut self, role: DecoderRole, rows: &str) -> String {
        let (path, weight) = (self.path(role), self.inputs_first(role));
        let product = self.graph.node(&path, "MatMul", &[rows, &weight], vec![]);
        match self.parameter(role, true) {
            Some(bias) => self.graph.node(&path, "Add", &[&product, &bias], vec![]),
            None => product,
        }
    }

    fn norm(&mut self, role: DecoderRole, rows: &str) -> String {
        let (path, scale, bias) = (self.path(role), self.weight(role), self.parameter(role, true));
        let (epsilon, graph) = (self.config.layer_norm_eps as f32, &mut self.graph);
        if let Some(bias) = bias {
            let attributes = vec![Attribute::of_int("axis", -1), Attribute::of_float("epsilon", epsilon)];
            return graph.node(&path, "LayerNormalization", &[rows, &scale, &bias], attributes);
        }
        let (two, epsilon, one) =
            (graph.scalar("/constants/two_f", 2.0), graph.scalar("/constants/epsilon", epsilon), graph.scalar("/constants/one_f", 1.0));
        let square = graph.node(&path, "Pow", &[rows, &two], vec![]);
        let mean = graph.node(&path, "ReduceMean", &[&square], vec![Attribute::of_ints("axes", &[-1]), Attribute::of_int("keepdims", 1)]);
        let mean = graph.node(&path, "Add", &[&mean, &epsilon], vec![]);
        let root = graph.node(&path, "Sqrt", &[&mean], vec![]);
        let inverse = graph.node(&path, "Div", &[&one, &root], vec![]);
        let normalised = graph.node(&path, "Mul", &[rows, &inverse], vec![]);
        graph.node(&path, "Mul", &[&scale, &normalised], vec![])
    }
}
