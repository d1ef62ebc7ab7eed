//! Linear maps with a bias, and the way of their results to the heads of the attention; each with its way back.

use super::operations::{column_sums, elsewhere, storage, whole};
use super::{Argument, Size, cuda, launch, pointer, pointer_of, room};
use crate::composed::rows::Rows;
use crate::kernels::Precision;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor};

/// See the composed `affine`.
pub(in super::super) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor, inputs_first: bool, precision: Precision) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, Affine { inputs_first, precision })
}

/// In single precision, from bf16.
fn widened(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return Ok(x.clone());
    }
    let (x, count) = (x.contiguous()?, x.elem_count());
    let y = room(x.shape(), DType::F32, x.device())?;
    launch(&cuda(&x)?, "widen", &Size::numbers(count)?, &[pointer(&x)?, pointer(&y)?, Argument::Count(count as u32)])?;
    Ok(y)
}

struct Affine {
    inputs_first: bool,
    precision: Precision,
}

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "affine"
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
        let ((rows, width), (out, _)) = (of_x.shape().dims2()?, of_weight.shape().dims2()?);
        let out = if self.inputs_first { of_weight.dims()[1] } else { out };
        let laid = |layout: &Layout| if self.inputs_first { Ok(layout.clone()) } else { layout.transpose(0, 1) };
        let product = match self.precision {
            Precision::Single => x.matmul(weight, (1, rows, out, width), of_x, &laid(of_weight)?)?,
            Precision::Bf16 => {
                let (x, weight) = (x.to_dtype(of_x, DType::BF16)?, weight.to_dtype(of_weight, DType::BF16)?);
                let [of_x, of_weight] = [of_x, of_weight].map(|layout| Layout::contiguous(layout.shape()));
                x.matmul(&weight, (1, rows, out, width), &of_x, &laid(&of_weight)?)?
            }
        };
        let count = rows * out;
        let y = storage(x.device(), count)?;
        let tensors = [pointer_of(&product, &whole(count))?, pointer_of(bias, of_bias)?, pointer_of(&y, &whole(count))?];
        let kernel = if product.dtype() == DType::BF16 { "add_bias_bf16" } else { "add_bias_f32" };
        let counts = [Argument::Count(count as u32), Argument::Count(out as u32)];
        launch(x.device(), kernel, &Size::numbers(count)?, &[&tensors[..], &counts].concat())?;
        Ok((y, (rows, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.detach().contiguous()?;
        let of_bias = column_sums(&gradient)?;
        let rounded = |x: &Tensor| if self.precision == Precision::Bf16 { x.detach().to_dtype(DType::BF16) } else { Ok(x.detach()) };
        let (x, weight, gradient) = (rounded(x)?, rounded(weight)?, rounded(&gradient)?);
        let (of_x, of_weight) = match self.inputs_first {
            true => (gradient.matmul(&weight.t()?)?, x.t()?.matmul(&gradient)?),
            false => (gradient.matmul(&weight)?, gradient.t()?.matmul(&x)?),
        };
        Ok((Some(widened(&of_x)?), Some(widened(&of_weight)?), Some(of_bias)))
    }
}

/// How the rows of a batch are laid out for the heads.
#[derive(Clone)]
struct Heads {
    /// From rows to the places of padded sequences.
    rows: Rows,
    sequences: usize,
    heads: usize,
    longest: usize,
    width: usize,
    /// What every number is multiplied by, both ways.
    scale: f64,
}

/// `[sequences, heads, longest, width]` from `x` `[rows, heads * width]`, times `scale`; `rows` choose the place of each row, and zeros where there is none.
pub(in super::super) fn to_heads(x: &Tensor, rows: &Rows, [sequences, heads, longest]: [usize; 3], scale: f64) -> Result<Tensor> {
    let width = x.dim(1)? / heads;
    x.contiguous()?.apply_op1(ToHeads(Heads { rows: rows.clone(), sequences, heads, longest, width, scale }))
}

/// The way back: `[rows, heads * width]` from `y` `[sequences, heads, longest, width]`.
pub(in super::super) fn from_heads(y: &Tensor, rows: &Rows) -> Result<Tensor> {
    let (sequences, heads, longest, width) = y.dims4()?;
    y.contiguous()?.apply_op1(FromHeads(Heads { rows: rows.clone(), sequences, heads, longest, width, scale: 1.0 }))
}

impl Heads {
    /// Of the padded heads, and of the rows.
    fn shapes(&self) -> [Shape; 2] {
        let Self { sequences, heads, longest, width, .. } = *self;
        [(sequences, heads, longest, width).into(), (self.rows.rows(), heads * width).into()]
    }

    fn counts(&self, count: usize) -> [Argument; 5] {
        let [count, heads, longest, width] = [count, self.heads, self.longest, self.width].map(|count| Argument::Count(count as u32));
        [count, heads, longest, width, Argument::Number(self.scale as f32)]
    }

    /// The kernel, the rows that it reads and the shape of what it writes.
    fn towards(&self, to_heads: bool) -> (&'static str, &Tensor, Shape) {
        let [heads, rows] = self.shapes();
        if to_heads { ("to_heads", self.rows.chosen(), heads) } else { ("from_heads", self.rows.places(), rows) }
    }

    fn forward(&self, to_heads: bool, x: &CudaStorage, of_x: &Layout) -> Result<(CudaStorage, Shape)> {
        let (kernel, rows, shape) = self.towards(to_heads);
        let count = shape.elem_count();
        let y = storage(x.device(), count)?;
        let tensors = [pointer_of(x, of_x)?, pointer(rows)?, pointer_of(&y, &whole(count))?];
        launch(x.device(), kernel, &Size::numbers(count)?, &[&tensors[..], &self.counts(count)].concat())?;
        Ok((y, shape))
    }

    fn back(&self, to_heads: bool, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (kernel, rows, shape) = self.towards(to_heads);
        let (gradient, count) = (gradient.contiguous()?, shape.elem_count());
        let y = room(shape, DType::F32, gradient.device())?;
        let tensors = [pointer(&gradient)?, pointer(rows)?, pointer(&y)?];
        launch(&cuda(&gradient)?, kernel, &Size::numbers(count)?, &[&tensors[..], &self.counts(count)].concat())?;
        Ok(Some(y))
    }
}

struct ToHeads(Heads);

impl CustomOp1 for ToHeads {
    fn name(&self) -> &'static str {
        "to heads"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, of_x: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward(true, x, of_x)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.0.back(false, gradient)
    }
}

struct FromHeads(Heads);

impl CustomOp1 for FromHeads {
    fn name(&self) -> &'static str {
        "from heads"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, y: &CudaStorage, of_y: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward(false, y, of_y)
    }

    fn bwd(&self, _y: &Tensor, _x: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.0.back(true, gradient)
    }
}
