//! Scaled dot-product attention within each sequence of a packed batch (Vaswani et al. 2017).
//!
//! Work is split by sequence, each with its heads in turn; a task holds two `[length, length]` buffers and nothing of that size outlives it.
//! As in Dao et al. (2022), the forward pass keeps the log-normaliser of each row and head, and the backward pass computes the
//! probabilities again. With P the probabilities, M the dropout factors, O = (P M) V and dP = (dO V^T) M:
//! dV = (P M)^T dO, dS = P (dP - D), dQ = dS K c, dK = dS^T Q c, where c = 1 / sqrt(head width) and D, the row sum of P dP, equals the row
//! sum of O dO.

use super::dropout::{DropoutPlan, DropoutSite, Rate, stream_of};
use super::element::Element;
use super::level::{LANES, Level};
use super::matrix::{Matrix, Threads, multiply};
use super::packing::Packing;

use candle_core::Result;
use logitcache::seed::RandomStream;
use rayon::prelude::*;

/// The shape and the dropout of one layer's attention.
pub(crate) struct Attention<'a> {
    pub(crate) packing: &'a Packing,
    pub(crate) heads: usize,
    /// Width of all heads together.
    pub(crate) width: usize,
    pub(crate) plan: DropoutPlan,
    pub(crate) layer: u32,
}

/// Buffers of one task, for the longest sequence.
struct Scratch<T> {
    probabilities: Vec<T>,
    slopes: Vec<T>,
    factors: Vec<T>,
}

impl<T: Element> Scratch<T> {
    fn new(longest: usize) -> Self {
        let area = longest * padded(longest);
        Self { probabilities: vec![T::zero(); area], slopes: vec![T::zero(); area], factors: vec![T::zero(); padded(longest)] }
    }
}

/// Rows of scores lie this far apart, so that row loops run over whole lanes.
fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// What a task reads of its sequence: `[length, 3 * width]`, queries, keys and values side by side.
struct Sequence<'a, T> {
    qkv: &'a [T],
    length: usize,
    width: usize,
}

impl<'a, T: Element> Sequence<'a, T> {
    /// The `[length, head width]` view of part 0 (queries), 1 (keys) or 2 (values) that starts at column `first`.
    fn part(&self, part: usize, first: usize, head_width: usize) -> Matrix<'a, T> {
        Matrix::strided(&self.qkv[part * self.width + first..], self.length, head_width, 3 * self.width)
    }
}

