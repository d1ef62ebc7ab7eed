//! A student's first weights out of a teacher's file, of which only the tensors taken are read.
//!
//! **Which layers.** Evenly spaced from the teacher's first to its last, halves rounded down: student layer i of S takes teacher layer
//! i (T - 1) / (S - 1) of T. For 12 to 6 that is the paper's 0, 2, 4, 7, 9, 11 (Sanh et al. 2019); for 6 to 3 it is 0, 2, 5. An ALBERT
//! student has one set of layer parameters and takes one layer of its teacher; from an ALBERT teacher every student layer takes the one there.
//!
//! **Narrower students** take some of the teacher's hidden dimensions, heads and neurons: [`widths`](super::widths).
//!
//! **Token types.** BERT adds a token-type row to every embedding; DistilBERT has none. The row of type 0 is added to every position
//! embedding here, which is what the teacher computes wherever all types are 0: a student with all of the teacher's layers then *is* the
//! teacher. (The DistilBERT authors' extraction script leaves the row out. On the 12-layer reaction teacher of `data/teacher` and 1,964 masked
//! positions, a student of 6 layers so begins at a KL of 0.780 instead of 0.818 and agrees on 0.747 instead of 0.741; with 12 layers at 0
//! instead of 0.003 and 1.000 instead of 0.994.)
//!
//! **From one family to another.** DistilBERT, BERT and RoBERTa differ in names, in the token types (a teacher without gives rows of 0) and in
//! the row of the first position. An ALBERT student takes embeddings and head of such a teacher if they are as wide as its hidden states; its
//! map between them starts as the identity. A student of another family takes an ALBERT teacher's embeddings through the teacher's own map to
//! the hidden states, its layer and its decoder's bias; the head, whose widths differ, and the LayerNorm of the embeddings start anew.
//!
//! **Classifiers** take the teacher's pooler and last map where it has them for as many classes, else random ones. A DistilBERT applies a ReLU
//! where the others apply tanh: a student whose head should be its teacher's has to be of another family. A sentence encoder's projection is
//! random.

use super::bare_names::with_family_names;
use super::config::StudentConfig;
use super::family::Family;
use super::layout::ParameterSpec;
use super::names::Role;
use super::random::at_random;
use super::teacher_shape::{TeacherShape, tensor_name};
use super::tensor_source::{TensorSource, open_tensors};
use super::widths::{InitWidths, LayerChoice, LayerWeights, column_norms, cut, row_norms};
use crate::kernels::matrix::{Matrix, Threads, product};
use logitcache::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The teacher's layers that a student of `student_layers` starts from where none are named; the module's heading gives the rule.
///
/// # Errors
/// [`Error::Usage`] for `--layers` above the teacher's count, or 0.
pub fn default_layers(teacher_layers: usize, student_layers: usize) -> Result<Vec<usize>> {
    if student_layers == 0 || student_layers > teacher_layers {
        let expected = format!("1 to the {teacher_layers} layers of the file given with --init-from");
        return Err(Error::usage(
            "--layers",
            expected,
            student_layers.to_string(),
            "name the layers with --init-layers to take some twice",
        ));
    }
    let gaps = student_layers.saturating_sub(1).max(1);
    Ok((0..student_layers).map(|layer| (2 * layer * (teacher_layers - 1) + gaps - 1) / (2 * gaps)).collect())
}

/// How a student starts from a teacher's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstWeights {
    /// The teacher's layer that each set of the student's layer parameters starts from; `None` applies [`default_layers`].
    pub layers: Option<Vec<usize>>,
    /// How a narrower student chooses.
    pub widths: InitWidths,
    /// The teacher's heads where no `config.json` beside the file says it.
    pub heads: Option<usize>,
    /// The teacher's family where neither the tensors' names nor a `config.json` beside the file say it.
    pub family: Option<Family>,
    /// Of what is drawn where the teacher has nothing to give.
    pub seed: u64,
}

/// A teacher's file, ready to give each parameter of a student its first values.
pub struct TeacherTensors {
    file: Box<dyn TensorSource>,
    teacher: TeacherShape,
    student: StudentConfig,
    layers: Vec<usize>,
    widths: InitWidths,
    seed: u64,
    /// The teacher's hidden dimensions that the student takes, and those of its embeddings; the same where they are as wide.
    hidden: Vec<usize>,
    embedding: Vec<usize>,
    /// By teacher layer.
    choices: HashMap<usize, LayerChoice>,
}

impl TeacherTensors {
    /// Opens the masked language model in `path`: a `.safetensors` or `.onnx` file, or a directory with one
    /// (safetensors preferred).
    ///
    /// # Errors
    /// A file that cannot be read, names of no family, layers that the file does not have or whose number is not the student's, a student
    /// that is wider than the teacher somewhere or whose shape otherwise does not follow from it.
    pub fn open(path: &Path, student: &StudentConfig, first: &FirstWeights) -> Result<Self> {
        Self::new(open_tensors(path)?, student, first)
    }

