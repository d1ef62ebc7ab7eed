//! Milliseconds and GFLOP/s of every fused operation and of whole training steps, forward and backward, beside the bare matrix products of
//! the same shapes in the same run: absolute figures drift with the machine, the ratio says what the rest costs.
//!
//! `cargo bench -p train --bench kernels [-- demo|small|stories] [repetitions]`

use candle_core::{DType, Device, Result, Tensor, Var};
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::Task;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use train::batcher::Batch;
use train::kernels::level::Level;
use train::kernels::matrix::{Matrix, Threads, multiply};
use train::kernels::*;
use train::loss::{Normalisers, Objective, StepObjective};
use train::optim::{AdamW, AdamWSettings, Moments};
use train::student::decoder::{DecoderConfig, RotaryConfig, RotaryScaling};
use train::student::{Family, Student, StudentConfig, at_random};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A student and the batch it is timed on.
struct Shape {
    name: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    between: usize,
    vocabulary: usize,
    sequences: usize,
    length: usize,
    /// Rows per sequence that carry targets, from row 1 on.
    asked: usize,
    k: usize,
    /// A Llama, not a DistilBERT.
    decoder: bool,
}

const DEMO: Shape = Shape {
    name: "demo",
    layers: 6,
    width: 256,
    heads: 4,
    between: 512,
    vocabulary: 591,
    sequences: 23,
    length: 89,
    asked: 87,
    k: 64,
    decoder: false,
};

const SHAPES: [Shape; 3] = [
    DEMO,
    Shape { name: "small", layers: 4, between: 1024, vocabulary: 30522, sequences: 16, length: 128, asked: 128, ..DEMO },
    Shape {
        name: "stories",
        layers: 3,
        width: 288,
        heads: 6,
        between: 768,
        vocabulary: 32000,
        sequences: 8,
        length: 256,
        asked: 255,
        k: 50,
        decoder: true,
    },
];

const DROPOUT: f64 = 0.1;
const TEMPERATURE: f64 = 2.0;

impl Shape {
    fn rows(&self) -> usize {
        self.sequences * self.length
    }

    fn asked_rows(&self) -> usize {
        self.sequences * self.asked
    }

    fn packing(&self) -> Arc<Packing> {
        let offsets: Vec<usize> = (0..=self.sequences).map(|i| i * self.length).collect();
        let ids: Vec<u64> = (0..self.sequences as u64).collect();
        Packing::new(&offsets, &ids, &vec![0; self.sequences]).expect("rising offsets")
    }

    /// (rows, in, out) of every linear map of a step.
    fn linear_maps(&self) -> Vec<(usize, usize, usize)> {
        let (rows, width) = (self.rows(), self.width);
        let between = if self.decoder { 2 * self.between } else { self.between };
        let block = [(rows, width, 3 * width), (rows, width, width), (rows, width, between), (rows, self.between, width)];
        let mut maps: Vec<_> = (0..self.layers).flat_map(|_| block).collect();
        if !self.decoder {
            maps.push((self.asked_rows(), width, width));
        }
        maps.push((self.asked_rows(), width, self.vocabulary));
        maps
    }

    /// Floating-point operations of the attention products, forward and backward with the scores computed again; half of them where a token
    /// does not see those after it, `causal`.
    fn attention_operations(&self, causal: bool) -> f64 {
        let seen = if causal { 0.5 } else { 1.0 };
        seen * 7.0 * 2.0 * (self.sequences * self.length * self.length * self.width) as f64
    }

