//! Reading candle's memory as slices and making new buffers without filling them twice.

use super::element::Element;
use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A refusal that names the operation.
pub(crate) fn failure(operation: &str, message: impl std::fmt::Display) -> Error {
    Error::Msg(format!("{operation}: {message}"))
}

/// Runs an expression with `T` as the number type of a tensor, `f32` or `f64`; other types are refused.
macro_rules! for_dtype {
    ($operation:expr, $dtype:expr, $element:ident => $run:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $element = f32;
                $run
            }
            candle_core::DType::F64 => {
                type $element = f64;
                $run
            }
            other => Err($crate::kernels::storage::failure($operation, format!("it runs on f32 or f64, not {other:?}"))),
        }
    };
}
pub(crate) use for_dtype;

/// Checks an activation and gives its `(rows, width)`.
pub(crate) fn rows_and_width(operation: &str, x: &Tensor) -> Result<(usize, usize)> {
    if !matches!(x.device(), Device::Cpu) {
        return Err(failure(operation, format!("it runs on the CPU, and the tensor is on {:?}", x.device().location())));
    }
    if !x.is_contiguous() {
        return Err(failure(operation, "it needs a contiguous tensor"));
    }
    match *x.dims() {
        [rows, width] if width > 0 => Ok((rows, width)),
        _ => Err(failure(operation, format!("it needs [rows, width], found {:?}", x.dims()))),
    }
}

/// Checks that a parameter has the number type of the activation and the shape an operation needs.
pub(crate) fn check_parameter(operation: &str, parameter: &super::Parameter, dtype: DType, shape: &[usize]) -> Result<()> {
    if parameter.dtype() != dtype || parameter.shape().dims() != shape {
        let found = format!("{:?} {:?}", parameter.dtype(), parameter.shape().dims());
        return Err(failure(operation, format!("{} must be {dtype:?} {shape:?}, found {found}", parameter.name())));
    }
    Ok(())
}

/// The numbers of a contiguous operand.
pub(crate) fn slice_of<'a, T: Element>(operation: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| failure(operation, "it needs a contiguous tensor"))?;
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// Reads a contiguous tensor on the CPU.
pub(crate) fn with_slice<T: Element, R>(operation: &str, x: &Tensor, read: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(read(slice_of(operation, storage, layout)?)),
        _ => Err(failure(operation, "it runs on the CPU")),
    }
}

/// A tensor around a buffer, without copying.
pub(crate) fn tensor_of<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// A buffer whose numbers `write` puts there. The caller's promise: `write` initialises all of them.
///
/// # Safety
/// `write` must initialise every element of the slice it is given.
pub(crate) unsafe fn written<T: Element>(length: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(length);
    write(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: the capacity is there, and the caller promises that `write` initialised the first `length` elements.
    unsafe { values.set_len(length) };
    values
}

/// A buffer filled by chunks in parallel: `fill(chunk, companion)`. A chunk is cleared just before it is filled, while it is in the cache, so
/// the buffer's memory is passed over once.
pub(crate) fn filled_by_chunks<T: Element, C: Send>(
    length: usize,
    chunk: usize,
    companions: impl IndexedParallelIterator<Item = C>,
    fill: impl Fn(&mut [T], C) + Send + Sync,
) -> Vec<T> {
    let write = |values: &mut [MaybeUninit<T>]| {
        values.par_chunks_mut(chunk).zip_eq(companions).for_each(|(values, companion)| {
            values.fill(MaybeUninit::new(T::zero()));
            // SAFETY: the line above initialised every element of this chunk, and `MaybeUninit<T>` has the layout of `T`.
            let values = unsafe { &mut *(std::ptr::from_mut(values) as *mut [T]) };
            fill(values, companion);
        });
    };
    // SAFETY: the chunks cover the slice and each is initialised in full; `zip_eq` panics where there are fewer companions than chunks.
    unsafe { written(length, write) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_buffer() {
        let values: Vec<f64> = filled_by_chunks(7, 3, (0..3).into_par_iter(), |chunk, i| chunk.fill(i as f64));
        assert_eq!(values, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0]);
    }

    #[test]
    fn activations_are_checked() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(rows_and_width("test", &x).unwrap(), (2, 3));
        assert!(rows_and_width("test", &x.t().unwrap()).unwrap_err().to_string().contains("contiguous"));
        assert!(rows_and_width("test", &x.flatten_all().unwrap()).unwrap_err().to_string().contains("[rows, width]"));
        assert!(rows_and_width("test", &Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap()).is_err());
        assert_eq!(rows_and_width("test", &Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()).unwrap(), (0, 3));
    }
}