    /// [`open`](Self::open), of tensors from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(file: Box<dyn TensorSource>, student: &StudentConfig, first: &FirstWeights) -> Result<Self> {
        let mut file = with_family_names(file, first.family)?;
        let teacher = TeacherShape::read(&*file, student, first.heads)?;
        let layers = match &first.layers {
            Some(layers) => layers.clone(),
            None if teacher.family == Family::Albert => {
                let own = student.layers_with_parameters();
                (0..own).map(|layer| layer * teacher.layers / own).collect()
            }
            None => default_layers(teacher.layers, student.layers_with_parameters())?,
        };
        if layers.len() != student.layers_with_parameters() {
            let (expected, remedy) = match student.family {
                Family::Albert => ("1 layer, which all of an ALBERT's share".to_owned(), "name one"),
                _ => (format!("{} layers, one for each of the student's", student.num_hidden_layers), "list as many as --layers asks for"),
            };
            return Err(Error::usage("--init-layers", expected, format!("{layers:?}"), remedy));
        }
        if layers.iter().any(|layer| *layer >= teacher.layers) {
            let expected = format!("layers below {}, which {} has", teacher.layers, file.path().display());
            return Err(Error::usage("--init-layers", expected, format!("{layers:?}"), "count the teacher's layers from 0"));
        }
        let (hidden, embedding) = dimensions(&mut *file, &teacher, first.widths)?;
        let (widths, seed, choices) = (first.widths, first.seed, HashMap::new());
        Ok(Self { file, teacher, student: student.clone(), layers, widths, seed, hidden, embedding, choices })
    }

    /// The teacher's layer behind each set of the student's layer parameters.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The first values of one parameter, row-major.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an unknown type, or holds a NaN or infinity.
    pub fn values(&mut self, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        let across = self.teacher.family == Family::Albert && self.student.family != Family::Albert;
        match parameter.role {
            Role::EmbeddingMapping if self.teacher.family != Family::Albert => Ok(identity(parameter)),
            Role::EmbeddingNorm | Role::HeadDense | Role::HeadNorm if across => Ok(at_random(&self.student, self.seed, parameter)),
            Role::WordEmbeddings => {
                let words = self.read(parameter.role, false)?;
                self.embed(words)
            }
            Role::PositionEmbeddings => self.positions(parameter),
            Role::TokenTypeEmbeddings => {
                let mut rows = if self.teacher.types == 0 { Vec::new() } else { self.read(parameter.role, false)? };
                rows.truncate(parameter.shape[0] * self.teacher.embedding.teacher);
                let mut values = self.embed(rows)?;
                values.resize(parameter.shape.iter().product(), 0.0);
                Ok(values)
            }
            Role::Pooler | Role::SequenceClassifier | Role::TokenClassifier | Role::Projection if !self.has(parameter) => {
                Ok(at_random(&self.student, self.seed, parameter))
            }
            role => self.taken(role, parameter),
        }
    }

    /// Whether the teacher has a head's parameter, its classes included.
    fn has(&self, parameter: &ParameterSpec) -> bool {
        let name = tensor_name(&*self.file, self.teacher.family, parameter.role, parameter.bias);
        let shape = self.teacher.shape_of(parameter.role, parameter.bias);
        parameter.role != Role::Projection && self.file.shape(&name).is_some_and(|found| found == shape)
    }

    /// What has a counterpart in the teacher, the rows and columns that the student takes.
    fn taken(&mut self, role: Role, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        use super::names::LayerPart::{AttentionNorm, AttentionOutput, Key, Narrow, OutputNorm, Query, Value, Widen};
        let (role, choice) = match role {
            Role::Layer(layer, part) => (Role::Layer(self.layers[layer], part), Some(self.choice(self.layers[layer])?)),
            other => (other, None),
        };
        let values = self.read(role, parameter.bias)?;
        let (hidden, embedding) = (Some(self.hidden.as_slice()), Some(self.embedding.as_slice()));
        let (rows, columns) = match (role, &choice) {
            (Role::Layer(_, part), Some(choice)) => match part {
                Query | Key => (Some(choice.query_key.as_slice()), hidden),
                Value => (Some(choice.value.as_slice()), hidden),
                AttentionOutput => (hidden, Some(choice.value.as_slice())),
                AttentionNorm | OutputNorm => (hidden, None),
                Widen => (Some(choice.neurons.as_slice()), hidden),
                Narrow => (hidden, Some(choice.neurons.as_slice())),
            },
            (Role::EmbeddingNorm | Role::HeadNorm, _) => (embedding, None),
            (Role::EmbeddingMapping, _) => (hidden, embedding),
            (Role::HeadDense, _) => (embedding, hidden),
            (Role::Pooler, _) => (hidden, hidden),
            (Role::SequenceClassifier | Role::TokenClassifier, _) => (None, hidden),
            _ => (None, None),
        };
        let width = if parameter.shape.len() == 1 { 1 } else { self.teacher.shape_of(role, false)[1] };
        Ok(cut(&values, width, rows, columns.filter(|_| parameter.shape.len() == 2)))
    }

    /// The row of the first position moves to the student's; rows that no token takes are the teacher's, or 0 where it has none.
    fn positions(&mut self, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        let width = self.teacher.embedding.teacher;
        let mut rows = self.read(Role::PositionEmbeddings, false)?;
        if self.student.family == Family::DistilBert && self.teacher.types > 0 {
            let types = self.read(Role::TokenTypeEmbeddings, false)?;
            for row in rows.chunks_exact_mut(width) {
                row.iter_mut().zip(&types[..width]).for_each(|(value, type_0)| *value += type_0);
            }
        }
        let from = self.teacher.first_position;
        let to = self.student.family.first_position(self.student.pad_token_id);
        let unused = if from == to { rows[..from * width].to_vec() } else { vec![0.0; to * width] };
        let values = [&unused, &rows[from * width..][..(parameter.shape[0] - to) * width]].concat();
        self.embed(values)
    }

    /// Rows of a teacher's embedding table as the student's: the dimensions taken, or mapped to the hidden states.
    fn embed(&mut self, rows: Vec<f32>) -> Result<Vec<f32>> {
        let width = self.teacher.embedding.teacher;
        if self.teacher.family != Family::Albert || self.student.family == Family::Albert {
            return Ok(cut(&rows, width, None, Some(&self.embedding)));
        }
        let mapping = cut(&self.read(Role::EmbeddingMapping, false)?, width, Some(&self.hidden), None);
        let mapping = Matrix::new(&mapping, self.hidden.len(), width).transposed();
        Ok(product(Matrix::new(&rows, rows.len() / width, width), mapping, Threads::All))
    }

    fn choice(&mut self, layer: usize) -> Result<LayerChoice> {
        use super::names::LayerPart::{AttentionOutput, Key, Narrow, Query, Widen};
        if let Some(choice) = self.choices.get(&layer) {
            return Ok(choice.clone());
        }
        let (heads, within, neurons) = (self.teacher.heads, self.teacher.within, self.teacher.neurons);
        let kept = heads.is_kept() && within.is_kept() && neurons.is_kept();
        let weights = if kept || self.widths == InitWidths::Order {
            None
        } else {
            let mut read = |part| self.read(Role::Layer(layer, part), false);
            let (query, key, output) = (read(Query)?, read(Key)?, read(AttentionOutput)?);
            Some(LayerWeights { query, key, output, widen: read(Widen)?, narrow: read(Narrow)? })
        };
        let choice = LayerChoice::new(heads, within, neurons, weights.as_ref());
        self.choices.insert(layer, choice.clone());
        Ok(choice)
    }

    fn read(&mut self, role: Role, bias: bool) -> Result<Vec<f32>> {
        let name = tensor_name(&*self.file, self.teacher.family, role, bias);
        self.file.read_shaped(&name, &self.teacher.shape_of(role, bias))
    }
}

