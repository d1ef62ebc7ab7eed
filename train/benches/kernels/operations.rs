//! Milliseconds of every fused operation alone.

use crate::shape::{DROPOUT, Shape};
use crate::step::{median, milliseconds};
use candle_core::{DType, Device, Result, Tensor, Var};
use logitcache::seed::{Purpose, RandomStream};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use train::kernels::*;

fn random(shape: (usize, usize), scale: f64) -> Tensor {
    let mut stream = RandomStream::new(1, Purpose::Initialisation, &[shape.0 as u64]);
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| (stream.normal() * scale) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has")
}

fn affine(outputs: usize, inputs: usize) -> Affine {
    let weight = Parameter::new("weight", &random((outputs, inputs), 0.05)).expect("f32 on the CPU");
    let bias = Parameter::new("bias", &Tensor::zeros(outputs, DType::F32, &Device::Cpu).expect("zeros")).expect("f32 on the CPU");
    Affine { weight, bias }
}

fn norm(width: usize) -> Affine {
    let parameter =
        |name: &str| Parameter::new(name, &Tensor::ones(width, DType::F32, &Device::Cpu).expect("ones")).expect("f32 on the CPU");
    Affine { weight: parameter("weight"), bias: parameter("bias") }
}
/// What an operation takes of a step.
pub(crate) struct Phase {
    pub(crate) name: String,
    /// Both passes, as often as a step has them.
    pub(crate) milliseconds: f64,
}

/// Times operations and collects those that a step has.
struct Clock {
    repetitions: usize,
    /// GFLOP/s of a large product.
    peak: f64,
    phases: Vec<Phase>,
}

impl Clock {
    /// Prints the median milliseconds of forward and backward pass of an operation that a step has `times`; `operations` are those of both.
    fn time(&mut self, name: &str, times: usize, operations: f64, forward: impl Fn() -> Result<Tensor>) -> Result<()> {
        let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
        for repetition in 0..=self.repetitions {
            let start = Instant::now();
            let y = forward()?;
            let forward = milliseconds(start);
            let start = Instant::now();
            black_box(y.backward()?);
            if repetition > 0 {
                forwards.push(forward);
                backwards.push(milliseconds(start));
            }
        }
        let (forward, backward) = (median(forwards), median(backwards));
        let rate = operations / (forward + backward) / 1e6;
        let rate = if operations > 0.0 { format!("{rate:8.1} {:8.0}", 100.0 * rate / self.peak) } else { String::new() };
        println!("  {name:28} {times:>3} {forward:8.2} {backward:8.2} {rate}");
        if times > 0 {
            self.phases.push(Phase { name: name.to_owned(), milliseconds: times as f64 * (forward + backward) });
        }
        Ok(())
    }
}

