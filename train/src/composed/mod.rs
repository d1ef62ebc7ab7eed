//! The same student, losses and optimiser step of candle's own operations, wherever candle runs them, and of kernels for GPUs where those take too
//! many passes over the numbers: how `train` uses a GPU.
//!
//! The student on the CPU stays the house of the values: first weights, checkpoints and the student's directory are read from and written to it.
//! [`Composed`] takes copies of everything that is trained to a device, makes the steps there and brings the values back when they are asked for.
//! Nothing here has a formula of its own: tests hold losses, every parameter's gradient and whole runs to those of the kernels.
//!
//! | file | content |
//! | --- | --- |
//! | `rows` | choosing rows by number, each once at most, with the way back |
//! | `lookup` | rows of a table, each as often as it is asked for, with the way back |
//! | `operations` | products, norms, activations, softmax |
//! | `values` | what is trained, on the device, by role |
//! | `place` | a batch on the device: ids, padding, masks |
//! | `dropout` | masks drawn by the device |
//! | `attention`, `encoder`, `decoder` | the states of every family |
//! | `heads` | the head of every task |
//! | `vocabulary`, `logits`, `divergences` | losses of the logits, a chunk of rows at a time |
//! | `vectors` | losses of states, of vectors, of numbers; pooling |
//! | `optimiser` | AdamW |
//! | `gpu` | kernels for NVIDIA's GPUs, in a build for them |
//!
//! Linear maps run on packed rows; the attention alone pads sequences to the longest of a micro-batch. A step fetches from the device once: the
//! values of its losses and the norm of its gradient together.

mod attention;
mod decoder;
mod divergences;
mod dropout;
mod encoder;
#[cfg(feature = "cuda")]
mod gpu;
mod heads;
mod logits;
mod lookup;
mod operations;
mod optimiser;
mod place;
mod rows;
mod values;
mod vectors;
mod vocabulary;

use crate::batcher::{Batch, Step};
use crate::kernels::{DropoutPlan, ParameterRef, Precision};
use crate::loss::{LossParts, PARTS, Part, StepObjective};
use crate::optim::{AdamWSettings, Moments};
use crate::student::decoder::DecoderRole;
use crate::student::{Answers, HiddenObjective, Role, Student, StudentConfig};
use candle_core::{DType, Device, Result, Tensor};
use dropout::{Factors, drawn, off, seed};
use heads::{Head, RowLoss, weighted};
use optimiser::Optimiser;
use place::{Place, Tables};
use values::Values;
use vectors::{cosine_loss, rows_like, squared_loss, upload};

/// The parts of the loss that compare hidden states.
const HIDDEN_PARTS: [(Part, RowLoss); 2] = [(Part::Cos, cosine_loss), (Part::HiddenMse, squared_loss)];

/// A student on a device of candle, with what its hidden states are compared with.
pub struct Composed<'a> {
    config: &'a StudentConfig,
    hidden: HiddenObjective,
    /// The student's, then the projections'.
    parameters: Vec<ParameterRef>,
    values: Values,
}

/// What a step's passes gave.
pub struct Gradients {
    /// Of each micro-batch.
    pub parts: Vec<LossParts>,
    /// Root of the sum of squares over all gradients.
    pub norm: f64,
}

/// A [`Composed`] student that is trained.
pub struct Training<'a> {
    composed: Composed<'a>,
    optimiser: Optimiser,
}

impl<'a> Composed<'a> {
    /// Copies of `student`'s parameters and of `hidden`'s on `device`, in the number type they have. Under [`Precision::Bf16`] both
    /// operands of every linear map are rounded to bf16, and so is its result.
    ///
    /// # Errors
    /// Whatever the device refuses, such as more than its memory holds.
    pub fn new(student: &'a Student, hidden: &HiddenObjective, device: &Device, precision: Precision) -> Result<Self> {
        let parameters: Vec<ParameterRef> = student.parameters().iter().chain(hidden.parameters()).cloned().collect();
        let values = Values::upload(student.config(), &parameters, device, precision)?;
        Ok(Self { config: student.config(), hidden: hidden.clone(), parameters, values })
    }

