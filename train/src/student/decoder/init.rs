//! A decoder's first weights out of a decoder's file, of which only the tensors taken are read.
//!
//! Layers are chosen as for the encoders ([`default_layers`]). Widths are the teacher's: a head's dimensions are turned in pairs, whose
//! frequencies follow from their number, so that a choice among them is another model.

use super::roles::{DecoderPart, DecoderRole};
use super::settings::DecoderConfig;
use crate::student::config::StudentConfig;
use crate::student::family::Family;
use crate::student::init::{FirstWeights, default_layers};
use crate::student::layout::ParameterSpec;
use crate::student::names::Role;
use crate::student::tensor_source::{TensorSource, open_tensors};
use logitcache::error::{Error, Result};
use std::path::Path;

/// A decoder's file, ready to give each parameter of a student its first values.
pub struct DecoderTensors {
    file: Box<dyn TensorSource>,
    family: Family,
    /// What the file lacks in front of every name: `transformer.` where the model was saved without its head.
    lacking: &'static str,
    layers: Vec<usize>,
}

const REMEDY: &str = "give the causal language model's own file, or start at random";

impl DecoderTensors {
    /// Opens the causal language model in `path`: a `.safetensors` or `.onnx` file, or a directory with one (safetensors preferred).
    ///
    /// # Errors
    /// A file that cannot be read, names of another family, layers that the file does not have or whose number is not the student's,
    /// [`Error::Usage`] for a student of other widths.
    pub fn open(path: &Path, student: &StudentConfig, first: &FirstWeights) -> Result<Self> {
        Self::new(open_tensors(path)?, student, first)
    }

    /// [`open`](Self::open), of tensors from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(file: Box<dyn TensorSource>, student: &StudentConfig, first: &FirstWeights) -> Result<Self> {
        let family = student.family;
        let words = format!("{}.weight", DecoderRole::Words.name(family));
        let base = if family == Family::Gpt2 { "transformer." } else { "model." };
        let lacking = match (file.contains(&words), file.contains(words.strip_prefix(base).unwrap_or(&words))) {
            (true, _) => "",
            (false, true) => base,
            (false, false) => {
                let found = file.names().first().map_or("no tensor".to_owned(), |name| format!("tensors such as {name}"));
                return Err(Error::data(file.path(), "tensor names", format!("{words}, of a {family}"), found, REMEDY));
            }
        };
        let mut tensors = Self { file, family, lacking, layers: Vec::new() };
        let held = (0..).take_while(|layer| tensors.shape(DecoderRole::Layer(*layer, DecoderPart::AttentionOutput)).is_some()).count();
        tensors.check_widths(student)?;
        let (path, count) = (tensors.file.path().display(), student.num_hidden_layers);
        tensors.layers = match &first.layers {
            None => default_layers(held, count)?,
            Some(layers) if layers.len() != count => {
                let expected = format!("{count} layers, one for each of the student's");
                return Err(Error::usage("--init-layers", expected, format!("{layers:?}"), "list as many as --layers asks for"));
            }
            Some(layers) if layers.iter().any(|layer| *layer >= held) => {
                let expected = format!("layers below {held}, which {path} has");
                return Err(Error::usage("--init-layers", expected, format!("{layers:?}"), "count the teacher's layers from 0"));
            }
            Some(layers) => layers.clone(),
        };
        Ok(tensors)
    }

    /// The teacher's layer behind each of the student's.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The first values of one parameter, row-major.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an unknown type, or holds a NaN or infinity.
    pub fn values(&mut self, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        let Role::Decoder(role) = parameter.role else {
            return Err(Error::invalid(&parameter.name, "a decoder's parameter", format!("{:?}", parameter.role)));
        };
        let role = match role {
            DecoderRole::Layer(layer, part) => DecoderRole::Layer(self.layers[layer], part),
            // A teacher whose head is tied has it once.
            DecoderRole::Head if self.shape(role).is_none() => DecoderRole::Words,
            role => role,
        };
        let name = self.name(role, parameter.bias);
        let shape = &parameter.shape;
        if role == DecoderRole::Positions {
            let rows = self.shape(role).and_then(|held| held.first().copied()).unwrap_or(0).max(shape[0]);
            let mut values = self.file.read_shaped(&name, &[rows, shape[1]])?;
            values.truncate(shape[0] * shape[1]);
            return Ok(values);
        }
        let is_map = matches!(role, DecoderRole::Layer(..)) && shape.len() == 2;
        if self.family == Family::Gpt2 && is_map && self.file.gives_outputs_first() {
            return Ok(turned(&self.file.read_shaped(&name, &[shape[1], shape[0]])?, shape[0]));
        }
        self.file.read_shaped(&name, shape)
    }

    fn name(&self, role: DecoderRole, bias: bool) -> String {
        let name = format!("{}.{}", role.name(self.family), if bias { "bias" } else { "weight" });
        name.strip_prefix(self.lacking).map(str::to_owned).unwrap_or(name)
    }

    fn shape(&self, role: DecoderRole) -> Option<Vec<usize>> {
        self.file.shape(&self.name(role, false))
    }

    /// Other widths are a matter of the flag that set them.
    fn check_widths(&self, student: &StudentConfig) -> Result<()> {
        let Some(decoder) = &student.decoder else { return Ok(()) };
        let path = self.file.path().display();
        let words = self.shape(DecoderRole::Words).unwrap_or_default();
        if words.first() != Some(&student.vocab_size) {
            let field = format!("tensor {}", self.name(DecoderRole::Words, false));
            let remedy = "start from the cache's teacher or a model with its tokenizer, or at random";
            return Err(Error::data(self.file.path(), field, format!("{} rows to use", student.vocab_size), format!("{words:?}"), remedy));
        }
        for (flag, part, role) in [
            ("--hidden-size", None, DecoderRole::Words),
            ("--heads", Some(DecoderPart::AttentionOutput), DecoderRole::Layer(0, DecoderPart::AttentionOutput)),
            ("--feed-forward", Some(DecoderPart::Up), DecoderRole::Layer(0, DecoderPart::Up)),
        ] {
            let (held, wanted) = (self.sorted_shape(role), sorted(student, decoder, part));
            if held.as_ref().is_some_and(|held| *held != wanted) {
                let expected = format!("that of {path}, whose {} is {:?}", self.name(role, false), held.unwrap_or_default());
                let remedy = "leave it out for the teacher's widths, or leave --init-from out for random weights";
                return Err(Error::usage(flag, expected, format!("{wanted:?}"), remedy));
            }
        }
        Ok(())
    }

    /// Either way round.
    fn sorted_shape(&self, role: DecoderRole) -> Option<Vec<usize>> {
        let mut shape = self.shape(role)?;
        shape.sort_unstable();
        Some(shape)
    }
}

fn sorted(student: &StudentConfig, decoder: &DecoderConfig, part: Option<DecoderPart>) -> Vec<usize> {
    let (rows, columns) = part.map_or((student.vocab_size, student.hidden_size), |part| part.sizes(student, decoder));
    let mut shape = vec![rows, columns];
    shape.sort_unstable();
    shape
}

/// A matrix row-major, from one of `columns` columns: what was column i becomes row i.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}
