//! A teacher's file as the first values of a student, whichever kind both are of.

use super::config::StudentConfig;
use super::decoder::DecoderTensors;
use super::init::{FirstWeights, TeacherTensors};
use super::layout::{ParameterSpec, layout};
use logitcache::error::Result;
use logitcache::fingerprint::{Fingerprint, Hasher};
use std::path::Path;

/// A teacher's file, ready to give each parameter its first values.
pub enum FirstValues {
    /// Of an encoder.
    Encoder(Box<TeacherTensors>),
    /// Of a causal language model.
    Decoder(DecoderTensors),
}

impl FirstValues {
    /// Opens the model in `path`: a `.safetensors` or `.onnx` file, or a directory with one (safetensors preferred).
    ///
    /// # Errors
    /// As [`TeacherTensors::open`] and [`DecoderTensors::open`].
    pub fn open(path: &Path, student: &StudentConfig, first: &FirstWeights) -> Result<Self> {
        match student.family.is_decoder() {
            true => DecoderTensors::open(path, student, first).map(Self::Decoder),
            false => TeacherTensors::open(path, student, first).map(|tensors| Self::Encoder(Box::new(tensors))),
        }
    }

    /// The teacher's layer behind each set of the student's layer parameters.
    pub fn layers(&self) -> &[usize] {
        match self {
            Self::Encoder(tensors) => tensors.layers(),
            Self::Decoder(tensors) => tensors.layers(),
        }
    }

    /// The first values of one parameter, row-major.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an unknown type, or holds a NaN or infinity.
    pub fn values(&mut self, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        match self {
            Self::Encoder(tensors) => tensors.values(parameter),
            Self::Decoder(tensors) => tensors.values(parameter),
        }
    }

    /// The digest of all first values of `student`: of what is taken, whatever else the file holds. A file's own digest would read all of it.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub fn digest(&mut self, student: &StudentConfig) -> Result<Fingerprint> {
        let (mut hasher, mut bytes) = (Hasher::new(), Vec::new());
        for parameter in layout(student) {
            bytes.clear();
            bytes.extend(self.values(&parameter)?.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update_part(parameter.name.as_bytes());
            hasher.update_part(&bytes);
        }
        Ok(hasher.finish())
    }
}
