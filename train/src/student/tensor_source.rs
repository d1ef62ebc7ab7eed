//! Where first weights come from: named tensors of some file, read one at a time.

use super::onnx_tensors::{ONNX_FILE, OnnxTensors};
use super::tensor_file::TensorFile;
use logitcache::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The file of a directory that first weights are taken from: `model.onnx` where it is the only one of the two, else `model.safetensors`. A file
/// is itself.
pub fn weights_file(path: &Path) -> PathBuf {
    let (safetensors, onnx) = (path.join("model.safetensors"), path.join(ONNX_FILE));
    match path.is_dir() {
        false => path.to_owned(),
        true if !safetensors.is_file() && onnx.is_file() => onnx,
        true => safetensors,
    }
}

/// Opens a model's file, ONNX by its ending and safetensors otherwise, or the one of a directory.
///
/// # Errors
/// As [`TensorFile::open`] and [`OnnxTensors::open`].
pub fn open_tensors(path: &Path) -> Result<Box<dyn TensorSource>> {
    let path = weights_file(path);
    match path.extension().is_some_and(|extension| extension == "onnx") {
        true => Ok(Box::new(OnnxTensors::open(&path)?)),
        false => Ok(Box::new(TensorFile::open(&path)?)),
    }
}

/// Named float tensors of a model's file, under the names that Hugging Face gives them.
pub trait TensorSource {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// Every tensor's name.
    fn names(&self) -> Vec<String>;

    /// The shape of a tensor, a linear layer's as `[output, input]`; `None` where there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads one tensor as float32, row-major.
    ///
    /// # Errors
    /// No such tensor, a type that is no float, a NaN or infinity, or a refusal of the file system.
    fn read(&mut self, name: &str) -> Result<Vec<f32>>;

    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Whether linear maps are given `[out, in]` whatever their model's own way, which in a GPT-2 is `[in, out]`.
    fn gives_outputs_first(&self) -> bool {
        false
    }

    /// [`read`](Self::read), for a tensor that must have this shape.
    ///
    /// # Errors
    /// As [`read`](Self::read); another shape.
    fn read_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match self.shape(name) {
            Some(found) if found == shape => self.read(name),
            Some(found) => Err(self.refuse_shape(name, shape, &found)),
            None => Err(self.refuse_absent(name, shape)),
        }
    }

    /// What to say of a tensor that has another shape.
    fn refuse_shape(&self, name: &str, shape: &[usize], found: &[usize]) -> Error {
        let remedy = "start from a model of the student's width, feed-forward width, vocabulary and length, or at random";
        Error::data(self.path(), format!("tensor {name}"), format!("shape {shape:?}"), format!("shape {found:?}"), remedy)
    }

    /// What to say of a tensor that is missing.
    fn refuse_absent(&self, name: &str, shape: &[usize]) -> Error {
        let found = format!("no such tensor among {}", self.names().len());
        let remedy = "give a masked language model's file, its head included";
        Error::data(self.path(), format!("tensor {name}"), format!("shape {shape:?}"), found, remedy)
    }
}
