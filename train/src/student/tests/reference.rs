//! The four families as their papers and `transformers` describe them, one sequence at a time, in loops.

use super::*;
use logitcache::target::{Pooling, Task};

type Rows = Vec<Vec<f64>>;

struct Values<'a>(&'a Student);

impl Values<'_> {
    fn get(&self, role: Role, kind: &str) -> Vec<f64> {
        let specs = layout(self.0.config());
        let spec = specs.iter().find(|spec| spec.role == role && spec.bias == (kind == "bias"));
        let parameter = &self.0.parameters()[spec.unwrap_or_else(|| panic!("no {role:?}")).number];
        parameter.with_value(|value: &[f32]| value.iter().map(|value| f64::from(*value)).collect()).unwrap()
    }

    fn row(&self, role: Role, row: u32) -> Vec<f64> {
        let width = self.0.config().embedding_size;
        self.get(role, "weight")[row as usize * width..][..width].to_vec()
    }

    fn linear(&self, role: Role, x: &Rows) -> Rows {
        times(x, &self.get(role, "weight"), &self.get(role, "bias"))
    }

    fn layer_norm(&self, role: Role, x: &Rows) -> Rows {
        let (weight, bias, epsilon) = (self.get(role, "weight"), self.get(role, "bias"), self.0.config().layer_norm_eps);
        let row = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            (0..x.len()).map(|j| (x[j] - mean) / (variance + epsilon).sqrt() * weight[j] + bias[j]).collect()
        };
        x.iter().map(row).collect()
    }
}

fn times(x: &Rows, weight: &[f64], bias: &[f64]) -> Rows {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.iter().map(|x| bias.iter().zip(weight.chunks_exact(x.len())).map(|(b, w)| dot(x, w) + b).collect()).collect()
}

