//! The students that are timed, and their batches.

use candle_core::DType;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::Task;
use std::sync::Arc;
use train::batcher::Batch;
use train::kernels::Activation;
use train::kernels::Packing;
use train::loss::{Normalisers, Objective, StepObjective};
use train::student::decoder::{DecoderConfig, RotaryConfig, RotaryScaling};
use train::student::{Family, Student, StudentConfig, at_random};

/// A student and the batch it is timed on.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) between: usize,
    pub(crate) vocabulary: usize,
    pub(crate) sequences: usize,
    pub(crate) length: usize,
    /// Rows per sequence that carry targets, from row 1 on.
    pub(crate) asked: usize,
    pub(crate) k: usize,
    /// A Llama, not a DistilBERT.
    pub(crate) decoder: bool,
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

const SMALL: Shape = Shape { name: "small", layers: 4, between: 1024, vocabulary: 30522, sequences: 16, length: 128, asked: 128, ..DEMO };

/// What `--bench kernels` knows by name.
pub(crate) const SHAPES: [Shape; 5] = [
    DEMO,
    SMALL,
    Shape { name: "base", layers: 6, width: 768, heads: 12, between: 3072, sequences: 4, ..SMALL },
    Shape { name: "long", sequences: 4, length: 512, asked: 512, ..SMALL },
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

pub(crate) const DROPOUT: f64 = 0.1;
const TEMPERATURE: f64 = 2.0;

impl Shape {
    /// The same with this share of the rows asked.
    pub(crate) fn with_share(self, share: f64) -> Self {
        Self { asked: ((self.length as f64 * share).round() as usize).clamp(1, self.length), ..self }
    }

    pub(crate) fn rows(&self) -> usize {
        self.sequences * self.length
    }

    pub(crate) fn asked_rows(&self) -> usize {
        self.sequences * self.asked
    }

    pub(crate) fn packing(&self) -> Arc<Packing> {
        let offsets: Vec<usize> = (0..=self.sequences).map(|i| i * self.length).collect();
        let ids: Vec<u64> = (0..self.sequences as u64).collect();
        Packing::new(&offsets, &ids, &vec![0; self.sequences]).expect("rising offsets")
    }

    /// (rows, in, out) of every linear map of a step.
    pub(crate) fn linear_maps(&self) -> Vec<(usize, usize, usize)> {
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
    pub(crate) fn attention_operations(&self, causal: bool) -> f64 {
        let seen = if causal { 0.5 } else { 1.0 };
        seen * 7.0 * 2.0 * (self.sequences * self.length * self.length * self.width) as f64
    }

    pub(crate) fn batch(&self) -> Batch {
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

    pub(crate) fn objective(&self) -> StepObjective {
        let normalisers =
            Normalisers { asked: self.asked_rows(), labelled: self.asked_rows(), tokens: self.rows(), sequences: self.sequences };
        let objective = if self.decoder { "ce=1,gold=0.5".parse().expect("an objective") } else { Objective::default() };
        StepObjective::new(&objective, (0, 1), TEMPERATURE, normalisers)
    }

    pub(crate) fn student(&self) -> Student {
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
