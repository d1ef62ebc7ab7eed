//! The student: a model of one of four [families](family) with the head of its task, on packed rows.
//!
//! ```text
//! ids -> word + position (+ token type) -> LayerNorm -> dropout (-> ALBERT: W x + b)                                embeddings
//!     -> num_hidden_layers x [ x = LayerNorm(x + attention(x)); x = LayerNorm(x + W2 activation(W1 x)) ]            block
//!     -> the asked rows -> LayerNorm(activation(W x)) -> word embeddings, transposed, + bias                        heads, of a masked LM
//! ```
//!
//! Dropout inside a block stands where the family has it. No pooler, a decoder tied to the word embeddings; an ALBERT's layers share one set
//! of parameters. Rows of several sequences lie end to end; attention, positions and dropout look at the batch's offsets, so a sequence's
//! result does not depend on its neighbours. Values come from [`init`], [`random`] or a saved directory; [`names`] says what each family
//! calls a parameter, [`layout()`] their order, [`config`] the settings.

mod bare_names;
mod block;
mod body;
pub mod config;
mod config_file;
pub mod decoder;
mod embeddings;
pub mod family;
pub mod first_values;
mod heads;
pub mod hidden_objective;
pub mod init;
pub mod layout;
pub mod names;
mod onnx_names;
pub mod onnx_tensors;
pub mod random;
pub mod sentence_files;
mod teacher_shape;
pub mod tensor_file;
pub mod tensor_source;
pub mod tensor_writer;
pub mod widths;

use crate::batcher::Batch;
use crate::kernels::{Affine, DropoutPlan, Packing, Parameter, ParameterRef, Precision};
use crate::loss::{LossParts, StepObjective};
use candle_core::{DType, Device, Tensor};
use logitcache::error::{Error, Result};
use std::sync::Arc;

pub use config::{Overrides, StudentConfig};
pub(crate) use embeddings::places_of;
pub use family::Family;
pub use first_values::FirstValues;
pub use hidden_objective::HiddenObjective;
pub use init::{FirstWeights, TeacherTensors};
pub use layout::{ParameterSpec, layout};
pub use names::{LayerPart, Role};
pub use onnx_tensors::OnnxTensors;
pub use random::at_random;
pub use tensor_source::TensorSource;
pub use widths::InitWidths;

/// Gives the first values of a parameter, row-major, as many as its shape has.
pub type ValueSource<'a> = dyn FnMut(&ParameterSpec) -> Result<Vec<f32>> + 'a;

/// What answers batches without dropout and without keeping anything for a backward pass: the student of the kernels, or a copy of it elsewhere.
pub trait Answers {
    /// Logits `[asked, classes]` of the asked rows, of the vocabulary for a language model. They exist whole: the caller bounds the rows it asks
    /// at a time.
    ///
    /// # Errors
    /// A batch that the student cannot take; a sentence encoder, which has none.
    fn logits(&self, batch: &Batch) -> candle_core::Result<Tensor>;

    /// A sentence encoder's vectors `[sequences, embedding]`.
    ///
    /// # Errors
    /// A batch that the student cannot take; a student of another task, which has none.
    fn embeddings(&self, batch: &Batch) -> candle_core::Result<Tensor>;
}

impl Answers for Student {
    fn logits(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.logits(batch)
    }

    fn embeddings(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.embeddings(batch)
    }
}

/// A masked language model with its parameters.
pub struct Student {
    config: StudentConfig,
    parameters: Vec<ParameterRef>,
    body: body::Body,
    head: heads::Head,
}

impl Student {
    /// Builds the student in `dtype` (`F32` to train, `F64` to prove gradients with), asking `source` for each parameter in the order of
    /// [`layout()`], one at a time.
    ///
    /// # Errors
    /// Settings that [`StudentConfig::check`] refuses, whatever `source` returns, values of another number than the shape's.
    pub fn new(config: StudentConfig, dtype: DType, source: &mut ValueSource<'_>) -> Result<Self> {
        config.check()?;
        let (specs, mut parameters) = (layout(&config), Vec::new());
        for spec in &specs {
            let values = source(spec)?;
            parameters.push(parameter(spec, values, dtype)?);
        }
        let table = ParameterTable { specs: &specs, parameters: &parameters };
        let (body, head) = (body::Body::new(&table, &config), heads::Head::new(&table, &config));
        Ok(Self { config, parameters, body, head })
    }

    /// The settings it was built with.
    pub fn config(&self) -> &StudentConfig {
        &self.config
    }

    /// Every parameter in the order of [`layout()`]; the tied decoder weight once.
    pub fn parameters(&self) -> &[ParameterRef] {
        &self.parameters
    }

    /// Sets what the products of all linear maps read, the tied decoder's too. Parameters, activations, gradients and the products of the
    /// attention stay in single precision.
    pub fn set_precision(&self, precision: Precision) {
        self.parameters.iter().for_each(|parameter| parameter.set_precision(precision));
    }

