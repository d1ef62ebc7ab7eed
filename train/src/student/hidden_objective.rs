//! The loss of the hidden states: pairs of a student's and a teacher's state, with a learned projection where their widths differ.
//!
//! A projection is trained with the student and is no part of it: it is saved in checkpoints and never exported.

use crate::batcher::Batch;
use crate::kernels::{Affine, Parameter, ParameterRef, cosine_loss, hidden_mse_loss, linear};
use crate::loss::hidden_map::{HiddenPair, teacher_states};
use crate::loss::{PARTS, Part, StepObjective};
use candle_core::{DType, Device, Tensor};
use logitcache::error::{Error, Result};
use logitcache::seed::{Purpose, RandomStream};

/// States `[rows, width]` of the student, the teacher's, a weight and the rows of the step: the weighted scalar and the number without its
/// weight.
type HiddenLoss = fn(&Tensor, &[f32], f64, usize) -> candle_core::Result<(Tensor, f64)>;

/// What the student's hidden states are compared with. A copy shares its projections' parameters.
#[derive(Clone)]
pub struct HiddenObjective {
    pairs: Vec<Comparison>,
    /// Weight, bias, weight, bias, ... of the projections, in the order of the pairs.
    parameters: Vec<ParameterRef>,
}

#[derive(Clone)]
struct Comparison {
    /// The student's state.
    student: usize,
    /// Where [`Batch::hidden`] has the teacher's.
    teacher: usize,
    projection: Option<Affine>,
}

impl HiddenObjective {
    /// The comparison of `pairs` in batches whose hidden states are those of [`teacher_states`]. Where the widths of student and teacher
    /// differ, each pair has a linear map from the one to the other: weight `[teacher_width, student_width]`, drawn from `seed` with a standard
    /// deviation of 1 / sqrt(student_width), which keeps the variance of a state; bias 0.
    ///
    /// # Errors
    /// A `dtype` other than `F32` or `F64`.
    pub fn new(pairs: &[HiddenPair], (student_width, teacher_width): (usize, usize), dtype: DType, seed: u64) -> Result<Self> {
        let (states, mut parameters) = (teacher_states(pairs), Vec::new());
        let mut compared = Vec::new();
        for pair in pairs {
            let projection = match student_width == teacher_width {
                true => None,
                false => Some(projection(pair, (student_width, teacher_width), dtype, seed)?),
            };
            parameters.extend(projection.iter().flat_map(|affine| [affine.weight.clone(), affine.bias.clone()]));
            let teacher = states.iter().take_while(|state| **state != pair.teacher).count();
            compared.push(Comparison { student: pair.student, teacher, projection });
        }
        Ok(Self { pairs: compared, parameters })
    }

    /// The last state of a student with so many layers against the only one that a batch has of the teacher, of the same width.
    pub fn last(student_layers: usize) -> Self {
        Self { pairs: vec![Comparison { student: student_layers, teacher: 0, projection: None }], parameters: Vec::new() }
    }

    /// The projections' parameters, none where the widths are equal: `projection.STUDENT-TEACHER.weight` and `.bias` for each pair.
    pub fn parameters(&self) -> &[ParameterRef] {
        &self.parameters
    }

    /// The pairs: the student's state, where [`Batch::hidden`] has the teacher's, and the map between them where their widths differ.
    pub(crate) fn compared(&self) -> impl Iterator<Item = (usize, usize, Option<&Affine>)> {
        self.pairs.iter().map(|pair| (pair.student, pair.teacher, pair.projection.as_ref()))
    }

    /// Whether a part of the step's compares this state of the student.
    pub(super) fn reads(&self, state: usize, step: &StepObjective) -> bool {
        step.weights.any(Part::is_of_hidden) && self.pairs.iter().any(|pair| pair.student == state)
    }

    /// Adds what the parts of the hidden states weigh to `total`, and their values, each a mean over the pairs, to `values`. `states` are the
    /// student's, `[tokens, hidden_size]` each.
    ///
    /// # Errors
    /// A part with a weight and no pair, or whose states the student or the batch lacks.
    pub(super) fn add_loss(
        &self,
        states: &[Tensor],
        batch: &Batch,
        step: &StepObjective,
        mut total: Tensor,
        values: &mut [f64; PARTS],
    ) -> candle_core::Result<Tensor> {
        if !step.weights.any(Part::is_of_hidden) {
            return Ok(total);
        }
        let count = self.pairs.len() as f64;
        if self.pairs.is_empty() {
            candle_core::bail!("a loss of hidden states and no states to compare");
        }
        for Comparison { student, teacher, projection } in &self.pairs {
            let (Some(state), Some(teacher)) = (states.get(*student), batch.hidden.get(*teacher)) else {
                let (own, read) = (states.len(), batch.hidden.len());
                candle_core::bail!("state {student} of {own} of the student is compared with place {teacher} of {read} of the teacher");
            };
            let state = projection.as_ref().map_or_else(|| Ok(state.clone()), |projection| linear(state, projection))?;
            let losses = [(Part::Cos, cosine_loss as HiddenLoss), (Part::HiddenMse, hidden_mse_loss)];
            for (part, loss) in losses.into_iter().filter(|(part, _)| step.weights.has(*part)) {
                let (weighted, value) = loss(&state, teacher, step.weights.get(part) / count, step.normalisers.tokens)?;
                values[part as usize] += value / count;
                total = (total + weighted)?;
            }
        }
        Ok(total)
    }
}

fn projection(pair: &HiddenPair, (student_width, teacher_width): (usize, usize), dtype: DType, seed: u64) -> Result<Affine> {
    let mut stream = RandomStream::new(seed, Purpose::Projections, &[pair.student as u64, u64::from(pair.teacher)]);
    let deviation = 1.0 / (student_width as f64).sqrt();
    let weight = (0..teacher_width * student_width).map(|_| (deviation * stream.normal()) as f32).collect();
    let parameter = |kind: &str, values: Vec<f32>, shape: &[usize]| {
        let name = format!("projection.{}-{}.{kind}", pair.student, pair.teacher);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
        let made = tensor.and_then(|tensor| Parameter::new(&name, &tensor));
        made.map_err(|error| Error::invalid(&name, "a parameter in memory", error.to_string()))
    };
    Ok(Affine {
        weight: parameter("weight", weight, &[teacher_width, student_width])?,
        bias: parameter("bias", vec![0.0; teacher_width], &[teacher_width])?,
    })
}