    /// To be trained with `settings`, from `moments` on.
    ///
    /// # Errors
    /// Moments of other parameters; whatever the device refuses.
    pub fn train(self, settings: AdamWSettings, moments: &Moments) -> Result<Training<'a>> {
        optimiser::check(moments, &self.parameters)?;
        let optimiser = Optimiser::new(settings, moments, &self.values)?;
        Ok(Training { composed: self, optimiser })
    }

    fn place(&self, batch: &Batch, tables: Tables) -> Result<Place> {
        Place::new(self.config, batch, tables, self.values.dtype(), self.values.device())
    }

    fn tables(&self) -> Tables {
        let roles = match &self.config.decoder {
            Some(_) => [Some(Role::Decoder(DecoderRole::Words)), None, Some(Role::Decoder(DecoderRole::Positions))],
            None => [Role::WordEmbeddings, Role::TokenTypeEmbeddings, Role::PositionEmbeddings].map(Some),
        };
        roles.map(|role| role.and_then(|role| self.values.rows(role)))
    }

    fn states(&self, values: &Values, place: &Place, factors: &Factors<'_>) -> Result<Vec<Tensor>> {
        match &self.config.decoder {
            Some(decoder) => decoder::states(self.config, decoder, values, place, factors),
            None => encoder::states(self.config, values, place, factors),
        }
    }

    /// What `answer` makes of the last state, nothing of which is kept for a backward pass.
    fn answers(&self, batch: &Batch, answer: impl Fn(&Head<'_>, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (values, place) = (self.values.detached(), self.place(batch, [None; 3])?);
        let head = Head::new(self.config, &values, &place, batch, None)?;
        let states = self.states(&values, &place, &off)?;
        let last = states.last().ok_or_else(|| candle_core::Error::Msg("a student without states".to_owned()))?;
        answer(&head, last)
    }

    /// The loss of a micro-batch, as a scalar to differentiate, none where nothing is taught; and the values of the parts, `[PARTS]`. The scalar's
    /// gradients are those of the weighted total, its value is not.
    fn loss(&self, batch: &Batch, step: &StepObjective, factors: &Factors<'_>) -> Result<(Option<Tensor>, Tensor)> {
        if step.few_ids {
            candle_core::bail!("few ids of a vocabulary, which the kernels alone can count");
        }
        // Uploads come first, but for small ones of decoders and sentences: once the device has work queued, an upload waits until that is done.
        let place = self.place(batch, self.tables())?;
        let head = Head::new(self.config, &self.values, &place, batch, Some(step))?;
        let teacher = self.teacher_states(batch, step)?;
        let states = self.states(&self.values, &place, factors)?;
        let last = states.last().ok_or_else(|| candle_core::Error::Msg("a student without states".to_owned()))?;
        let losses = [head.loss(last, step, factors)?, self.hidden_loss(&states, &teacher, step)?];
        let none = Tensor::zeros((), self.values.dtype(), self.values.device())?;
        let mut values = vec![none; PARTS];
        let mut sum: Option<Tensor> = None;
        for (scalar, parts) in losses.into_iter().flatten() {
            sum = Some(sum.map_or(Ok(scalar.clone()), |sum| sum + &scalar)?);
            parts.into_iter().for_each(|(part, value)| values[part as usize] = value);
        }
        Ok((sum, Tensor::stack(&values, 0)?.to_dtype(DType::F64)?))
    }

    /// The teacher's states of `batch`, as flat numbers, where a part of the loss reads them.
    fn teacher_states(&self, batch: &Batch, step: &StepObjective) -> Result<Vec<Tensor>> {
        if HIDDEN_PARTS.iter().all(|(part, _)| !step.weights.has(*part)) {
            return Ok(Vec::new());
        }
        batch.hidden.iter().map(|state| upload(state, self.values.dtype(), self.values.device())).collect()
    }

    fn hidden_loss(&self, states: &[Tensor], teacher_states: &[Tensor], step: &StepObjective) -> Result<Option<vocabulary::Losses>> {
        let mut sums: Vec<(Part, Tensor)> = Vec::new();
        let parts: Vec<_> = HIDDEN_PARTS.into_iter().filter(|(part, _)| step.weights.has(*part)).collect();
        let compared: Vec<_> = self.hidden.compared().collect();
        if !parts.is_empty() && compared.is_empty() {
            candle_core::bail!("a loss of hidden states and no states to compare");
        }
        for (student, teacher, projection) in compared.iter().filter(|_| !parts.is_empty()) {
            let (Some(state), Some(teacher)) = (states.get(*student), teacher_states.get(*teacher)) else {
                let (own, read) = (states.len(), teacher_states.len());
                candle_core::bail!("state {student} of {own} of the student is compared with place {teacher} of {read} of the teacher");
            };
            let state = match projection {
                Some(projection) => self.values.project(state, projection, &self.parameters)?,
                None => state.clone(),
            };
            let teacher = rows_like(teacher, &state)?;
            for (part, loss) in &parts {
                let loss = (loss(&state, &teacher, step.normalisers.tokens)? * (1.0 / compared.len() as f64))?;
                match sums.iter_mut().find(|(known, _)| known == part) {
                    Some((_, sum)) => *sum = (&*sum + loss)?,
                    None => sums.push((*part, loss)),
                }
            }
        }
        weighted(sums, step)
    }
}

