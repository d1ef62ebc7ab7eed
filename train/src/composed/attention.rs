//! Attention within each sequence, on padded heads.

use super::dropout::{Factors, dropped};
#[cfg(feature = "cuda")]
use super::gpu;
use super::operations::masked_softmax;
use super::place::Place;
use crate::kernels::{DropoutSite, Rotary};
use candle_core::{D, Result, Tensor};

/// candle's kernels count a tensor's numbers in 32 bits.
const MOST_NUMBERS: usize = 1 << 31;

/// Heads of one layer.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Of queries.
    pub(super) queries: usize,
    /// Of keys and of values, a divisor.
    pub(super) keys: usize,
    /// Numbers of each.
    pub(super) width: usize,
}

/// Cosines and sines, `[1, longest, 1, width / 2]` both.
pub(super) struct Angles(Tensor, Tensor);

impl Angles {
    /// Those of the positions of a batch.
    pub(super) fn new(rotary: &Rotary, place: &Place) -> Result<Self> {
        let (longest, half) = (place.packing.longest(), rotary.head_width() / 2);
        let table = rotary.table::<f64>(longest);
        let rows: Vec<_> = (0..longest).map(|position| table.at(position)).collect();
        let upload = |numbers: Vec<f64>| {
            Tensor::from_vec(numbers, (1, longest, 1, half), &candle_core::Device::Cpu)?
                .to_dtype(place.mask.dtype())?
                .to_device(place.mask.device())
        };
        let cosines = rows.iter().flat_map(|(cosines, _)| cosines.iter().copied()).collect();
        let sines = rows.iter().flat_map(|(_, sines)| sines.iter().copied()).collect();
        Ok(Self(upload(cosines)?, upload(sines)?))
    }

    /// `x` `[sequences, longest, heads, width]`, turned.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let Self(cosines, sines) = self;
        let half = x.dim(D::Minus1)? / 2;
        let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = |a: &Tensor, b: &Tensor| -> Result<(Tensor, Tensor)> { Ok((a.broadcast_mul(cosines)?, b.broadcast_mul(sines)?)) };
        let ((a, b), (c, d)) = (turned(&first, &second)?, turned(&second, &first)?);
        Tensor::cat(&[(a - b)?, (c + d)?], D::Minus1)
    }
}

/// `[tokens, queries * width]` from what the maps to queries, keys and values gave, `[tokens, heads * width]` each: softmax of the scaled products
/// where the mask allows them, over the values. Dropout acts on the probabilities.
pub(super) fn attention(
    [query, key, value]: [&Tensor; 3],
    heads: Heads,
    angles: Option<&Angles>,
    place: &Place,
    layer: u32,
    factors: &Factors<'_>,
) -> Result<Tensor> {
    let (sequences, longest) = (place.packing.sequences(), place.packing.longest());
    let scale = 1.0 / (heads.width as f64).sqrt();
    let head_major = |x: &Tensor, count: usize, angles: Option<&Angles>, scale: f64| {
        #[cfg(feature = "cuda")]
        if gpu::serves(x) && angles.is_none() {
            return gpu::to_heads(x, &place.padded, [sequences, count, longest], scale);
        }
        let x = place.pad(x)?.reshape((sequences, longest, count, heads.width))?;
        let x = angles.map_or(Ok(x.clone()), |angles| angles.turn(&x))?.transpose(1, 2)?.contiguous()?;
        if scale == 1.0 { Ok(x) } else { x * scale }
    };
    let shared = |x: Tensor| match heads.queries / heads.keys {
        1 => Ok(x),
        group => {
            let shape = (sequences, heads.keys, group, longest, heads.width);
            x.unsqueeze(2)?.broadcast_as(shape)?.contiguous()?.reshape((sequences, heads.queries, longest, heads.width))
        }
    };
    if sequences * heads.queries * longest * longest >= MOST_NUMBERS {
        candle_core::bail!(
            "{sequences} sequences of up to {longest} tokens are too many for one micro-batch: use a smaller --batch-tokens"
        );
    }
    // The queries are scaled, not their scores, which are more.
    let query = head_major(query, heads.queries, angles, scale)?;
    let (key, value) = (shared(head_major(key, heads.keys, angles, 1.0)?)?, shared(head_major(value, heads.keys, None, 1.0)?)?);
    let probabilities = masked_softmax(&query.matmul(&key.t()?)?, &place.mask)?;
    let probabilities = dropped(&probabilities, DropoutSite::Attention(layer), factors)?;
    let context = probabilities.matmul(&value)?;
    #[cfg(feature = "cuda")]
    if gpu::serves(&context) {
        return gpu::from_heads(&context, &place.padded);
    }
    place.pack(&context.transpose(1, 2)?.contiguous()?.reshape((sequences, longest, ()))?)
}
