//! One batch's outputs, checked for name, type and shape before anything is read.

use super::prepare::LOGITS_OUTPUT;
use half::slice::HalfFloatSliceExt;
use logitcache::error::{Error, Result};
use ort::session::SessionOutputs;
use ort::value::{DynValue, TensorElementType};
use std::borrow::Cow;
use std::path::Path;

/// A view of one batch's outputs; rows may be read from several threads. float32 outputs are not copied, float16 ones are converted once.
#[derive(Debug)]
pub struct Answer<'a> {
    rows: usize,
    length: usize,
    vocabulary_size: usize,
    hidden_size: usize,
    logits: Cow<'a, [f32]>,
    hidden: Vec<Cow<'a, [f32]>>,
}

impl<'a> Answer<'a> {
    /// Checks the outputs of a batch of `rows` sequences of `length` tokens. `hidden` names the hidden states. Sizes that are 0 are taken from the outputs.
    pub(super) fn new(
        model: &Path,
        outputs: &'a SessionOutputs<'_>,
        [rows, length]: [usize; 2],
        hidden: &[String],
        [mut vocabulary_size, mut hidden_size]: [usize; 2],
    ) -> Result<Self> {
        let logits = tensor(model, outputs, LOGITS_OUTPUT, [rows, length], &mut vocabulary_size)?;
        let hidden = hidden.iter().map(|name| tensor(model, outputs, name, [rows, length], &mut hidden_size)).collect::<Result<_>>()?;
        Ok(Self { rows, length, vocabulary_size, hidden_size, logits, hidden })
    }

    /// Sequences of the batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens per sequence, padding included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Length of a logits row.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Width of a hidden state; 0 where none was asked for.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// `[vocabulary]`: the logits at `position` of `row`, undivided, as the teacher gave them: they may hold NaN.
    ///
    /// # Panics
    /// If `row` or `position` is outside the batch.
    pub fn logits(&self, row: usize, position: usize) -> &[f32] {
        assert!(row < self.rows && position < self.length, "row {row}, position {position} of a batch [{}, {}]", self.rows, self.length);
        let start = (row * self.length + position) * self.vocabulary_size;
        &self.logits[start..start + self.vocabulary_size]
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

/// The values of output `name`, which must be `[rows, length, width]`; a `width` of 0 is set.
fn tensor<'a>(
    model: &Path,
    outputs: &'a SessionOutputs<'_>,
    name: &str,
    [rows, length]: [usize; 2],
    width: &mut usize,
) -> Result<Cow<'a, [f32]>> {
    let refuse = |expected: String, found: String| Err(Error::data(model, format!("output {name}"), expected, found, remedy(name)));
    let Some(value) = outputs.get(name) else {
        return refuse("an output of that name".to_owned(), format!("{:?}", outputs.keys().collect::<Vec<_>>()));
    };
    let (shape, values) = floats(model, name, value)?;
    let dims: Vec<usize> = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    match dims[..] {
        [r, l, w] if r == rows && l == length && w > 0 && (*width == 0 || *width == w) => *width = w,
        _ => {
            let last = if *width == 0 { "any".to_owned() } else { width.to_string() };
            return refuse(format!("shape [{rows}, {length}, {last}]"), format!("{dims:?}"));
        }
    }
    Ok(values)
}

fn floats<'a>(model: &Path, name: &str, value: &'a DynValue) -> Result<(Vec<i64>, Cow<'a, [f32]>)> {
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
        _ => Err(Error::data(model, format!("output {name}"), "a float32 or float16 tensor", value.dtype().to_string(), remedy(name))),
    }
}

fn remedy(name: &str) -> &'static str {
    if name == LOGITS_OUTPUT {
        "export the model with its language-modelling head"
    } else {
        "name another tensor with --hidden-tensor LAYER=NAME"
    }
}