    fn batch(&self) -> Batch {
        let mut stream = RandomStream::new(1, Purpose::Initialisation, &[1]);
        let (rows, asked) = (self.rows(), self.asked_rows());
        let first_asked = |i: usize| i * self.length + usize::from(self.asked < self.length);
        let top_ids = (0..asked).flat_map(|_| {
            let start = stream.below(self.vocabulary);
            (0..self.k).map(|i| ((start + 7 * i) % self.vocabulary) as u32).collect::<Vec<_>>()
        });
        let top_ids = top_ids.collect();
        let normaliser: f32 = (0..self.k).map(|i| (-0.1 * i as f32).exp()).sum::<f32>().ln() + 0.05;
        Batch {
            sequence_ids: (0..self.sequences as u64).collect(),
            passes: vec![0; self.sequences],
            offsets: (0..=self.sequences).map(|i| i * self.length).collect(),
            input_ids: (0..rows).map(|_| stream.below(self.vocabulary) as u32).collect(),
            token_type_ids: vec![],
            asked: (0..self.sequences).flat_map(|i| (0..self.asked).map(move |j| (first_asked(i) + j) as u32)).collect(),
            k: self.k,
            top_ids,
            log_probabilities: (0..asked * self.k).map(|i| -0.1 * (i % self.k) as f32 - normaliser).collect(),
            max_logit: vec![10.0; asked],
            labels: (0..asked).map(|i| if i % 7 == 0 || self.decoder { stream.below(self.vocabulary) as i32 } else { -100 }).collect(),
            hidden: vec![(0..rows * self.width).map(|_| stream.normal() as f32).collect()],
            ..Batch::default()
        }
    }

    fn objective(&self) -> StepObjective {
        let normalisers =
            Normalisers { asked: self.asked_rows(), labelled: self.asked_rows(), tokens: self.rows(), sequences: self.sequences };
        let objective = if self.decoder { "ce=1,gold=0.5".parse().expect("an objective") } else { Objective::default() };
        StepObjective::new(&objective, (0, 1), TEMPERATURE, normalisers)
    }

    fn student(&self) -> Student {
        let config = StudentConfig {
            vocab_size: self.vocabulary,
            hidden_size: self.width,
            embedding_size: self.width,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            intermediate_size: self.between,
            max_position_embeddings: self.length,
            dropout: DROPOUT,
            attention_dropout: DROPOUT,
            initializer_range: 0.02,
            pad_token_id: None,
            ..StudentConfig::default()
        };
        let config = if self.decoder { self.llama(config) } else { config };
        Student::new(config.clone(), DType::F32, &mut |spec| Ok(at_random(&config, 1, spec))).expect("a valid student")
    }
}

