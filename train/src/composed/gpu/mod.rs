//! Kernels for NVIDIA's GPUs: what candle's operations do in many passes over a step's numbers, in one or two.
//!
//! They are compiled when the first of them is launched, by the CUDA library that is made for that (NVRTC), for every GPU that the library knows.
//! Single precision alone comes here; double precision, which the tests of the formulas use, is composed of candle's operations, and so is what no
//! kernel is here for. What a kernel gives is that of the composed operation to single precision: tests of their own hold some to that, and ten steps of
//! every family, beside the processor's, hold all.
//!
//! | file | content |
//! | --- | --- |
//! | `kernels.cu` | the kernels |
//! | `operations` | LayerNorm, activations, softmax, with their ways back |
//! | `maps` | linear maps with a bias, rows to heads, with their ways back |
//! | `head` | the numbers that losses read of rows of logits, and the logits' gradient |
//! | `update` | the gradients' norm, AdamW |

mod head;
mod maps;
mod operations;
mod update;

pub(super) use head::{LogitRows, MOST_IDS, row_numbers, row_slopes};
pub(super) use maps::{affine, from_heads, to_heads};
pub(super) use operations::{activate, column_sums, layer_norm, masked_softmax};
pub(super) use update::{Step, adamw, sum_of_squares};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor};
use std::sync::OnceLock;

const SOURCE: &str = include_str!("kernels.cu");
/// Threads of a block that has a row or a stretch of numbers to itself.
const THREADS: u32 = 256;
/// The kernels count numbers in 32 bits, and step beyond the last.
const MOST_NUMBERS: usize = 1 << 31;
/// Blocks of a kernel whose threads go on to further numbers.
const MOST_BLOCKS: usize = 1 << 14;

/// Whether the kernels serve `x`.
pub(super) fn serves(x: &Tensor) -> bool {
    x.device().is_cuda() && x.dtype() == DType::F32
}

/// What a kernel is given, in its own order.
#[derive(Clone, Copy)]
enum Argument {
    /// Where a tensor begins on the GPU.
    Pointer(u64),
    Count(u32),
    Number(f32),
}

/// How many threads a kernel is given.
struct Size {
    blocks: (u32, u32),
    threads: (u32, u32),
    /// Bytes that the threads of a block share.
    shared: u32,
}

impl Size {
    /// A block for each row.
    fn rows(rows: usize) -> Self {
        Self { blocks: (rows as u32, 1), threads: (THREADS, 1), shared: 0 }
    }

    /// Threads for numbers that do not depend on each other.
    ///
    /// # Errors
    /// More than the kernels count.
    fn numbers(count: usize) -> Result<Self> {
        if count >= MOST_NUMBERS {
            candle_core::bail!("{count} numbers are too many for one micro-batch: use a smaller --batch-tokens");
        }
        Ok(Self::rows(count.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS)))
    }
}

/// Where a tensor's numbers begin on the GPU.
///
/// # Errors
/// Numbers that do not lie one after the other.
fn pointer_of(storage: &CudaStorage, layout: &Layout) -> Result<Argument> {
    if !layout.is_contiguous() {
        candle_core::bail!("a tensor {layout:?} for a kernel that takes numbers one after the other");
    }
    let stream = storage.device().cuda_stream();
    let (first, bytes) = match &storage.slice {
        CudaStorageSlice::F32(slice) => (slice.device_ptr(&stream).0, 4),
        CudaStorageSlice::U32(slice) => (slice.device_ptr(&stream).0, 4),
        CudaStorageSlice::BF16(slice) => (slice.device_ptr(&stream).0, 2),
        CudaStorageSlice::F64(slice) => (slice.device_ptr(&stream).0, 8),
        _ => candle_core::bail!("numbers of a type that no kernel takes: {:?}", storage.dtype()),
    };
    Ok(Argument::Pointer(first + (layout.start_offset() * bytes) as u64))
}

/// The same of a tensor.
fn pointer(tensor: &Tensor) -> Result<Argument> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => pointer_of(storage, layout),
        _ => candle_core::bail!("a tensor that is on no GPU"),
    }
}

/// Room for what a kernel is to write.
fn room(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: every tensor made here is written whole by the kernel launched next, before anybody reads it.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// Queues a kernel of `kernels.cu`.
///
/// # Errors
/// Whatever the compiler and the driver refuse.
fn launch(device: &CudaDevice, kernel: &str, size: &Size, arguments: &[Argument]) -> Result<()> {
    static COMPILED: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| compile_ptx(SOURCE).map(|compiled| compiled.to_src()).map_err(|error| format!("{error:?}")));
    let code = compiled.as_ref().map_err(|error| candle_core::Error::Msg(format!("kernels.cu: {error}")))?;
    let function = device.get_or_load_custom_func(kernel, "logitcache", code)?;
    let mut builder = function.builder();
    for argument in arguments {
        match argument {
            Argument::Pointer(pointer) => builder.arg(pointer),
            Argument::Count(count) => builder.arg(count),
            Argument::Number(number) => builder.arg(number),
        };
    }
    let (grid_dim, block_dim) = ((size.blocks.0, size.blocks.1, 1), (size.threads.0, size.threads.1, 1));
    let config = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: size.shared };
    // SAFETY: the callers give each kernel what its signature says, of the sizes it says. What was given lives until the kernel has run: candle frees
    // on the stream that the kernel is queued on.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// The device of tensors that [`serves`] says yes to.
fn cuda(tensor: &Tensor) -> Result<CudaDevice> {
    tensor.device().as_cuda_device().cloned()
}

#[cfg(test)]
mod tests;