impl Attention<'_> {
    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn scale<T: Element>(&self) -> T {
        T::from_f64(1.0 / (self.head_width() as f64).sqrt())
    }

    fn sequence<'a, T: Element>(&self, qkv: &'a [T], i: usize) -> Sequence<'a, T> {
        let range = self.packing.range(i);
        Sequence { qkv: &qkv[range.start * 3 * self.width..range.end * 3 * self.width], length: range.len(), width: self.width }
    }

    fn rate(&self) -> Result<Option<Rate>> {
        Rate::new("self_attention", self.plan.attention)
    }

    /// From `qkv` `[rows, 3 * width]`: the context `[rows, width]` and the log-normalisers `[rows, heads]`.
    pub(crate) fn forward<T: Element>(&self, qkv: &[T]) -> Result<(Vec<T>, Vec<T>)> {
        let (level, rate, longest) = (Level::best(), self.rate()?, self.packing.longest());
        let mut context = vec![T::zero(); self.packing.rows() * self.width];
        let mut normalisers = vec![T::zero(); self.packing.rows() * self.heads];
        let outputs = self.packing.split(&mut context, self.width).into_iter();
        let tasks: Vec<_> = outputs.zip(self.packing.split(&mut normalisers, self.heads)).enumerate().collect();
        tasks.into_par_iter().for_each_init(
            || Scratch::new(longest),
            |scratch, (i, (context, normalisers))| self.forward_sequence(level, rate, i, qkv, context, normalisers, scratch),
        );
        Ok((context, normalisers))
    }

    #[allow(clippy::too_many_arguments)]
    fn forward_sequence<T: Element>(
        &self,
        level: Level,
        rate: Option<Rate>,
        i: usize,
        qkv: &[T],
        context: &mut [T],
        normalisers: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let (sequence, head_width) = (self.sequence(qkv, i), self.head_width());
        let (length, stride) = (sequence.length, padded(sequence.length));
        let Scratch { probabilities, factors, .. } = scratch;
        let probabilities = &mut probabilities[..length * stride];
        for head in 0..self.heads {
            let first = head * head_width;
            let (queries, keys) = (sequence.part(0, first, head_width), sequence.part(1, first, head_width));
            multiply(probabilities, stride, false, queries, keys.transposed(), Threads::One);
            let normalisers = Column { values: normalisers, stride: self.heads, first: head };
            softmax_rows(level, probabilities, length, self.scale(), normalisers);
            if let Some(rate) = rate {
                let stream = stream_of(&self.plan, self.packing, i, DropoutSite::Attention(self.layer), head);
                drop_rows(level, probabilities, length, rate, &stream, factors);
            }
            let probabilities = Matrix::strided(probabilities, length, length, stride);
            let values = sequence.part(2, first, head_width);
            multiply(&mut context[first..], self.width, false, probabilities, values, Threads::One);
        }
    }

    /// The gradient of `qkv` from the gradient of the context, both with what the forward pass took and gave.
    pub(crate) fn backward<T: Element>(&self, qkv: &[T], context: &[T], normalisers: &[T], gradient: &[T]) -> Result<Vec<T>> {
        let (level, rate, longest) = (Level::best(), self.rate()?, self.packing.longest());
        let mut slopes = vec![T::zero(); qkv.len()];
        let tasks: Vec<_> = self.packing.split(&mut slopes, 3 * self.width).into_iter().enumerate().collect();
        tasks.into_par_iter().for_each_init(
            || Scratch::new(longest),
            |scratch, (i, slopes)| {
                let rows = self.packing.range(i);
                let context = &context[rows.start * self.width..rows.end * self.width];
                let gradient = &gradient[rows.start * self.width..rows.end * self.width];
                let normalisers = &normalisers[rows.start * self.heads..rows.end * self.heads];
                self.backward_sequence(level, rate, i, qkv, context, normalisers, gradient, slopes, scratch);
            },
        );
        Ok(slopes)
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_sequence<T: Element>(
        &self,
        level: Level,
        rate: Option<Rate>,
        i: usize,
        qkv: &[T],
        context: &[T],
        normalisers: &[T],
        gradient: &[T],
        slopes: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let (sequence, head_width, width) = (self.sequence(qkv, i), self.head_width(), self.width);
        let (length, stride) = (sequence.length, padded(sequence.length));
        let Scratch { probabilities, slopes: score_slopes, factors } = scratch;
        let (probabilities, score_slopes) = (&mut probabilities[..length * stride], &mut score_slopes[..length * stride]);
        for head in 0..self.heads {
            let first = head * head_width;
            let part = |part| sequence.part(part, first, head_width);
            let [queries, keys, values] = [part(0), part(1), part(2)];
            let gradient_view = Matrix::strided(&gradient[first..], length, head_width, width);
            multiply(probabilities, stride, false, queries, keys.transposed(), Threads::One);
            multiply(score_slopes, stride, false, gradient_view, values.transposed(), Threads::One);
            let stream = stream_of(&self.plan, self.packing, i, DropoutSite::Attention(self.layer), head);
            let dropped = rate.map(|rate| (rate, &stream));
            let rows = HeadRows { context: &context[first..], gradient: &gradient[first..], normalisers: &normalisers[head..] };
            let shape = HeadShape { length, head_width, width, heads: self.heads };
            differentiate_rows(level, probabilities, score_slopes, shape, self.scale(), rows, dropped, factors);
            let kept = Matrix::strided(probabilities, length, length, stride);
            let score_slopes = Matrix::strided(score_slopes, length, length, stride);
            multiply(&mut slopes[2 * width + first..], 3 * width, false, kept.transposed(), gradient_view, Threads::One);
            multiply(&mut slopes[first..], 3 * width, false, score_slopes, keys, Threads::One);
            multiply(&mut slopes[width + first..], 3 * width, false, score_slopes.transposed(), queries, Threads::One);
        }
    }
}