/// Every operation of a step, forward and backward.
pub(crate) fn operations(shape: &Shape, peak: f64, repetitions: usize) -> Result<Vec<Phase>> {
    println!("  {:28} {:>3} {:>8} {:>8} {:>8} {:>8}", "operation", "", "forward", "backward", "GFLOP/s", "% peak");
    let mut clock = Clock { repetitions, peak, phases: Vec::new() };
    let (encoder, layers) = (usize::from(!shape.decoder), shape.layers);
    let (rows, width, packing) = (shape.rows(), shape.width, shape.packing());
    let plan = DropoutPlan { seed: 0, step: 1, hidden: DROPOUT, attention: DROPOUT };
    let x = Var::from_tensor(&random((rows, width), 1.0))?;
    let residual = Var::from_tensor(&random((rows, width), 1.0))?;
    let wide = Var::from_tensor(&random((rows, shape.between), 1.0))?;
    let asked = Var::from_tensor(&random((shape.asked_rows(), width), 1.0))?;
    let batch = shape.batch();
    let products = |rows: usize, inputs: usize, outputs: usize| 6.0 * (rows * inputs * outputs) as f64;

    let (square, inner, outer) = (affine(width, width), affine(shape.between, width), affine(width, shape.between));
    clock.time("linear", 0, products(rows, width, width), || linear(&x, &square))?;
    clock.time("linear, GELU", encoder, products(shape.asked_rows(), width, width), || {
        linear_activated(&asked, &square, Activation::Gelu)
    })?;
    clock.time("feed-forward", encoder * layers, 2.0 * products(rows, width, shape.between), || {
        feed_forward(&x, &inner, &outer, Activation::Gelu)
    })?;
    for activation in Activation::ALL {
        clock.time(activation.name(), 0, 0.0, || activate(&wide, activation))?;
    }
    let four = || AttentionParameters { query: square.clone(), key: square.clone(), value: square.clone(), output: square.clone() };
    let attention_operations = |causal| 4.0 * products(rows, width, width) + shape.attention_operations(causal);
    for (name, times, plan) in [("self-attention", encoder * layers, &plan), ("self-attention, no dropout", 0, &DropoutPlan::off())] {
        clock.time(name, times, attention_operations(false), || self_attention(&x, &four(), shape.heads, &packing, plan, 0))?;
    }
    let bare = |affine: &Affine| Projection { weight: affine.weight.clone(), bias: None, inputs_first: false };
    let causal = CausalParameters {
        inputs: vec![bare(&square), bare(&square), bare(&square)],
        output: bare(&square),
        heads: shape.heads,
        key_value_heads: shape.heads,
        head_width: width / shape.heads,
        rotary: Some(Arc::new(Rotary::new(Rotary::frequencies(width / shape.heads, 1e4), shape.length))),
    };
    clock.time("causal attention, turned", (1 - encoder) * layers, attention_operations(true), || {
        causal_attention(&x, &causal, &packing, &DropoutPlan::off(), 0)
    })?;
    let gated = GatedParameters { gate: Some(bare(&inner)), up: bare(&inner), down: bare(&outer), activation: Activation::Silu };
    clock.time("feed-forward, gated", (1 - encoder) * layers, 3.0 * products(rows, width, shape.between), || {
        gated_feed_forward(&x, &gated)
    })?;
    let layer = norm(width);
    clock.time("RMSNorm", (1 - encoder) * (2 * layers + 1), 0.0, || rms_norm(&x, &layer.weight, 1e-5))?;
    clock.time("LayerNorm", 2 * encoder, 0.0, || layer_norm(&x, &layer, 1e-12))?;
    clock.time("LayerNorm of a sum", 2 * encoder * layers, 0.0, || add_layer_norm(&x, &residual, &layer, 1e-12))?;
    clock.time("dropout", encoder * (layers + 1), 0.0, || dropout(&x, &packing, &plan, DropoutSite::Embeddings))?;
    let (word, position) = (affine(shape.vocabulary, width), affine(shape.length, width));
    let positions: Vec<u32> = (0..shape.sequences).flat_map(|_| 0..shape.length as u32).collect();
    clock.time("embeddings", 1, 0.0, || {
        let lookups = [(&word, batch.input_ids.clone()), (&position, positions.clone())];
        embeddings(lookups.map(|(table, indices)| Lookup { table: table.weight.clone(), indices }).into())
    })?;
    clock.time("rows asked", 1, 0.0, || gather_rows(&x, &batch.asked))?;
    let targets = HeadTargets {
        k: batch.k,
        top_ids: &batch.top_ids,
        log_probabilities: &batch.log_probabilities,
        max_logit: &batch.max_logit,
        labels: &batch.labels,
    };
    let objective = shape.objective();
    let head = || Ok(head_loss(&asked, &word, &targets, &objective)?.0);
    clock.time("head and losses", 1, products(shape.asked_rows(), width, shape.vocabulary), head)?;
    clock.time("cosine", 1, 0.0, || Ok(cosine_loss(&x, &batch.hidden[0], 1.0, rows)?.0))?;
    Ok(clock.phases)
}