    /// How many numbers the parameters hold.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.elements() as u64).sum()
    }

    /// The dropout that the settings ask for in a training step.
    pub fn dropout_plan(&self, seed: u64, step: u64) -> DropoutPlan {
        DropoutPlan { seed, step, hidden: self.config.dropout, attention: self.config.attention_dropout }
    }

    /// All hidden states `[tokens, dim]` of every row, with what a backward pass needs: state 0 is what the first layer reads, state i the output
    /// of layer i, as `hidden_states` has them in `transformers`. A backward pass needs them all anyway, so that they cost nothing here.
    ///
    /// # Errors
    /// Ids outside the vocabulary, a sequence longer than the position embeddings, offsets that do not fit the rows.
    pub fn forward_states(&self, batch: &Batch, dropout: &DropoutPlan) -> candle_core::Result<Vec<Tensor>> {
        self.body.states(batch, dropout, false)
    }

    /// The last hidden state `[tokens, dim]` without dropout and without keeping anything for a backward pass.
    ///
    /// # Errors
    /// As [`forward_states`](Self::forward_states).
    pub fn hidden_states(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.body.last_state(batch)
    }

    /// Logits `[asked, classes]` of the asked rows, of the vocabulary for a language model, without dropout and without keeping anything for a
    /// backward pass. They exist whole: the caller bounds the rows it asks at a time.
    ///
    /// # Errors
    /// As [`forward_states`](Self::forward_states); an asked row outside of the batch; a sentence encoder, which has none.
    pub fn logits(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.head.logits(&self.hidden_states(batch)?, batch)
    }

    /// A sentence encoder's vectors `[sequences, embedding]`, without dropout and without keeping anything for a backward pass.
    ///
    /// # Errors
    /// As [`forward_states`](Self::forward_states); a student of another task, which has none.
    pub fn embeddings(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        self.head.embeddings(&self.hidden_states(batch)?, batch)
    }

    /// The loss of a micro-batch: a scalar to call `backward` on, once, which adds every parameter's gradient to what it holds; and the parts
    /// by name. Sums are divided by the normalisers of the whole step, so that the micro-batches of a step simply add up.
    ///
    /// # Errors
    /// As [`mapped_loss`](Self::mapped_loss).
    pub fn loss(&self, batch: &Batch, step: &StepObjective, dropout: &DropoutPlan) -> candle_core::Result<(Tensor, LossParts)> {
        self.mapped_loss(batch, step, &HiddenObjective::last(self.body.layers()), dropout)
    }

    /// [`loss`](Self::loss) with the hidden states compared as `hidden` says, not the last ones alone; adds to its projections' gradients too.
    ///
    /// # Errors
    /// As [`forward_states`](Self::forward_states); targets whose number does not fit the asked rows; a part of the hidden states without
    /// the teacher's.
    pub fn mapped_loss(
        &self,
        batch: &Batch,
        step: &StepObjective,
        hidden: &HiddenObjective,
        dropout: &DropoutPlan,
    ) -> candle_core::Result<(Tensor, LossParts)> {
        let last = self.body.layers();
        let asked_alone = self.head.reads_asked_rows_alone() && !hidden.reads(last, step);
        let states = self.body.states(batch, dropout, asked_alone)?;
        let (total, mut values) = self.head.loss(&states[last], batch, step, dropout)?;
        let total = hidden.add_loss(&states, batch, step, total, &mut values)?;
        Ok((total, LossParts::new(&step.weights, values)))
    }
}

fn packing(batch: &Batch) -> candle_core::Result<Arc<Packing>> {
    Packing::new(&batch.offsets, &batch.sequence_ids, &batch.passes)
}

fn parameter(spec: &ParameterSpec, values: Vec<f32>, dtype: DType) -> Result<ParameterRef> {
    let expected = spec.shape.iter().product::<usize>();
    if values.len() != expected {
        return Err(Error::invalid(&spec.name, format!("{expected} values"), values.len().to_string()));
    }
    let tensor = Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
    let made = tensor.and_then(|tensor| Parameter::new(&spec.name, &tensor));
    made.map_err(|error| Error::invalid(&spec.name, "a parameter in memory", error.to_string()))
}

/// The parameters by their role, for the parts that share them.
struct ParameterTable<'a> {
    specs: &'a [ParameterSpec],
    parameters: &'a [ParameterRef],
}

impl ParameterTable<'_> {
    fn get(&self, role: Role, bias: bool) -> ParameterRef {
        let found = self.specs.iter().find(|spec| spec.role == role && spec.bias == bias);
        let found = found.unwrap_or_else(|| panic!("the layout has no {role:?}, which the student is built from"));
        self.parameters[found.number].clone()
    }

    fn weight(&self, role: Role) -> ParameterRef {
        self.get(role, false)
    }

    fn bias(&self, role: Role) -> ParameterRef {
        self.get(role, true)
    }

    fn affine(&self, role: Role) -> Affine {
        Affine { weight: self.weight(role), bias: self.bias(role) }
    }
}

#[cfg(test)]
pub(crate) mod tests;
