//! Dropout whose masks have names.
//!
//! Which numbers of a sequence are dropped depends on (seed, step, sequence, pass, site) alone: not on the batch the sequence is in, the
//! number of micro-batches or the number of threads. So the backward pass draws the mask again instead of keeping it.

use super::element::Element;
use super::level::Level;
use super::packing::Packing;
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use logitcache::seed::{Purpose, RandomStream};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;

/// What is dropped in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutPlan {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step.
    pub step: u64,
    /// The probability for hidden states, in [0, 1).
    pub hidden: f64,
    /// The probability for attention probabilities, in [0, 1).
    pub attention: f64,
}

impl DropoutPlan {
    /// Nothing is dropped: for evaluation.
    pub fn off() -> Self {
        Self { seed: 0, step: 0, hidden: 0.0, attention: 0.0 }
    }
}

/// Where in the student dropout happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropoutSite {
    /// After the LayerNorm of the embeddings.
    Embeddings,
    /// On the attention probabilities of a layer, counted from 0.
    Attention(u32),
    /// After the feed-forward block of a layer, counted from 0.
    FeedForward(u32),
    /// After the attention's output projection of a layer, counted from 0.
    AttentionOutput(u32),
    /// Before the first linear map of a classifier.
    ClassifierInput,
    /// Before the last linear map of a classifier.
    Classifier,
}

impl DropoutSite {
    fn key(self) -> [u64; 2] {
        match self {
            Self::Embeddings => [0, 0],
            Self::Attention(layer) => [1, u64::from(layer)],
            Self::FeedForward(layer) => [2, u64::from(layer)],
            Self::AttentionOutput(layer) => [3, u64::from(layer)],
            Self::ClassifierInput => [4, 0],
            Self::Classifier => [5, 0],
        }
    }
}

/// Each number is dropped with the plan's hidden probability, and the others are scaled up so that the expectation stays. `x` is
/// `[rows, width]` and comes back itself where the probability is 0.
pub fn dropout(x: &Tensor, packing: &Arc<Packing>, plan: &DropoutPlan, site: DropoutSite) -> Result<Tensor> {
    let Some(dropped) = RowDropout::new(packing, None, plan, site)? else { return Ok(x.clone()) };
    let (rows, width) = rows_and_width("dropout", x)?;
    if rows != packing.rows() {
        return Err(failure("dropout", format!("{rows} rows for a packing of {}", packing.rows())));
    }
    for_dtype!("dropout", x.dtype(), T => x.apply_op1(Dropout::<T> { rows: dropped, width, element: PhantomData }))
}

/// A probability as a threshold on 16 random bits, so that one draw of 64 serves four numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    threshold: u16,
}

/// Numbers that one draw decides.
const DECISIONS: usize = 4;

impl Rate {
    /// None where nothing is dropped; an error outside [0, 1).
    pub(crate) fn new(operation: &str, probability: f64) -> Result<Option<Self>> {
        if !(0.0..1.0).contains(&probability) {
            return Err(failure(operation, format!("a dropout probability must be in [0, 1), found {probability}")));
        }
        let threshold = (probability * 65536.0).round().min(65535.0) as u16;
        Ok((threshold > 0).then_some(Self { threshold }))
    }

    /// What a kept number is multiplied by: the inverse of the probability of keeping it.
    fn scale(self) -> f64 {
        65536.0 / (65536.0 - f64::from(self.threshold))
    }

    /// The factors, 0 or the scale, of row `row` of a site that is `factors.len()` wide.
    #[inline(always)]
    pub(crate) fn factors<T: Element>(self, stream: &RandomStream, row: usize, factors: &mut [T]) {
        let scale = T::from_f64(self.scale());
        let first = row as u64 * factors.len().div_ceil(DECISIONS) as u64;
        for (draw, factors) in factors.chunks_mut(DECISIONS).enumerate() {
            let bits = stream.at(first + draw as u64);
            for (decision, factor) in factors.iter_mut().enumerate() {
                *factor = if (bits >> (16 * decision)) as u16 >= self.threshold { scale } else { T::zero() };
            }
        }
    }
}

/// The stream of a sequence at a site; `part` tells the heads of an attention layer apart.
pub(crate) fn stream_of(plan: &DropoutPlan, packing: &Packing, sequence: usize, site: DropoutSite, part: usize) -> RandomStream {
    let (id, pass) = packing.identity(sequence);
    let [kind, layer] = site.key();
    RandomStream::new(plan.seed, Purpose::Dropout, &[plan.step, id, u64::from(pass), kind, layer, part as u64])
}

levelled! {
    /// A row times its factors.
    fn drop_row<T>(x: &[T], rate: Rate, stream: &RandomStream, row: usize, y: &mut [T]) {
        rate.factors(stream, row, y);
        y.iter_mut().zip(x).for_each(|(y, x)| *y *= *x);
    }
}

/// Which numbers of some rows are dropped at a site.
pub(crate) struct RowDropout {
    rate: Rate,
    /// `[sequence]`.
    streams: Vec<RandomStream>,
    /// `[row]`: the sequence, and the row counted within it.
    rows: Vec<(usize, usize)>,
}

