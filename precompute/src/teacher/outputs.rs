//! One batch's outputs, checked for name, type and shape before anything is read.

use super::gather::Asked;
use super::recognise::SENTENCE_VECTOR;
use super::reduce::{FittingReduction, Reduced};
use crate::topk::{Targets, TopK};
use half::slice::HalfFloatSliceExt;
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use ort::session::SessionOutputs;
use ort::value::{DynValue, TensorElementType};
use std::borrow::Cow;
use std::path::Path;

/// The output that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputShape {
    pub name: String,
    /// 3 for `[batch, length, width]`, 2 for `[batch, width]`.
    pub rank: usize,
    task: Task,
}

impl OutputShape {
    /// That of a task's output of that name.
    pub(super) fn of(task: Task, name: &str) -> Self {
        let of_sequences = task == Task::SequenceClassification || name == SENTENCE_VECTOR;
        Self { name: name.to_owned(), rank: if of_sequences { 2 } else { 3 }, task }
    }

    fn remedy(&self) -> String {
        match self.task {
            Task::SentenceEmbedding => "export the sentence encoder again".to_owned(),
            task => format!("export the model with the head of {task}, or say with --task what it is"),
        }
    }
}

/// What the outputs of a batch must be.
pub(super) struct Expected<'a> {
    pub shape: &'a OutputShape,
    /// Where the graph gathers the asked positions, which.
    pub asked: Option<&'a Asked>,
    /// Where the graph makes targets of logits, which.
    pub reduction: Option<&'a FittingReduction>,
    /// The outputs with hidden states.
    pub hidden: &'a [String],
    /// Widths of a row of the output that is read and of a hidden state; 0 where not known.
    pub sizes: [usize; 2],
}

/// A view of one batch's outputs; rows may be read from several threads. float32 outputs are not copied, float16 ones are converted once.
#[derive(Debug)]
pub struct Answer<'a> {
    rows: usize,
    length: usize,
    /// Rows of `values` for each sequence: its tokens, or 1.
    answers: usize,
    /// Where fewer positions were asked, which.
    asked: Option<&'a Asked>,
    of_sequences: bool,
    width: usize,
    hidden_size: usize,
    /// Empty where the graph has reduced them.
    values: Cow<'a, [f32]>,
    reduced: Option<Reduced<'a>>,
    hidden: Vec<Cow<'a, [f32]>>,
}

impl<'a> Answer<'a> {
    /// Checks the outputs of a batch of `rows` sequences of `length` tokens. Sizes that are 0 are taken from the outputs.
    pub(super) fn new(model: &Path, outputs: &'a SessionOutputs<'_>, [rows, length]: [usize; 2], expected: Expected<'a>) -> Result<Self> {
        let Expected { shape, asked, reduction, hidden, sizes: [mut width, mut hidden_size] } = expected;
        let all = [rows, length];
        let outer = match asked {
            Some(asked) => &[1, asked.answers()],
            None => &all[..shape.rank - 1],
        };
        let (values, reduced) = match reduction {
            Some(fitting) => {
                width = fitting.width;
                (Cow::Borrowed(&[][..]), Some(Reduced::new(model, outputs, outer, &fitting.reduction)?))
            }
            None => (tensor(model, outputs, &shape.name, outer, &mut width, &shape.remedy())?, None),
        };
        let remedy = "name another tensor with --hidden-tensor LAYER=NAME";
        let hidden = hidden.iter().map(|name| tensor(model, outputs, name, &all, &mut hidden_size, remedy)).collect::<Result<_>>()?;
        let of_sequences = shape.rank == 2;
        let answers = if of_sequences { 1 } else { length };
        Ok(Self { rows, length, answers, asked, of_sequences, width, hidden_size, values, reduced, hidden })
    }

    /// Sequences of the batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens per sequence, padding included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Length of a row of logits, or of a state or vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Width of a hidden state; 0 where none was asked for.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Whether there is one row of values for a sequence, not one for each token.
    pub fn is_of_sequences(&self) -> bool {
        self.of_sequences
    }

