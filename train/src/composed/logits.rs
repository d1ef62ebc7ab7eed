//! Rows of logits: the few numbers that losses read of them, and their gradient, made of the gradient of those numbers.
//!
//! ```text
//! d loss / d x(j) = its own for a stored id, exp(x(j)) d loss / d outside + d loss / d tempered for another
//! d loss / d z(j) = d loss / d x(j) / T + weight (exp(z(j) - m) / sum of exp(z - m) - [j is the label])
//! ```
//!
//! On a GPU two kernels pass over the logits, once for each; elsewhere candle's operations do.

use super::divergences::{RowNumbers, Taught};
#[cfg(feature = "cuda")]
use super::gpu;
use super::vocabulary::{Decoder, Labels};
use candle_core::{D, Result, Tensor, Var};

/// Logits of some rows, `[rows, vocabulary]`.
pub(super) enum Logits {
    /// Of candle's operations: m, z - m, and exp(x).
    Composed { largest: Tensor, relative: Tensor, exponentials: Tensor },
    /// For the kernels: logits without their bias, the bias, and what a kernel made of both.
    #[cfg(feature = "cuda")]
    Kernels { logits: Tensor, bias: Tensor, sums: Tensor },
}

/// The gradient of [`RowNumbers`].
pub(super) struct NumberSlopes {
    pub(super) stored: Tensor,
    pub(super) outside: Tensor,
    pub(super) tempered: Tensor,
}

/// What an answer is worth, `[rows, 1]` both: the sum of exp(z - m), and the label's factor or 0.
pub(super) struct Worth {
    pub(super) whole: Tensor,
    pub(super) factors: Tensor,
}

impl Logits {
    /// The logits of `x` `[rows, width]`.
    pub(super) fn new(x: &Tensor, decoder: &Decoder<'_>, taught: &Taught, labels: &Labels, temperature: f64) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if gpu::serves(x) && decoder.weight.dim(0)? <= gpu::MOST_IDS {
            let bias =
                decoder.bias.map_or_else(|| Tensor::zeros(decoder.weight.dim(0)?, x.dtype(), x.device()), |bias| Ok(bias.clone()))?;
            let logits = decoder.unbiased(x)?.contiguous()?;
            let sums =
                gpu::row_numbers(&gpu::LogitRows { logits: &logits, bias: &bias, ids: &taught.ids, labels: &labels.ids, temperature })?;
            return Ok(Self::Kernels { logits, bias, sums });
        }
        let _ = (taught, labels);
        let logits = decoder.logits(x)?;
        let largest = logits.max_keepdim(D::Minus1)?;
        let relative = logits.broadcast_sub(&largest)?;
        let exponentials = (&relative * (1.0 / temperature))?.exp()?;
        Ok(Self::Composed { largest, relative, exponentials })
    }

    /// What losses read.
    pub(super) fn numbers(&self, taught: &Taught, temperature: f64) -> Result<RowNumbers> {
        match self {
            Self::Composed { largest, relative, exponentials } => {
                let x = (relative * (1.0 / temperature))?;
                let zeros = taught.ids.zeros_like()?.to_dtype(x.dtype())?;
                let sum_of_others = |x: &Tensor| x.scatter(&taught.ids, &zeros, 1)?.sum_keepdim(D::Minus1);
                Ok(RowNumbers {
                    stored: Var::from_tensor(&x.gather(&taught.ids, 1)?)?,
                    outside: Var::from_tensor(&sum_of_others(exponentials)?)?,
                    tempered: Var::from_tensor(&sum_of_others(&x)?)?,
                    largest: largest.clone(),
                })
            }
            #[cfg(feature = "cuda")]
            Self::Kernels { sums, .. } => Ok(RowNumbers {
                stored: Var::from_tensor(&sums.narrow(1, 5, taught.ids.dim(1)?)?.contiguous()?)?,
                outside: Var::from_tensor(&column(sums, 1)?)?,
                tempered: Var::from_tensor(&column(sums, 2)?)?,
                largest: column(sums, 0)?,
            }),
        }
    }

    /// `[rows, 1]` both: the sum of exp(z - m), and z - m of the label, 0 where there is none.
    pub(super) fn of_labels(&self, labels: &Labels) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Composed { relative, .. } => Ok((relative.exp()?.sum_keepdim(D::Minus1)?, relative.gather(&labels.ids, 1)?)),
            #[cfg(feature = "cuda")]
            Self::Kernels { sums, .. } => Ok((column(sums, 3)?, column(sums, 4)?)),
        }
    }

    /// `[rows, vocabulary]`: the gradient of the logits, in single precision or, of logits in bf16, in that. `numbers` and `worth`: none where nothing
    /// reads them.
    pub(super) fn slopes(
        &self,
        numbers: Option<&NumberSlopes>,
        worth: Option<&Worth>,
        taught: &Taught,
        labels: &Labels,
        temperature: f64,
    ) -> Result<Tensor> {
        match self {
            Self::Composed { relative, exponentials, .. } => {
                let mut slopes = relative.zeros_like()?;
                if let Some(NumberSlopes { stored, outside, tempered }) = numbers {
                    let others = exponentials.broadcast_mul(outside)?.broadcast_add(tempered)?;
                    slopes = (others.scatter(&taught.ids, stored, 1)? * (1.0 / temperature))?;
                }
                if let Some(Worth { whole, factors }) = worth {
                    let shares = relative.exp()?.broadcast_mul(&(factors / whole)?)?;
                    slopes = (slopes + shares.scatter_add(&labels.ids, &factors.neg()?, 1)?)?;
                }
                Ok(slopes)
            }
            #[cfg(feature = "cuda")]
            Self::Kernels { logits, bias, sums } => {
                let none = column(sums, 0)?.zeros_like()?;
                let (outside, tempered) = numbers.map_or((&none, &none), |numbers| (&numbers.outside, &numbers.tempered));
                let stored =
                    numbers.map_or_else(|| taught.ids.zeros_like()?.to_dtype(none.dtype()), |numbers| Ok(numbers.stored.clone()))?;
                let factors = worth.map_or(&none, |worth| &worth.factors);
                let share = worth.map_or_else(|| Ok(none.clone()), |worth| &worth.factors / &worth.whole)?;
                let of_rows = Tensor::cat(&[&column(sums, 0)?, outside, tempered, &share], 1)?;
                let of = gpu::LogitRows { logits, bias, ids: &taught.ids, labels: &labels.ids, temperature };
                gpu::row_slopes(&of, &of_rows, &stored.contiguous()?, factors)
            }
        }
    }
}

/// `[rows, 1]`: one of the numbers of every row.
#[cfg(feature = "cuda")]
fn column(numbers: &Tensor, place: usize) -> Result<Tensor> {
    numbers.narrow(1, place, 1)?.contiguous()
}