/// The hidden and embedding dimensions that a student takes, chosen once for the whole model.
fn dimensions(file: &mut dyn TensorSource, teacher: &TeacherShape, widths: InitWidths) -> Result<(Vec<usize>, Vec<usize>)> {
    let mut read = |role| {
        let name = tensor_name(file, teacher.family, role, false);
        file.read_shaped(&name, &teacher.shape_of(role, false))
    };
    let by_importance = widths == InitWidths::Importance;
    let (hidden, embedding) = (teacher.hidden, teacher.embedding);
    let mut columns = None;
    if by_importance && !embedding.is_kept() {
        columns = Some(column_norms(&read(Role::WordEmbeddings)?, embedding.teacher));
    }
    let embedding_choice = embedding.chosen(columns.as_deref());
    if teacher.family != Family::Albert {
        return Ok((embedding_choice.clone(), embedding_choice));
    }
    let mut rows = None;
    if by_importance && !hidden.is_kept() {
        rows = Some(row_norms(&read(Role::EmbeddingMapping)?, embedding.teacher));
    }
    Ok((hidden.chosen(rows.as_deref()), embedding_choice))
}

/// Of a map that changes nothing.
fn identity(parameter: &ParameterSpec) -> Vec<f32> {
    let mut values = vec![0.0; parameter.shape.iter().product()];
    if let [_, columns] = *parameter.shape {
        values.iter_mut().step_by(columns + 1).for_each(|value| *value = 1.0);
    }
    values
}

#[cfg(test)]
mod tests;