    /// `[width]`: the logits at `position` of `row`, undivided, as the teacher gave them: they may hold NaN. What is answered for a sequence as a
    /// whole is at position 0. Where the graph is without its head, the state in front of it.
    ///
    /// # Panics
    /// If `row` or `position` is outside the batch or was not asked, or the graph has made targets of the logits.
    pub fn logits(&self, row: usize, position: usize) -> &[f32] {
        let start = self.place(row, position) * self.width;
        &self.values[start..start + self.width]
    }

    /// Appends the targets of `position` in `row`: those that the graph has made, else `top_k`'s of the logits.
    ///
    /// # Errors
    /// What is not finite among the logits, for messages; nothing is appended then.
    ///
    /// # Panics
    /// If `row` or `position` is outside the batch or was not asked.
    pub fn append_targets(&self, row: usize, position: usize, top_k: &mut TopK, targets: &mut Targets) -> std::result::Result<(), String> {
        match &self.reduced {
            Some(reduced) => reduced.append(self.place(row, position), targets),
            None => top_k.append(self.logits(row, position), targets).map_err(|found| found.to_string()),
        }
    }

    /// Which of the answers that is.
    fn place(&self, row: usize, position: usize) -> usize {
        assert!(row < self.rows && position < self.answers, "row {row}, position {position} of answers [{}, {}]", self.rows, self.answers);
        match self.asked {
            None => row * self.answers + position,
            Some(asked) => asked.place(row, position).expect("only positions that were asked have answers"),
        }
    }

    /// `[length, width]`, padding included, or `[width]` where there is one vector for a sequence: every value for `row`, of the asked positions
    /// where fewer were asked.
    ///
    /// # Panics
    /// If `row` is outside the batch, or the graph has made targets of the logits.
    pub fn states(&self, row: usize) -> &[f32] {
        let places = self.asked.map_or(row * self.answers..(row + 1) * self.answers, |asked| asked.of_row(row));
        &self.values[places.start * self.width..places.end * self.width]
    }

    /// `[length, hidden_size]`, padding included: the hidden state of the `index`-th of `Teacher::hidden_layers` for `row`.
    ///
    /// # Panics
    /// If `index` or `row` is outside the batch.
    pub fn hidden(&self, index: usize, row: usize) -> &[f32] {
        let size = self.length * self.hidden_size;
        &self.hidden[index][row * size..(row + 1) * size]
    }
}

/// The values of output `name`, which must have the dimensions `outer` and a width; a `width` of 0 is set.
pub(super) fn tensor<'a>(
    model: &Path,
    outputs: &'a SessionOutputs<'_>,
    name: &str,
    outer: &[usize],
    width: &mut usize,
    remedy: &str,
) -> Result<Cow<'a, [f32]>> {
    let refuse = |expected: String, found: String| Err(Error::data(model, format!("output {name}"), expected, found, remedy));
    let Some(value) = outputs.get(name) else {
        return refuse("an output of that name".to_owned(), format!("{:?}", outputs.keys().collect::<Vec<_>>()));
    };
    let (shape, values) = floats(model, name, value, remedy)?;
    let dims: Vec<usize> = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    match dims.split_last() {
        Some((last, others)) if others == outer && *last > 0 && (*width == 0 || width == last) => *width = *last,
        _ => {
            let outer: Vec<String> = outer.iter().map(usize::to_string).collect();
            let last = if *width == 0 { "any".to_owned() } else { width.to_string() };
            return refuse(format!("shape [{}, {last}]", outer.join(", ")), format!("{dims:?}"));
        }
    }
    Ok(values)
}

fn floats<'a>(model: &Path, name: &str, value: &'a DynValue, remedy: &str) -> Result<(Vec<i64>, Cow<'a, [f32]>)> {
    let failed = |error: ort::Error| Error::library(format!("read output {name} of"), model)(error);
    match value.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {
            let (shape, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
            Ok((shape.to_vec(), Cow::Borrowed(values)))
        }
        Some(TensorElementType::Float16) => {
            let (shape, values) = value.try_extract_tensor::<half::f16>().map_err(failed)?;
            let mut converted = vec![0.0; values.len()];
            values.convert_to_f32_slice(&mut converted);
            Ok((shape.to_vec(), Cow::Owned(converted)))
        }
        _ => Err(Error::data(model, format!("output {name}"), "a float32 or float16 tensor", value.dtype().to_string(), remedy)),
    }
}