impl Answers for Composed<'_> {
    fn logits(&self, batch: &Batch) -> Result<Tensor> {
        self.answers(batch, |head, state| head.logits(state))
    }

    fn embeddings(&self, batch: &Batch) -> Result<Tensor> {
        self.answers(batch, |head, state| head.vectors(state))
    }
}

impl Training<'_> {
    /// The student, to be measured.
    pub fn student(&self) -> &dyn Answers {
        &self.composed
    }

    /// Forward and backward for every micro-batch of `step`; the gradients add up on the device until [`update`](Self::update) or
    /// [`forget`](Self::forget).
    ///
    /// # Errors
    /// Ids or targets out of range, a part without its targets, whatever the device refuses.
    pub fn gradients(&mut self, step: &Step, objective: &StepObjective, plan: &DropoutPlan) -> Result<Gradients> {
        let Self { composed, optimiser } = self;
        let (device, dtype) = (composed.values.device().clone(), composed.values.dtype());
        let mut numbers = Vec::with_capacity(step.micro_batches.len() + 1);
        seed(plan, &device)?;
        for batch in &step.micro_batches {
            let (loss, values) = composed.loss(batch, objective, &drawn(*plan, dtype, &device))?;
            loss.iter().try_for_each(|loss| optimiser.add_gradients(loss, &composed.values))?;
            numbers.push(values);
        }
        numbers.push(optimiser.squared_norm(&device)?.reshape(1)?);
        let mut fetched = Tensor::cat(&numbers, 0)?.to_vec1::<f64>()?;
        let norm = fetched.pop().unwrap_or_default().sqrt();
        let (of_batches, _) = fetched.as_chunks::<PARTS>();
        Ok(Gradients { parts: of_batches.iter().map(|values| LossParts::new(&objective.weights, *values)).collect(), norm })
    }

    /// One step of AdamW, by the gradients times `gradient_scale`, which are then forgotten.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn update(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.optimiser.update(&self.composed.values, learning_rate, gradient_scale)
    }

    /// Forgets the gradients of a step that is passed over.
    pub fn forget(&mut self) {
        self.optimiser.forget();
    }

    /// Brings the values back to the parameters on the CPU, and gives the optimiser's memory.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn download(&self) -> Result<Moments> {
        self.composed.values.download(&self.composed.parameters)?;
        self.optimiser.download()
    }
}

#[cfg(test)]
mod tests;