fn plus(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn applied(activation: Activation, mut x: Rows) -> Rows {
    let curve = |x: f64| match activation {
        Activation::Gelu => gelu(x),
        Activation::GeluNew => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
    };
    x.iter_mut().flatten().for_each(|x| *x = curve(*x));
    x
}

/// x times the integral of the normal density up to x, by Simpson's rule from -12.
fn gelu(x: f64) -> f64 {
    let intervals = 4000;
    let width = (x + 12.0) / f64::from(intervals);
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let weight = |i: i32| if i == 0 || i == intervals { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
    x * (0..=intervals).map(|i| weight(i) * density(-12.0 + width * f64::from(i))).sum::<f64>() * width / 3.0
}

fn attention(values: &Values<'_>, layer: usize, x: &Rows, heads: usize) -> Rows {
    let project = |part| values.linear(Role::Layer(layer, part), x);
    let (q, k, v) = (project(LayerPart::Query), project(LayerPart::Key), project(LayerPart::Value));
    let width = x[0].len() / heads;
    let mut mixed = vec![vec![0.0; x[0].len()]; x.len()];
    for head in 0..heads {
        let columns = head * width..(head + 1) * width;
        for i in 0..x.len() {
            let dot = |j: usize| columns.clone().map(|c| q[i][c] * k[j][c]).sum::<f64>() / (width as f64).sqrt();
            let weights: Vec<f64> = (0..x.len()).map(|j| dot(j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for c in columns.clone() {
                mixed[i][c] = (0..x.len()).map(|j| weights[j] / sum * v[j][c]).sum();
            }
        }
    }
    values.linear(Role::Layer(layer, LayerPart::AttentionOutput), &mixed)
}

/// What stands before the first layer.
fn embedded(values: &Values<'_>, ids: &[u32], types: &[u32]) -> Rows {
    let config = values.0.config();
    let mut place = config.family.first_position(config.pad_token_id) as u32;
    let mut rows = Rows::new();
    for (i, id) in ids.iter().enumerate() {
        // A RoBERTa's padding token takes its own place and is not counted.
        let position = match (config.family, config.pad_token_id) {
            (Family::Roberta, Some(pad)) if pad == *id => pad,
            _ => {
                place += 1;
                place - 1
            }
        };
        let mut parts = vec![values.row(Role::WordEmbeddings, *id), values.row(Role::PositionEmbeddings, position)];
        if config.family.has_token_types() {
            parts.push(values.row(Role::TokenTypeEmbeddings, types[i]));
        }
        rows.push((0..config.embedding_size).map(|j| parts.iter().map(|part| part[j]).sum()).collect());
    }
    let normalised = values.layer_norm(Role::EmbeddingNorm, &rows);
    if config.family == Family::Albert { values.linear(Role::EmbeddingMapping, &normalised) } else { normalised }
}

/// After the first `layers` layers.
fn hidden(values: &Values<'_>, ids: &[u32], types: &[u32], layers: usize) -> Rows {
    let config = values.0.config();
    let mut x = embedded(values, ids, types);
    for layer in 0..layers {
        let layer = if config.family == Family::Albert { 0 } else { layer };
        let part = |part| Role::Layer(layer, part);
        let attended = attention(values, layer, &x, config.num_attention_heads);
        x = values.layer_norm(part(LayerPart::AttentionNorm), &plus(&x, &attended));
        let wide = applied(config.activation, values.linear(part(LayerPart::Widen), &x));
        x = values.layer_norm(part(LayerPart::OutputNorm), &plus(&x, &values.linear(part(LayerPart::Narrow), &wide)));
    }
    x
}

/// Every row after the first `layers` layers.
pub(super) fn states(student: &Student, batch: &Batch, layers: usize) -> Rows {
    let values = Values(student);
    let sequence = |pair: &[usize]| {
        let types = batch.token_type_ids.get(pair[0]..pair[1]).unwrap_or_default();
        hidden(&values, &batch.input_ids[pair[0]..pair[1]], types, layers)
    };
    batch.offsets.windows(2).flat_map(sequence).collect()
}

pub(super) fn logits(student: &Student, batch: &Batch) -> Rows {
    let values = Values(student);
    let rows = states(student, batch, student.config().num_hidden_layers);
    let asked: Rows = batch.asked.iter().map(|row| rows[*row as usize].clone()).collect();
    let activation = if student.config().family == Family::Roberta { Activation::Gelu } else { student.config().activation };
    let transformed = applied(activation, values.linear(Role::HeadDense, &asked));
    let transformed = values.layer_norm(Role::HeadNorm, &transformed);
    times(&transformed, &values.get(Role::WordEmbeddings, "weight"), &values.get(Role::DecoderBias, "bias"))
}

/// A classifier's rows, the asked ones of each sequence, as `transformers` computes them.
pub(super) fn class_logits(student: &Student, batch: &Batch) -> Rows {
    let values = Values(student);
    let config = student.config();
    let rows = states(student, batch, config.num_hidden_layers);
    let asked: Rows = batch.asked.iter().map(|row| rows[*row as usize].clone()).collect();
    if config.task == Task::TokenClassification {
        return values.linear(Role::TokenClassifier, &asked);
    }
    let function = |x: f64| if config.family == Family::DistilBert { x.max(0.0) } else { x.tanh() };
    let pooled = values.linear(Role::Pooler, &asked).into_iter().map(|row| row.into_iter().map(function).collect()).collect();
    values.linear(Role::SequenceClassifier, &pooled)
}

/// A sentence encoder's vectors.
pub(super) fn vectors(student: &Student, batch: &Batch) -> Rows {
    let config = student.config();
    let rows = states(student, batch, config.num_hidden_layers);
    let pooled = |range: &[usize]| -> Vec<f64> {
        let rows = &rows[range[0]..range[1]];
        let column = |j: usize| rows.iter().map(move |row| row[j]);
        let pool = |j: usize| match config.pooling {
            Pooling::Mean => column(j).sum::<f64>() / rows.len() as f64,
            Pooling::Cls => rows[0][j],
            Pooling::Max => column(j).fold(f64::NEG_INFINITY, f64::max),
        };
        (0..config.hidden_size).map(pool).collect()
    };
    let mut vectors: Rows = batch.offsets.windows(2).map(pooled).collect();
    if config.embedding_output > 0 {
        vectors = Values(student).linear(Role::Projection, &vectors);
    }
    if config.normalized {
        vectors.iter_mut().for_each(|row| {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        });
    }
    vectors
}