impl RowDropout {
    /// Of all rows of a packing, or of those asked (ascending). None where nothing is dropped.
    pub(crate) fn new(packing: &Packing, asked: Option<&[u32]>, plan: &DropoutPlan, site: DropoutSite) -> Result<Option<Self>> {
        let Some(rate) = Rate::new("dropout", plan.hidden)? else { return Ok(None) };
        let streams = (0..packing.sequences()).map(|i| stream_of(plan, packing, i, site, 0)).collect();
        let all = (0..packing.sequences()).flat_map(|i| packing.range(i).map(move |row| (i, row)));
        let mut asked = asked.map(|asked| asked.iter().copied().peekable());
        let mut is_asked = |row: usize| asked.as_mut().is_none_or(|asked| asked.next_if(|next| *next as usize == row).is_some());
        let rows = all.filter(|(_, row)| is_asked(*row)).map(|(i, row)| (i, row - packing.range(i).start)).collect();
        Ok(Some(Self { rate, streams, rows }))
    }

    /// What decides about a row: see [`Rate::factors`].
    pub(crate) fn row(&self, index: usize) -> (Rate, &RandomStream, usize) {
        let (sequence, row) = self.rows[index];
        (self.rate, &self.streams[sequence], row)
    }

    /// The rows `[rows, width]` times their factors. The forward and the backward pass alike: the operation is linear.
    pub(crate) fn apply<T: Element>(&self, x: &[T], width: usize) -> Vec<T> {
        let level = Level::best();
        let inputs = self.rows.par_iter().zip(x.par_chunks(width)).with_min_len(16);
        filled_by_chunks(x.len(), width, inputs, |y, ((sequence, row), x)| {
            drop_row(level, x, self.rate, &self.streams[*sequence], *row, y);
        })
    }
}

struct Dropout<T> {
    rows: RowDropout,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for Dropout<T> {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.rows.apply(slice_of::<T>("dropout", storage, layout)?, self.width);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(tensor_of(with_slice("dropout", gradient, |gradient: &[T]| self.rows.apply(gradient, self.width))?, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, numbers, random};

    const PLAN: DropoutPlan = DropoutPlan { seed: 1, step: 3, hidden: 0.25, attention: 0.0 };

    fn packing(ids: &[u64], lengths: &[usize]) -> Arc<Packing> {
        let offsets: Vec<usize> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        Packing::new(&offsets, ids, &vec![0; ids.len()]).unwrap()
    }

    #[test]
    fn expectation_is_kept_and_gradients_pass_where_values_do() {
        let packing = packing(&[5, 6], &[100, 100]);
        let ones = Tensor::ones((200, 250), candle_core::DType::F64, &candle_core::Device::Cpu).unwrap();
        let y = numbers(&dropout(&ones, &packing, &PLAN, DropoutSite::Embeddings).unwrap());
        let kept = y.iter().filter(|value| **value != 0.0).count() as f64 / y.len() as f64;
        assert!((kept - 0.75).abs() < 0.01, "kept {kept}");
        assert!((y.iter().sum::<f64>() / y.len() as f64 - 1.0).abs() < 0.015);
        let small = random(1, &[7, 9], 1.0);
        let packing = self::packing(&[5, 6], &[1, 6]);
        let run = |x: &[Tensor], _: &[_]| dropout(&x[0], &packing, &PLAN, DropoutSite::FeedForward(2));
        Proof { inputs: &[small], parameters: &[], run }.check();
    }

    #[test]
    fn a_mask_belongs_to_its_sequence_and_site() {
        let ones = Tensor::ones((5, 33), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let run = |ids: &[u64], lengths: &[usize], plan: DropoutPlan, site| {
            numbers(&dropout(&ones, &packing(ids, lengths), &plan, site).unwrap())
        };
        let base = run(&[8, 9], &[2, 3], PLAN, DropoutSite::FeedForward(0));
        // The same sequences in the other order: the rows move, the masks go with them.
        let moved = run(&[9, 8], &[3, 2], PLAN, DropoutSite::FeedForward(0));
        assert_eq!(base, [&moved[3 * 33..], &moved[..3 * 33]].concat());
        assert_ne!(base, run(&[8, 9], &[2, 3], PLAN, DropoutSite::FeedForward(1)));
        assert_ne!(base, run(&[8, 9], &[2, 3], PLAN, DropoutSite::Embeddings));
        assert_ne!(base, run(&[8, 9], &[2, 3], DropoutPlan { step: 4, ..PLAN }, DropoutSite::FeedForward(0)));
        assert_ne!(base, run(&[8, 9], &[2, 3], DropoutPlan { seed: 2, ..PLAN }, DropoutSite::FeedForward(0)));
    }

    #[test]
    fn off_is_the_identity_and_probabilities_are_checked() {
        let x = random(1, &[5, 3], 1.0);
        let same = dropout(&x, &packing(&[8], &[5]), &DropoutPlan::off(), DropoutSite::Embeddings).unwrap();
        assert_eq!(same.id(), x.id());
        for wrong in [-0.1, 1.0, f64::NAN] {
            assert!(dropout(&x, &packing(&[8], &[5]), &DropoutPlan { hidden: wrong, ..PLAN }, DropoutSite::Embeddings).is_err());
        }
    }
}
