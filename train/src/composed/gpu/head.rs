//! Rows of logits: the numbers that losses read of each, and the gradient of the logits from that of those numbers.

use super::{Argument, Size, cuda, launch, pointer, room};
use candle_core::{DType, Result, Tensor};

/// Bits that the threads of a block share at most, one for each id of the vocabulary: of 48 KiB a block has, sums over its threads take some.
pub(in super::super) const MOST_IDS: usize = 47 * 1024 * 8;

/// What the kernels read: rows of logits, and what is stored for them.
pub(in super::super) struct LogitRows<'a> {
    /// `[rows, vocabulary]`, without the bias, in single precision or bf16.
    pub(in super::super) logits: &'a Tensor,
    /// `[vocabulary]`, in single precision.
    pub(in super::super) bias: &'a Tensor,
    /// `[rows, k]`: stored ids.
    pub(in super::super) ids: &'a Tensor,
    /// `[rows, 1]`: labels, `u32::MAX` for none.
    pub(in super::super) labels: &'a Tensor,
    /// T, above 0: what the distances to the largest logit are divided by.
    pub(in super::super) temperature: f64,
}

impl LogitRows<'_> {
    fn sizes(&self) -> Result<(usize, usize, usize)> {
        let (rows, vocabulary) = self.logits.dims2()?;
        Ok((rows, vocabulary, self.ids.dim(1)?))
    }

    fn scalars(&self) -> Result<[Argument; 3]> {
        let (_, vocabulary, k) = self.sizes()?;
        Ok([Argument::Count(vocabulary as u32), Argument::Count(k as u32), Argument::Number((1.0 / self.temperature) as f32)])
    }

    fn kernel(&self, name: &str) -> String {
        format!("{name}_{}", if self.logits.dtype() == DType::BF16 { "bf16" } else { "f32" })
    }

    fn tensors(&self) -> Result<[Argument; 4]> {
        Ok([pointer(self.logits)?, pointer(self.bias)?, pointer(self.ids)?, pointer(self.labels)?])
    }
}

/// `[rows, 5 + k]`: with m a row's largest logit and x = (z - m) / T, these are m, the sum of exp(x) and the sum of x over the ids that are not
/// stored, the sum of exp(z - m), z - m of the label or 0, then x of the stored ids.
pub(in super::super) fn row_numbers(of: &LogitRows<'_>) -> Result<Tensor> {
    let (rows, vocabulary, k) = of.sizes()?;
    let numbers = room((rows, 5 + k), DType::F32, of.logits.device())?;
    let size = Size { shared: 4 * vocabulary.div_ceil(32) as u32, ..Size::rows(rows) };
    let arguments = [&of.tensors()?[..], &[pointer(&numbers)?], &of.scalars()?].concat();
    launch(&cuda(of.logits)?, &of.kernel("row_numbers"), &size, &arguments)?;
    Ok(numbers)
}

/// `[rows, vocabulary]`, of the logits' type: the gradient of the logits. `of_rows` `[rows, 4]`: m, the gradients of the two sums over the others, what
/// the label is worth over the sum of exp(z - m). `of_stored` `[rows, k]`: the gradient of x of the stored ids. `worth` `[rows, 1]`: what the label is
/// worth.
pub(in super::super) fn row_slopes(of: &LogitRows<'_>, of_rows: &Tensor, of_stored: &Tensor, worth: &Tensor) -> Result<Tensor> {
    let (rows, vocabulary, _) = of.sizes()?;
    let slopes = room((rows, vocabulary), of.logits.dtype(), of.logits.device())?;
    let given = [pointer(of_rows)?, pointer(of_stored)?, pointer(worth)?, pointer(&slopes)?];
    let arguments = [&of.tensors()?[..], &given, &of.scalars()?].concat();
    launch(&cuda(of.logits)?, &of.kernel("row_slopes"), &Size::rows(rows), &arguments)?;
    Ok(slopes)
}
