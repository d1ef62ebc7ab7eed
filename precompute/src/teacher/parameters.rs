//! How many parameters a teacher has.

use logitcache::error::{Error, Result};
use logitcache::onnx::Model;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// No real header comes near; a file that claims more is no safetensors file.
const LARGEST_HEADER_BYTES: u64 = 100 << 20;

/// Elements of the floating-point tensors of `model.safetensors` beside the model, where that exists: what the teacher's own framework counts.
/// Otherwise those of the graph's initialisers, in which a decoder tied to the embeddings usually counts twice.
///
/// # Errors
/// The safetensors file cannot be read, or is none.
pub(super) fn count(model: &Model) -> Result<u64> {
    let beside = model.path().with_file_name("model.safetensors");
    if beside.is_file() { of_safetensors(&beside) } else { Ok(model.weight_elements()) }
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
}

fn of_safetensors(path: &Path) -> Result<u64> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io("read the header of", path))?;
    let length = u64::from_le_bytes(length);
    if length > LARGEST_HEADER_BYTES {
        let remedy = "save the teacher again, or move this file elsewhere: it is only used to count parameters";
        return Err(Error::data(path, "header length", format!("at most {LARGEST_HEADER_BYTES} bytes"), length.to_string(), remedy));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(Error::io("read the header of", path))?;
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(Error::library("parse the header of", path))?;
    let mut total = 0u64;
    for (_, value) in fields.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor = serde_json::from_value(value).map_err(Error::library("parse the header of", path))?;
        if tensor.dtype.starts_with('F') || tensor.dtype.starts_with("BF") {
            total = total.saturating_add(tensor.shape.iter().fold(1, |product: u64, dim| product.saturating_mul(*dim)));
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_tensors_are_counted() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]},
            "b":{"dtype":"BF16","shape":[],"data_offsets":[48,50]},"ids":{"dtype":"I64","shape":[512],"data_offsets":[50,4146]}}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(of_safetensors(file.path()).unwrap(), 13);
    }

    #[test]
    fn other_files_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [&b"abc"[..], b"version https://git-lfs", &[255; 16], &[4, 0, 0, 0, 0, 0, 0, 0, b'{', b'}', b'x', b'x']] {
            std::fs::write(file.path(), bytes).unwrap();
            assert!(of_safetensors(file.path()).is_err(), "{bytes:?}");
        }
    }
}
