//! The student's operations on rows, each with its way back.

use super::{Argument, Size, cuda, launch, pointer, pointer_of, room};
use crate::kernels::Activation;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp3, D, DType, Layout, Result, Shape, Tensor};

/// Rows that a block of [`column_sums`] adds at least.
const STRIPE: usize = 256;

/// `[rows, width]`: see the composed `layer_norm`.
pub(in super::super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm { epsilon: epsilon as f32 })
}

/// See the composed `activate`.
pub(in super::super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activate { activation })
}

/// The softmax of `scores` `[sequences, heads, longest, longest]` plus a mask `[sequences, 1, 1, longest]` or `[1, 1, longest, longest]`.
pub(in super::super) fn masked_softmax(scores: &Tensor, mask: &Tensor) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(Softmax { mask: mask.clone() })
}

/// `[width]` from `x` `[rows, width]`, in single precision or bf16. Stripes of rows first, then their sums.
pub(in super::super) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (x, (rows, width)) = (x.contiguous()?, x.dims2()?);
    let sum = |x: &Tensor, rows: usize, stripes: usize| -> Result<Tensor> {
        let sums = room((stripes, width), DType::F32, x.device())?;
        let kernel = if x.dtype() == DType::BF16 { "column_sums_bf16" } else { "column_sums_f32" };
        let size = Size { blocks: (width.div_ceil(32) as u32, stripes as u32), threads: (32, 8), shared: 0 };
        let arguments = [pointer(x)?, pointer(&sums)?, Argument::Count(rows as u32), Argument::Count(width as u32)];
        launch(&cuda(x)?, kernel, &size, &arguments)?;
        Ok(sums)
    };
    let stripes = rows.div_ceil(STRIPE);
    let sums = sum(&x, rows, stripes)?;
    let sums = if stripes > 1 { sum(&sums, stripes, 1)? } else { sums };
    sums.reshape(width)
}

/// For operations that no other device has.
pub(super) fn elsewhere<T>() -> Result<T> {
    candle_core::bail!("an operation of GPUs alone")
}

/// Room on the GPU, as an operation gives it back.
pub(super) fn storage(device: &CudaDevice, count: usize) -> Result<CudaStorage> {
    // SAFETY: every operation's kernel writes all of it.
    let slice = unsafe { device.alloc::<f32>(count) }?;
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}

pub(super) fn whole(count: usize) -> Layout {
    Layout::contiguous(count)
}

struct LayerNorm {
    epsilon: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        of_x: &Layout,
        weight: &CudaStorage,
        of_weight: &Layout,
        bias: &CudaStorage,
        of_bias: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = of_x.shape().dims2()?;
        let y = storage(x.device(), rows * width)?;
        let tensors =
            [pointer_of(x, of_x)?, pointer_of(weight, of_weight)?, pointer_of(bias, of_bias)?, pointer_of(&y, &whole(rows * width))?];
        let arguments = [&tensors[..], &[Argument::Count(width as u32), Argument::Number(self.epsilon)]].concat();
        launch(x.device(), "layer_norm", &Size::rows(rows), &arguments)?;
        Ok((y, of_x.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, width), gradient) = (x.dims2()?, gradient.contiguous()?);
        let [of_x, of_weight] = [(); 2].map(|()| room(x.shape(), DType::F32, x.device()));
        let (of_x, of_weight) = (of_x?, of_weight?);
        let tensors = [pointer(x)?, pointer(weight)?, pointer(&gradient)?, pointer(&of_x)?, pointer(&of_weight)?];
        let arguments = [&tensors[..], &[Argument::Count(width as u32), Argument::Number(self.epsilon)]].concat();
        launch(&cuda(x)?, "layer_norm_back", &Size::rows(rows), &arguments)?;
        Ok((Some(of_x), Some(column_sums(&of_weight)?), Some(column_sums(&gradient)?)))
    }
}

struct Activate {
    activation: Activation,
}

impl Activate {
    fn kind(&self) -> Argument {
        Argument::Count(match self.activation {
            Activation::Gelu => 0,
            Activation::GeluNew => 1,
            Activation::Relu => 2,
            Activation::Silu => 3,
        })
    }
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, of_x: &Layout) -> Result<(CudaStorage, Shape)> {
        let count = of_x.shape().elem_count();
        let y = storage(x.device(), count)?;
        let arguments = [pointer_of(x, of_x)?, pointer_of(&y, &whole(count))?, Argument::Count(count as u32), self.kind()];
        launch(x.device(), "activate", &Size::numbers(count)?, &arguments)?;
        Ok((y, of_x.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (count, gradient) = (x.elem_count(), gradient.contiguous()?);
        let of_x = room(x.shape(), DType::F32, x.device())?;
        let arguments = [pointer(x)?, pointer(&gradient)?, pointer(&of_x)?, Argument::Count(count as u32), self.kind()];
        launch(&cuda(x)?, "activate_back", &Size::numbers(count)?, &arguments)?;
        Ok(Some(of_x))
    }
}

struct Softmax {
    mask: Tensor,
}

/// Of a kernel that gives a warp to each row and eight rows to a block.
fn warps(rows: usize) -> Size {
    Size::rows(rows.div_ceil(8))
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "masked softmax"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, scores: &CudaStorage, of_scores: &Layout) -> Result<(CudaStorage, Shape)> {
        let (sequences, heads, queries, length) = of_scores.shape().dims4()?;
        let (of_sequences, _, of_queries, _) = self.mask.dims4()?;
        let rows = sequences * heads * queries;
        let y = storage(scores.device(), rows * length)?;
        let tensors = [pointer_of(scores, of_scores)?, pointer(&self.mask)?, pointer_of(&y, &whole(rows * length))?];
        // A mask of one sequence is everyone's, of one query likewise.
        let per_sequence = if of_sequences > 1 { of_queries * length } else { 0 };
        let per_query = if of_queries > 1 { length } else { 0 };
        let counts = [rows, length, heads * queries, per_sequence, per_query].map(|count| Argument::Count(count as u32));
        launch(scores.device(), "softmax", &warps(rows), &[&tensors[..], &counts].concat())?;
        Ok((y, of_scores.shape().clone()))
    }

    fn bwd(&self, _scores: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (length, gradient) = (y.dim(D::Minus1)?, gradient.contiguous()?);
        let rows = y.elem_count() / length;
        let of_scores = room(y.shape(), DType::F32, y.device())?;
        let tensors = [pointer(y)?, pointer(&gradient)?, pointer(&of_scores)?];
        let counts = [rows, length].map(|count| Argument::Count(count as u32));
        launch(&cuda(y)?, "softmax_back", &warps(rows), &[&tensors[..], &counts].concat())?;
        Ok(Some(of_scores))
    }
}