/// A column of a row-major buffer, to be written.
struct Column<'a, T> {
    values: &'a mut [T],
    stride: usize,
    first: usize,
}

/// Row r of a head begins at `r * width` (`context`, `gradient`) or is at `r * heads` (`normalisers`).
struct HeadRows<'a, T> {
    context: &'a [T],
    gradient: &'a [T],
    normalisers: &'a [T],
}

#[derive(Clone, Copy)]
struct HeadShape {
    length: usize,
    head_width: usize,
    width: usize,
    heads: usize,
}

levelled! {
    /// Scores become probabilities; `normalisers` receives ln of the sum of exp(scale * score) of each row.
    fn softmax_rows<T>(scores: &mut [T], length: usize, scale: T, normalisers: Column<'_, T>) {
        let stride = padded(length);
        for (r, row) in scores.chunks_exact_mut(stride).enumerate() {
            row[length..].fill(T::NEGATIVE_INFINITY);
            let mut largest = [T::NEGATIVE_INFINITY; LANES];
            for chunk in row.chunks_exact(LANES) {
                for (largest, score) in largest.iter_mut().zip(chunk) {
                    *largest = if *score > *largest { *score } else { *largest };
                }
            }
            let largest = largest.iter().fold(T::NEGATIVE_INFINITY, |a, b| if *b > a { *b } else { a });
            let mut sums = [T::zero(); LANES];
            for chunk in row.chunks_exact_mut(LANES) {
                for (sum, score) in sums.iter_mut().zip(chunk) {
                    *score = ((*score - largest) * scale).exp();
                    *sum += *score;
                }
            }
            let sum = sums.iter().fold(T::zero(), |a, b| a + *b);
            normalisers.values[r * normalisers.stride + normalisers.first] = largest * scale + T::from_f64(sum.to_f64().ln());
            let inverse = T::one() / sum;
            row.iter_mut().for_each(|probability| *probability *= inverse);
        }
    }
}

levelled! {
    fn drop_rows<T>(probabilities: &mut [T], length: usize, rate: Rate, stream: &RandomStream, factors: &mut [T]) {
        let factors = &mut factors[..length];
        for (r, row) in probabilities.chunks_exact_mut(padded(length)).enumerate() {
            rate.factors(stream, r, factors);
            row.iter_mut().zip(factors.iter()).for_each(|(probability, factor)| *probability *= *factor);
        }
    }
}

levelled! {
    /// Scores become probabilities after dropout, and `slopes`, the gradients of those, become the gradients of the unscaled scores.
    fn differentiate_rows<T>(
        scores: &mut [T], slopes: &mut [T], shape: HeadShape, scale: T, rows: HeadRows<'_, T>,
        dropped: Option<(Rate, &RandomStream)>, factors: &mut [T],
    ) {
        let stride = padded(shape.length);
        let factors = &mut factors[..stride];
        factors.fill(T::one());
        for (r, (scores, slopes)) in scores.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride)).enumerate() {
            scores[shape.length..].fill(T::NEGATIVE_INFINITY);
            slopes[shape.length..].fill(T::zero());
            if let Some((rate, stream)) = dropped {
                rate.factors(stream, r, &mut factors[..shape.length]);
            }
            let here = r * shape.width;
            let mean = dot(&rows.context[here..here + shape.head_width], &rows.gradient[here..here + shape.head_width]);
            let normaliser = rows.normalisers[r * shape.heads];
            for ((score, slope), factor) in scores.iter_mut().zip(slopes).zip(factors.iter()) {
                let probability = (*score * scale - normaliser).exp();
                *slope = probability * (*slope * *factor - mean) * scale;
                *score = probability * *factor;
            }
        }
    }
}

#[inline(always)]
fn dot<T: Element>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += *a * *b;
        }
    }
    lanes.iter().fold(T::zero(), |sum, lane| sum + *lane)
}