impl Shape {
    fn llama(&self, shape: StudentConfig) -> StudentConfig {
        let decoder = DecoderConfig {
            key_value_heads: self.heads,
            head_width: self.width / self.heads,
            rotary: Some(RotaryConfig { theta: 1e4, scaling: RotaryScaling::Default }),
            tied: true,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: None,
            eos_token_ids: vec![],
        };
        let (family, task, activation) = (Family::Llama, Task::CausalLm, Activation::Silu);
        StudentConfig { family, task, activation, decoder: Some(decoder), dropout: 0.0, attention_dropout: 0.0, ..shape }
    }
}

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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Prints the median milliseconds of forward and backward pass; `operations` are those of both.
fn time(name: &str, repetitions: usize, operations: f64, forward: impl Fn() -> Result<Tensor>) -> Result<()> {
    let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
    for repetition in 0..=repetitions {
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
    let rate = if operations > 0.0 { format!("{:8.1}", operations / (forward + backward) / 1e6) } else { String::new() };
    println!("  {name:28} {forward:8.2} {backward:8.2} {rate}");
    Ok(())
}

/// The three products of each linear map of a step, nothing else. Gives milliseconds.
fn bare_products(shape: &Shape, repetitions: usize) -> f64 {
    let maps = shape.linear_maps();
    let most = |size: fn(&(usize, usize, usize)) -> usize| maps.iter().map(size).max().unwrap_or(0);
    let x = vec![0.5f32; most(|(rows, inputs, _)| rows * inputs)];
    let weight = vec![0.5f32; most(|(_, inputs, outputs)| inputs * outputs)];
    let chunk_of = |rows: usize, outputs: usize| rows.min((1 << 24) / outputs).min(rows);
    let mut y = vec![0.5f32; most(|(rows, _, outputs)| *rows.min(&((1 << 24) / outputs)) * outputs)];
    let (mut dx, mut dw) = (x.clone(), weight.clone());
    let mut times = Vec::new();
    for _ in 0..=repetitions {
        let start = Instant::now();
        for &(all_rows, inputs, outputs) in &maps {
            let mut done = 0;
            while done < all_rows {
                let rows = chunk_of(all_rows - done, outputs);
                let (x, w) = (Matrix::new(&x, rows, inputs), Matrix::new(&weight, outputs, inputs));
                multiply(&mut y, outputs, false, x, w.transposed(), Threads::All);
                let dy = Matrix::new(&y, rows, outputs);
                multiply(&mut dx, inputs, false, dy, w, Threads::All);
                multiply(&mut dw, inputs, true, dy.transposed(), x, Threads::All);
                done += rows;
            }
            y.fill(0.5);
        }
        times.push(milliseconds(start));
    }
    median(times)
}

fn kernels(shape: &Shape, repetitions: usize) -> Result<()> {
    let (rows, width, packing) = (shape.rows(), shape.width, shape.packing());
    let plan = DropoutPlan { seed: 0, step: 1, hidden: DROPOUT, attention: DROPOUT };
    let x = Var::from_tensor(&random((rows, width), 1.0))?;
    let residual = Var::from_tensor(&random((rows, width), 1.0))?;
    let wide = Var::from_tensor(&random((rows, shape.between), 1.0))?;
    let asked = Var::from_tensor(&random((shape.asked_rows(), width), 1.0))?;
    let batch = shape.batch();
    let products = |rows: usize, inputs: usize, outputs: usize| 6.0 * (rows * inputs * outputs) as f64;

    let (square, inner, outer) = (affine(width, width), affine(shape.between, width), affine(width, shape.between));
    time("linear", repetitions, products(rows, width, width), || linear(&x, &square))?;
    time("linear, GELU", repetitions, products(rows, width, width), || linear_activated(&x, &square, Activation::Gelu))?;
    time("feed-forward", repetitions, 2.0 * products(rows, width, shape.between), || feed_forward(&x, &inner, &outer, Activation::Gelu))?;
    for activation in Activation::ALL {
        time(activation.name(), repetitions, 0.0, || activate(&wide, activation))?;
    }
    let four = || AttentionParameters { query: square.clone(), key: square.clone(), value: square.clone(), output: square.clone() };
    let attention_operations = |causal| 4.0 * products(rows, width, width) + shape.attention_operations(causal);
    for (name, plan) in [("self-attention", &plan), ("self-attention, no dropout", &DropoutPlan::off())] {
        time(name, repetitions, attention_operations(false), || self_attention(&x, &four(), shape.heads, &packing, plan, 0))?;
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
    time("causal attention, turned", repetitions, attention_operations(true), || {
        causal_attention(&x, &causal, &packing, &DropoutPlan::off(), 0)
    })?;
    let gated = GatedParameters { gate: Some(bare(&inner)), up: bare(&inner), down: bare(&outer), activation: Activation::Silu };
    time("feed-forward, gated", repetitions, 3.0 * products(rows, width, shape.between), || gated_feed_forward(&x, &gated))?;
    let layer = norm(width);
    time("RMSNorm", repetitions, 0.0, || rms_norm(&x, &layer.weight, 1e-5))?;
    time("LayerNorm", repetitions, 0.0, || layer_norm(&x, &layer, 1e-12))?;
    time("LayerNorm of a sum", repetitions, 0.0, || add_layer_norm(&x, &residual, &layer, 1e-12))?;
    time("dropout", repetitions, 0.0, || dropout(&x, &packing, &plan, DropoutSite::Embeddings))?;
    let (word, position) = (affine(shape.vocabulary, width), affine(shape.length, width));
    let positions: Vec<u32> = (0..shape.sequences).flat_map(|_| 0..shape.length as u32).collect();
    time("embeddings", repetitions, 0.0, || {
        let lookups = [(&word, batch.input_ids.clone()), (&position, positions.clone())];
        embeddings(lookups.map(|(table, indices)| Lookup { table: table.weight.clone(), indices }).into())
    })?;
    time("rows asked", repetitions, 0.0, || gather_rows(&x, &batch.asked))?;
    let targets = HeadTargets {
        k: batch.k,
        top_ids: &batch.top_ids,
        log_probabilities: &batch.log_probabilities,
        max_logit: &batch.max_logit,
        labels: &batch.labels,
    };
    let objective = shape.objective();
    let head = || Ok(head_loss(&asked, &word, &targets, &objective)?.0);
    time("head and losses", repetitions, products(shape.asked_rows(), width, shape.vocabulary), head)?;
    time("cosine", repetitions, 0.0, || Ok(cosine_loss(&x, &batch.hidden[0], 1.0, rows)?.0))
}

fn step(shape: &Shape, repetitions: usize) -> Result<()> {
    let (student, batch, objective) = (shape.student(), shape.batch(), shape.objective());
    let parameters = student.parameters();
    let mut optimiser = AdamW::new(AdamWSettings::default(), Moments::zeros(parameters), parameters).expect("moments of these parameters");
    let (mut forwards, mut backwards, mut updates, mut steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..=repetitions {
        let start = Instant::now();
        let plan = student.dropout_plan(0, repetition as u64);
        let (loss, _) = student.loss(&batch, &objective, &plan)?;
        let forward = milliseconds(start);
        loss.backward()?;
        drop(loss);
        let backward = milliseconds(start) - forward;
        optimiser.update(parameters, 5e-4, 1.0)?;
        if repetition > 0 {
            let all = milliseconds(start);
            forwards.push(forward);
            backwards.push(backward);
            updates.push(all - forward - backward);
            steps.push(all);
        }
    }
    let operations: f64 = shape.linear_maps().iter().map(|(rows, inputs, outputs)| 6.0 * (rows * inputs * outputs) as f64).sum();
    let all_operations = operations + shape.layers as f64 * shape.attention_operations(shape.decoder);
    let (bare, step) = (bare_products(shape, repetitions), median(steps.clone()));
    let fastest = steps.into_iter().fold(f64::INFINITY, f64::min);
    println!("  bare products of the linear maps {bare:.1} ms, {:.1} GFLOP/s", operations / bare / 1e6);
    println!(
        "  step {step:.1} ms (fastest {fastest:.1}): forward {:.1}, backward {:.1}, AdamW {:.1}; {:.1} GFLOP/s, {:.2} times the bare products",
        median(forwards),
        median(backwards),
        median(updates),
        all_operations / step / 1e6,
        step / bare
    );
    Ok(())
}

fn main() -> Result<()> {
    // candle adds gradients on a pool of its own, whose workers spin; beside rayon's threads on the same cores that costs milliseconds for
    // every activation, and its adding is bound by memory anyway. The program does the same.
    // SAFETY: nothing else runs yet, and candle reads the variable on first use.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let repetitions = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(7);
    let wanted =
        |shape: &&Shape| !SHAPES.iter().any(|s| arguments.iter().any(|a| a == s.name)) || arguments.iter().any(|a| a == shape.name);
    println!("{} instructions, {} threads", Level::best().name(), rayon::current_num_threads());
    for shape in SHAPES.iter().filter(wanted) {
        let Shape { name, layers, width, between, vocabulary, sequences, length, .. } = shape;
        println!("{name}: {layers} x {width}, {between} between, vocabulary {vocabulary}, {sequences} x {length} tokens");
        println!("  {:28} {:>8} {:>8} {:>8}", "operation", "forward", "backward", "GFLOP/s");
        kernels(shape, repetitions)?;
        step(shape, repetitions)?;
    }
    Ok(())
}
