//! First weights out of a teacher's `model.onnx`: its initialisers under their Hugging Face names.
//!
//! `onnx_names`, beside this file, says which initialiser is which parameter. Values are read as they are asked for, from the file
//! or the one beside it; those that nobody asks for stay there.

use super::onnx_names::{Found, parameters};
use super::tensor_source::TensorSource;
use half::{bf16, f16};
use logitcache::error::{Error, Result};
use logitcache::onnx::messages::{EXTERNAL, TensorProto};
use logitcache::onnx::{Graph, read_outline};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// The file in a directory of an export.
pub const ONNX_FILE: &str = "model.onnx";

/// Operations that hold weights in a form that cannot be taken apart with certainty.
const PACKED: [&str; 7] =
    ["Attention", "QAttention", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"];

const REMEDY: &str = "export the teacher again without optimisation, or give its model.safetensors";

/// A model's parameters.
#[derive(Debug)]
pub struct OnnxTensors {
    path: PathBuf,
    found: BTreeMap<String, Found>,
}

impl OnnxTensors {
    /// Reads the graph of an exported model.
    ///
    /// # Errors
    /// A file that cannot be read or is no ONNX model; one whose weights were packed together or quantised by an optimiser.
    pub fn open(path: &Path) -> Result<Self> {
        let outline = read_outline(path)?;
        let graph = Graph::new(&outline);
        let packed = |op_type: &str, domain: &str| PACKED.contains(&op_type) && (domain == "com.microsoft" || op_type != "Attention");
        if let Some(node) = graph.nodes().iter().find(|node| packed(&node.op_type, &node.domain)) {
            let name = if node.name.is_empty() { node.outputs.first().map_or("", String::as_str) } else { &node.name };
            let found = format!("{} with packed or quantised weights", node.op_type);
            return Err(Error::data(path, format!("node {name}"), "linear layers as MatMul or Gemm of float weights", found, REMEDY));
        }
        let found = parameters(&graph, &outline.initializers);
        Ok(Self { path: path.to_owned(), found })
    }

    fn refuse(&self, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::data(self.path(), format!("tensor {name}"), expected, found, REMEDY)
    }

    /// The bytes of a tensor that are in no field of its own.
    fn bytes(&self, name: &str, tensor: &TensorProto, length: usize) -> Result<Vec<u8>> {
        if tensor.data_location != EXTERNAL {
            return Ok(tensor.raw_data.to_vec());
        }
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
        let location = Path::new(entry("location").unwrap_or_default());
        let inside = location.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.as_os_str().is_empty() || !inside {
            return Err(self.refuse(name, "values in a file beside the model", location.display().to_string()));
        }
        let number = |key: &str, otherwise: u64| match entry(key) {
            None => Ok(otherwise),
            Some(text) => text.parse().map_err(|_| self.refuse(name, format!("a number of bytes as {key}"), text)),
        };
        let (offset, stored) = (number("offset", 0)?, number("length", length as u64)?);
        if stored != length as u64 {
            return Err(self.refuse(name, format!("{length} bytes for its shape"), format!("{stored} bytes")));
        }
        let path = self.path().with_file_name(location);
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let total = file.metadata().map_err(Error::io("read", &path))?.len();
        if offset.checked_add(stored).is_none_or(|end| end > total) {
            let found = format!("{total} bytes");
            return Err(Error::data(&path, format!("tensor {name}"), format!("{stored} bytes from {offset} on"), found, REMEDY));
        }
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(offset)).map_err(Error::io("seek in", &path))?;
        file.read_exact(&mut bytes).map_err(Error::io("read", &path))?;
        Ok(bytes)
    }

    fn values(&self, name: &str, tensor: &TensorProto) -> Result<Vec<f32>> {
        let sizes = tensor.dims.iter().map(|size| usize::try_from(*size).ok());
        let elements = sizes.into_iter().try_fold(1usize, |product, size| product.checked_mul(size?));
        let width = match tensor.data_type {
            1 => 4,
            10 | 16 => 2,
            other => return Err(self.refuse(name, "float32, float16 or bfloat16", format!("ONNX's element type {other}"))),
        };
        let length = elements.and_then(|elements| elements.checked_mul(width));
        let (Some(elements), Some(length)) = (elements, length) else {
            return Err(self.refuse(name, "a shape of counts", format!("{:?}", tensor.dims)));
        };
        let in_fields = tensor.data_location != EXTERNAL && tensor.raw_data.is_empty();
        let bytes = if in_fields { Vec::new() } else { self.bytes(name, tensor, length)? };
        let halves = tensor.int32_data.iter().map(|bits| *bits as u16);
        let values: Vec<f32> = match (tensor.data_type, in_fields) {
            (1, true) => tensor.float_data.clone(),
            (10, true) => halves.map(|bits| f16::from_bits(bits).to_f32()).collect(),
            (_, true) => halves.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            (1, false) => bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect(),
            (10, false) => bytes.as_chunks().0.iter().map(|value| f16::from_le_bytes(*value).to_f32()).collect(),
            (_, false) => bytes.as_chunks().0.iter().map(|value| bf16::from_le_bytes(*value).to_f32()).collect(),
        };
        if values.len() != elements || !(in_fields || bytes.len() == length) {
            return Err(self.refuse(name, format!("{elements} values"), values.len().to_string()));
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(i) => Err(self.refuse(name, "finite values", format!("{} at element {i}", values[i]))),
            None => Ok(values),
        }
    }
}

impl TensorSource for OnnxTensors {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.found.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let found = self.found.get(name)?;
        let mut shape: Vec<usize> = found.tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        if found.transposed {
            shape.reverse();
        }
        Some(shape)
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let Some(found) = self.found.get(name) else { return Err(self.refuse_absent(name, &[])) };
        let values = self.values(name, &found.tensor)?;
        match (found.transposed, &found.tensor.dims[..]) {
            (true, [_, columns]) => {
                let columns = *columns as usize;
                Ok((0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect())
            }
            _ => Ok(values),
        }
    }

    fn gives_outputs_first(&self) -> bool {
        true
    }

    fn refuse_absent(&self, name: &str, shape: &[usize]) -> Error {
        let looked_for = match name.strip_suffix(".weight") {
            Some(module) => {
                format!("an initialiser of this name, or a MatMul in the module {module} or whose product {module}.bias is added to")
            }
            None => "an initialiser of this name, or one that a node of its module reads".to_owned(),
        };
        self.refuse(name, format!("{looked_for}, of shape {shape:?}"), format!("none among {} parameters", self.found.len()))
    }
}

#[cfg(test)]
mod tests;
