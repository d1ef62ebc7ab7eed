//! Named tensors of a `.safetensors` file, read one at a time: the header first, then only the bytes of the tensors that are asked for.

use super::tensor_source::TensorSource;
use half::{bf16, f16};
use logitcache::error::{Error, Result};
use safetensors::tensor::{Dtype, Metadata};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The format's own bound on the header, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;

/// The length field in front of the header, in bytes.
const LENGTH_FIELD: u64 = 8;

/// An open file whose header has been checked against the file's length.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens `path`, or `model.safetensors` in it where it is a directory, and reads the header alone.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, or whose header does not describe its bytes exactly.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let bytes = file.metadata().map_err(Error::io("read", &path))?.len();
        let damaged = |field: &str, expected: String, found: String| {
            Error::data(&path, field, expected, found, "the file is cut short or is no safetensors file: copy it again")
        };
        if bytes < LENGTH_FIELD {
            return Err(damaged("length", "at least 8 bytes".into(), format!("{bytes}")));
        }
        let mut length = [0; LENGTH_FIELD as usize];
        file.read_exact(&mut length).map_err(Error::io("read", &path))?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER || length > bytes - LENGTH_FIELD {
            let expected = format!("at most {} bytes", LARGEST_HEADER.min(bytes - LENGTH_FIELD));
            return Err(damaged("header", expected, format!("{length} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io("read", &path))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(Error::library("parse the safetensors header of", &path))?;
        let data_start = LENGTH_FIELD + length;
        let expected = data_start.saturating_add(metadata.data_len() as u64);
        if bytes != expected {
            return Err(damaged("length", format!("{expected} bytes by its header"), format!("{bytes} bytes")));
        }
        Ok(Self { path, file, metadata, data_start })
    }

    /// Reads one tensor of this shape as float32, row-major. float16 and bfloat16 widen exactly.
    ///
    /// # Errors
    /// No such tensor, another shape than `shape`, another type than float32, float16 or bfloat16, or a NaN or infinity among the values.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.read_shaped(name, shape)
    }
}

impl TensorSource for TensorFile {
    fn path(&self) -> &Path {
        &self.path
    }

    /// In the order of their bytes.
    fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.metadata.info(name).map(|info| info.shape.clone())
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let refuse = |path: &Path, expected: &str, found: String, remedy: &str| {
            Error::data(path, format!("tensor {name}"), expected, found, remedy.to_owned())
        };
        let Some(info) = self.metadata.info(name) else { return Err(self.refuse_absent(name, &[])) };
        let decode = match info.dtype {
            Dtype::F32 => |bytes: &[u8]| -> Vec<f32> { elements(bytes).map(f32::from_le_bytes).collect() },
            Dtype::F16 => |bytes: &[u8]| elements(bytes).map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
            Dtype::BF16 => |bytes: &[u8]| elements(bytes).map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            other => {
                let remedy = "save the model in one of these types";
                return Err(refuse(&self.path, "float32, float16 or bfloat16", format!("{other:?}"), remedy));
            }
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(Error::io("seek in", &self.path))?;
        self.file.read_exact(&mut bytes).map_err(Error::io("read", &self.path))?;
        let values = decode(&bytes);
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            let found = format!("{} at element {i}", values[i]);
            return Err(refuse(&self.path, "finite values", found, "the model is damaged: save it again"));
        }
        Ok(values)
    }
}

/// The bytes in groups of one element; a rest shorter than that does not occur, as the header's sizes have been checked.
fn elements<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn written(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        (directory, path)
    }

    fn three_types() -> (tempfile::TempDir, PathBuf) {
        let values = [1.5f32, -2.0, 0.25, 8.0];
        written(&[
            ("f32", Dtype::F32, vec![2, 2], values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("f16", Dtype::F16, vec![4], values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            ("bf16", Dtype::BF16, vec![4, 1], values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
            ("i64", Dtype::I64, vec![1], vec![0; 8]),
            ("nan", Dtype::F32, vec![2], [0.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect()),
        ])
    }

    #[test]
    fn the_three_types_read_the_same_values() {
        let (directory, path) = three_types();
        for path in [path.as_path(), directory.path()] {
            let mut file = TensorFile::open(path).unwrap();
            for (name, shape) in [("f16", &[4][..]), ("f32", &[2, 2]), ("bf16", &[4, 1])] {
                assert_eq!(file.read(name, shape).unwrap(), [1.5, -2.0, 0.25, 8.0], "{name}");
            }
        }
    }

    #[test]
    fn a_refusal_names_file_tensor_and_shapes() {
        let (_directory, path) = three_types();
        let mut file = TensorFile::open(&path).unwrap();
        let mut message = |name: &str, shape: &[usize]| file.read(name, shape).unwrap_err().to_string();
        let shapes = message("f32", &[4]);
        assert!(shapes.contains("model.safetensors: tensor f32: expected shape [4], found shape [2, 2]"), "{shapes}");
        assert!(message("none", &[4]).contains("tensor none: expected shape [4], found no such tensor"));
        assert!(message("i64", &[1]).contains("expected float32, float16 or bfloat16, found I64"));
        assert!(message("nan", &[2]).contains("expected finite values, found NaN at element 1"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let (directory, path) = three_types();
        let whole = std::fs::read(&path).unwrap();
        let cut = directory.path().join("cut.safetensors");
        for length in [0, 7, 8, 40, whole.len() - 1] {
            std::fs::write(&cut, &whole[..length]).unwrap();
            let error = TensorFile::open(&cut).unwrap_err();
            assert!(error.to_string().contains("cut.safetensors"), "{length} bytes: {error}");
        }
        std::fs::write(&cut, [whole.as_slice(), b"x"].concat()).unwrap();
        assert!(TensorFile::open(&cut).is_err(), "a byte too many");
        std::fs::write(&cut, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        assert!(TensorFile::open(&cut).is_err(), "a header of 2^64 bytes");
    }
}
