//! Named float32 tensors written as a `.safetensors` file, one at a time: the counterpart of [`super::tensor_file`].

use logitcache::atomic_file::write_atomically;
use logitcache::error::{Error, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// A tensor's name and shape.
pub type Named = (String, Vec<usize>);

/// Values that are turned into bytes together: 1 MiB of them.
const VALUES_AT_A_TIME: usize = 1 << 18;

/// Takes the next of a tensor's values, row-major.
pub type Sink<'a> = dyn FnMut(&[f32]) -> Result<()> + 'a;

/// Publishes a file at `path`: header (its length in 8 bytes, JSON, padded to a multiple of 8), then the values in the order of `tensors`,
/// little-endian. `give(i, sink)` hands those of tensor i to `sink` from where they lie, as many as its shape has: a copy of an embedding table
/// would be the peak of a whole training.
///
/// # Errors
/// Whatever `give` returns, values of another number than the shape's, a refusal of the file system; an existing file is then as it was.
pub fn write_tensors(path: &Path, tensors: &[Named], give: impl Fn(usize, &mut Sink) -> Result<()>) -> Result<()> {
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let mut end = 0;
    let infos = tensors.iter().map(|(name, shape)| {
        let start = end;
        end += elements(shape) * size_of::<f32>();
        (name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) })
    });
    // Without this entry `transformers` refuses the file.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(Error::library("describe the tensors of", path))?;
    let mut header = serde_json::to_vec(&metadata).map_err(Error::library("describe the tensors of", path))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |file| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", path));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        let mut bytes = Vec::with_capacity(VALUES_AT_A_TIME * size_of::<f32>());
        for (i, (name, shape)) in tensors.iter().enumerate() {
            let mut count = 0;
            give(i, &mut |values| {
                count += values.len();
                values.chunks(VALUES_AT_A_TIME).try_for_each(|values| {
                    bytes.clear();
                    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
                    write(&bytes)
                })
            })?;
            if count != elements(shape) {
                return Err(Error::invalid(name, format!("{} values", elements(shape)), count.to_string()));
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::student::tensor_file::TensorFile;

    #[test]
    fn what_is_written_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.safetensors");
        let tensors = [("b".to_owned(), vec![2, 2]), ("a".to_owned(), vec![3])];
        let stored = [vec![1.0f32, -0.5, f32::MIN_POSITIVE, 3e38], vec![0.1, 0.2, 0.3]];
        write_tensors(&path, &tensors, |i, sink| sink(&stored[i])).unwrap();
        let mut file = TensorFile::open(&path).unwrap();
        for ((name, shape), stored) in tensors.iter().zip(&stored) {
            assert_eq!(&file.read(name, shape).unwrap(), stored);
        }
        let error = write_tensors(&path, &tensors, |_, sink| sink(&[0.0])).unwrap_err().to_string();
        assert!(error.contains("b: expected 4 values, found 1"), "{error}");
    }
}
