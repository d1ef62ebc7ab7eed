//! The nodes after the last hidden state, by task.

use super::{Model, parent};
use crate::kernels::Activation;
use crate::student::{Family, Role};
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};
use logitcache::target::{Pooling, Task};

/// The least length that a vector is divided by, as PyTorch's `normalize` has it.
const LEAST_LENGTH: f32 = 1e-12;

impl Model<'_> {
    /// What the task makes of `hidden` `[batch, sequence, hidden]`, and the graph's outputs.
    pub(super) fn head(&mut self, hidden: &str) {
        let (batch, length) = (|| Dimension::open("batch_size"), || Dimension::open("sequence_length"));
        let width = Dimension::fixed(self.config.output_size());
        let dimensions = match self.config.task {
            Task::MaskedLm | Task::CausalLm => {
                self.masked_lm(hidden);
                vec![batch(), length(), width]
            }
            Task::TokenClassification => {
                self.linear_as(Role::TokenClassifier, hidden, "logits");
                vec![batch(), length(), width]
            }
            Task::SequenceClassification => {
                self.sequence_classifier(hidden);
                vec![batch(), width]
            }
            Task::SentenceEmbedding => {
                self.graph.named_node("/last", "Identity", &[hidden], vec![], "last_hidden_state");
                let state = vec![batch(), length(), Dimension::fixed(self.config.hidden_size)];
                self.graph.output("last_hidden_state", FLOAT32, state);
                self.sentence_vector(hidden);
                self.graph.output("sentence_embedding", FLOAT32, vec![batch(), width]);
                return;
            }
        };
        self.graph.output("logits", FLOAT32, dimensions);
    }

    fn masked_lm(&mut self, hidden: &str) {
        let rows = self.linear(Role::HeadDense, hidden);
        let path = parent(&self.path(Role::HeadNorm));
        let active = self.activation(&format!("{path}/activation"), self.config.head_activation(), &rows);
        let normalised = self.layer_norm(Role::HeadNorm, &active);
        let path = format!("{}/decoder", self.path(Role::DecoderBias));
        let (words, bias) = (self.parameter(Role::WordEmbeddings, false), self.parameter(Role::DecoderBias, true));
        let words = self.graph.node(&path, "Transpose", &[&words], vec![Attribute::of_ints("perm", &[1, 0])]);
        let product = self.graph.node(&path, "MatMul", &[&normalised, &words], vec![]);
        self.graph.named_node(&path, "Add", &[&product, &bias], vec![], "logits");
    }

    /// `[batch, hidden]`: the state of each first token.
    fn first_states(&mut self, path: &str, hidden: &str) -> String {
        let zero = self.graph.integer("/constants/zero", 0);
        self.graph.node(path, "Gather", &[hidden, &zero], vec![Attribute::of_int("axis", 1)])
    }

    fn sequence_classifier(&mut self, hidden: &str) {
        let path = parent(&self.path(Role::Pooler));
        let first = self.first_states(&path, hidden);
        let rows = self.linear(Role::Pooler, &first);
        let path = format!("{}/activation", self.path(Role::Pooler));
        let active = match self.config.family {
            Family::DistilBert => self.activation(&path, Activation::Relu, &rows),
            _ => self.graph.node(&path, "Tanh", &[&rows], vec![]),
        };
        self.linear_as(Role::SequenceClassifier, &active, "logits");
    }

    /// [`linear`](Self::linear) whose result has a name of its own.
    fn linear_as(&mut self, role: Role, rows: &str, output: &str) {
        let (path, product, bias) = self.product(role, rows);
        self.graph.named_node(&path, "Add", &[&product, &bias], vec![], output);
    }

    fn sentence_vector(&mut self, hidden: &str) {
        let path = "/pooling";
        let (first, second) = (self.graph.integers("/constants/first_axis", &[1]), self.graph.integers("/constants/second_axis", &[2]));
        let mut vector = match self.config.pooling {
            Pooling::Cls => self.first_states(path, hidden),
            Pooling::Mean => {
                let mask = self.graph.node(path, "Cast", &["attention_mask"], vec![Attribute::of_int("to", i64::from(FLOAT32))]);
                let kept = self.graph.node(path, "Unsqueeze", &[&mask, &second], vec![]);
                let kept = self.graph.node(path, "Mul", &[hidden, &kept], vec![]);
                let dropped = Attribute::of_int("keepdims", 0);
                let sum = self.graph.node(path, "ReduceSum", &[&kept, &first], vec![dropped]);
                let count = self.graph.node(path, "ReduceSum", &[&mask, &first], vec![Attribute::of_int("keepdims", 1)]);
                let least = self.graph.scalar("/constants/least_count", 1e-9);
                let count = self.graph.node(path, "Max", &[&count, &least], vec![]);
                self.graph.node(path, "Div", &[&sum, &count], vec![])
            }
            Pooling::Max => {
                let (zero, least) = (self.graph.integer("/constants/zero", 0), self.graph.scalar("/constants/least", f32::MIN));
                let mask = self.graph.node(path, "Cast", &["attention_mask"], vec![Attribute::of_int("to", i64::from(INT64))]);
                let missing = self.graph.node(path, "Equal", &[&mask, &zero], vec![]);
                let missing = self.graph.node(path, "Unsqueeze", &[&missing, &second], vec![]);
                let kept = self.graph.node(path, "Where", &[&missing, &least, hidden], vec![]);
                let attributes = vec![Attribute::of_ints("axes", &[1]), Attribute::of_int("keepdims", 0)];
                self.graph.node(path, "ReduceMax", &[&kept], attributes)
            }
        };
        if self.config.embedding_output > 0 {
            vector = self.linear(Role::Projection, &vector);
        }
        let path = "/vector";
        if self.config.normalized {
            let attributes = vec![Attribute::of_ints("axes", &[1]), Attribute::of_int("keepdims", 1)];
            let length = self.graph.node(path, "ReduceL2", &[&vector], attributes);
            let least = self.graph.scalar("/constants/least_length", LEAST_LENGTH);
            let length = self.graph.node(path, "Max", &[&length, &least], vec![]);
            self.graph.named_node(path, "Div", &[&vector, &length], vec![], "sentence_embedding");
        } else {
            self.graph.named_node(path, "Identity", &[&vector], vec![], "sentence_embedding");
        }
    }
}
