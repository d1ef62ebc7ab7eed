//! Causal attention with grouped heads within each sequence of a packed batch (Ainslie et al. 2023).
//!
//! Buffers are head-major: `[sequence][head][length, head width]`, queries first, then keys, then values. A task is one sequence's key-value
//! head with the query heads that share it. Rows of scores are made a block at a time and end at the block's diagonal, so that half of the
//! products are never made and nothing of `[length, length]` is kept. As in `attention`, the forward pass keeps each row's
//! log-normaliser and the backward pass computes the probabilities again; the formulae are there.

use super::dropout::{DropoutPlan, DropoutSite, Rate, stream_of};
use super::element::Element;
use super::level::{LANES, Level};
use super::matrix::{Matrix, Threads, multiply};
use super::packing::Packing;
use candle_core::Result;
use logitcache::seed::RandomStream;
use rayon::prelude::*;

/// Query rows whose scores are made at a time.
const ROW_BLOCK: usize = 64;

/// How many heads there are of each kind, all of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    /// Divides `queries`; as many values as keys.
    pub(crate) keys: usize,
    pub(crate) width: usize,
}

impl Heads {
    /// Query heads that share a key-value head.
    fn group(self) -> usize {
        self.queries / self.keys
    }

    /// Numbers of a row's queries.
    pub(crate) fn query_width(self) -> usize {
        self.queries * self.width
    }

    /// Heads of queries, keys and values together.
    pub(crate) fn all(self) -> usize {
        self.queries + 2 * self.keys
    }
}

/// The shape and the dropout of one layer's attention.
pub(crate) struct CausalAttention<'a> {
    pub(crate) packing: &'a Packing,
    pub(crate) heads: Heads,
    pub(crate) plan: DropoutPlan,
    pub(crate) layer: u32,
}

/// Buffers of one task, for the longest sequence: a block of rows of scores and of their gradients.
struct Scratch<T> {
    scores: Vec<T>,
    slopes: Vec<T>,
    factors: Vec<T>,
}

impl<T: Element> Scratch<T> {
    fn new(longest: usize) -> Self {
        let stride = padded(longest);
        let area = ROW_BLOCK.min(longest) * stride;
        Self { scores: vec![T::zero(); area], slopes: vec![T::zero(); area], factors: vec![T::zero(); stride] }
    }
}

/// Rows of scores lie this far apart, so that row loops run over whole lanes.
fn padded(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// Dropout of one query head.
struct Dropped<'a> {
    rate: Rate,
    stream: &'a RandomStream,
    length: usize,
}

impl CausalAttention<'_> {
    fn scale<T: Element>(&self) -> T {
        T::from_f64(1.0 / (self.heads.width as f64).sqrt())
    }

    /// Head `head` (queries first, then keys, then values) of sequence `i` in a head-major buffer of all of them.
    fn head<'a, T>(&self, buffer: &'a [T], i: usize, head: usize) -> &'a [T] {
        let (rows, width) = (self.packing.range(i), self.heads.width);
        &buffer[rows.start * self.heads.all() * width + head * rows.len() * width..][..rows.len() * width]
    }

    fn stream(&self, i: usize, query_head: usize) -> RandomStream {
        stream_of(&self.plan, self.packing, i, DropoutSite::Attention(self.layer), query_head)
    }

    /// From queries, keys and values: the context, head-major `[sequence][query head][length, head width]`, and the log-normalisers
    /// `[sequence][query head][length]`.
    pub(crate) fn forward<T: Element>(&self, qkv: &[T]) -> Result<(Vec<T>, Vec<T>)> {
        let rate = Rate::new("causal_attention", self.plan.attention)?;
        let (rows, longest) = (self.packing.rows(), self.packing.longest());
        let mut context = vec![T::zero(); rows * self.heads.query_width()];
        let mut normalisers = vec![T::zero(); rows * self.heads.queries];
        let contexts = self.packing.split(&mut context, self.heads.query_width());
        let outputs = contexts.into_iter().zip(self.packing.split(&mut normalisers, self.heads.queries)).enumerate();
        let tasks: Vec<_> = outputs
            .flat_map(|(i, (context, normalisers))| {
                let length = self.packing.range(i).len();
                let groups = context.chunks_exact_mut(self.heads.group() * length * self.heads.width);
                groups.zip(normalisers.chunks_exact_mut(self.heads.group() * length)).enumerate().map(move |(key, out)| (i, key, out))
            })
            .collect();
        tasks.into_par_iter().for_each_init(
            || Scratch::new(longest),
            |scratch, (i, key, (context, normalisers))| self.forward_group(rate, (i, key), qkv, context, normalisers, scratch),
        );
        Ok((context, normalisers))
    }

    fn forward_group<T: Element>(
        &self,
        rate: Option<Rate>,
        (i, key): (usize, usize),
        qkv: &[T],
        context: &mut [T],
        normalisers: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let (length, width, level) = (self.packing.range(i).len(), self.heads.width, Level::best());
        let keys = self.head(qkv, i, self.heads.queries + key);
        let values = self.head(qkv, i, self.heads.queries + self.heads.keys + key);
        let group = context.chunks_exact_mut(length * width).zip(normalisers.chunks_exact_mut(length)).enumerate();
        for (member, (context, normalisers)) in group {
            let query_head = key * self.heads.group() + member;
            let queries = self.head(qkv, i, query_head);
            let stream = self.stream(i, query_head);
            for first in (0..length).step_by(ROW_BLOCK) {
                let end = (first + ROW_BLOCK).min(length);
                let (count, stride) = (end - first, padded(end));
                let scores = &mut scratch.scores[..count * stride];
                let queries = Matrix::new(&queries[first * width..end * width], count, width);
                multiply(scores, stride, false, queries, Matrix::new(&keys[..end * width], end, width).transposed(), Threads::One);
                softmax_rows(level, scores, first, stride, self.scale(), &mut normalisers[first..end]);
                if let Some(rate) = rate {
                    let dropped = Dropped { rate, stream: &stream, length };
                    drop_rows(level, scores, first, stride, &dropped, &mut scratch.factors);
                }
                let probabilities = Matrix::strided(scores, count, end, stride);
                let values = Matrix::new(&values[..end * width], end, width);
                multiply(&mut context[first * width..], width, false, probabilities, values, Threads::One);
            }
        }
    }

    /// The gradient of queries, keys and values, in their order, from what the forward pass took and gave, and the gradient of the context,
    /// both of the context as rows `[rows, query width]`.
    pub(crate) fn backward<T: Element>(&self, qkv: &[T], context: &[T], normalisers: &[T], gradient: &[T]) -> Result<Vec<T>> {
        let rate = Rate::new("causal_attention", self.plan.attention)?;
        let longest = self.packing.longest();
        let mut slopes = vec![T::zero(); qkv.len()];
        let Heads { keys, width, .. } = self.heads;
        let sequences = self.packing.split(&mut slopes, self.heads.all() * width).into_iter().enumerate();
        let tasks: Vec<_> = sequences
            .flat_map(|(i, slopes)| {
                let head = self.packing.range(i).len() * width;
                let (of_queries, rest) = slopes.split_at_mut(self.heads.queries * head);
                let (of_keys, of_values) = rest.split_at_mut(keys * head);
                let pairs = of_keys.chunks_exact_mut(head).zip(of_values.chunks_exact_mut(head));
                of_queries.chunks_exact_mut(self.heads.group() * head).zip(pairs).enumerate().map(move |(key, out)| (i, key, out))
            })
            .collect();
        tasks.into_par_iter().for_each_init(
            || Scratch::new(longest),
            |scratch, (i, key, (of_queries, (of_keys, of_values)))| {
                let rows = Rows { context, gradient, normalisers };
                self.backward_group(rate, (i, key), qkv, rows, (of_queries, of_keys, of_values), scratch);
            },
        );
        Ok(slopes)
    }

    fn backward_group<T: Element>(
        &self,
        rate: Option<Rate>,
        (i, key): (usize, usize),
        qkv: &[T],
        rows: Rows<'_, T>,
        (of_queries, of_keys, of_values): (&mut [T], &mut [T], &mut [T]),
        scratch: &mut Scratch<T>,
    ) {
        let (range, width, row_width, level) = (self.packing.range(i), self.heads.width, self.heads.query_width(), Level::best());
        let length = range.len();
        let keys = self.head(qkv, i, self.heads.queries + key);
        let values = self.head(qkv, i, self.heads.queries + self.heads.keys + key);
        let Scratch { scores, slopes, factors } = scratch;
        for (member, of_queries) in of_queries.chunks_exact_mut(length * width).enumerate() {
            let query_head = key * self.heads.group() + member;
            let queries = self.head(qkv, i, query_head);
            let normalisers = &rows.normalisers[range.start * self.heads.queries + query_head * length..][..length];
            let stream = self.stream(i, query_head);
            let dropped = rate.map(|rate| Dropped { rate, stream: &stream, length });
            for first in (0..length).step_by(ROW_BLOCK) {
                let end = (first + ROW_BLOCK).min(length);
                let (count, stride) = (end - first, padded(end));
                let (scores, slopes) = (&mut scores[..count * stride], &mut slopes[..count * stride]);
                let here = (range.start + first) * row_width + query_head * width;
                let gradient = Matrix::strided(&rows.gradient[here..], count, width, row_width);
                let queries = Matrix::new(&queries[first * width..end * width], count, width);
                let (keys, values) = (Matrix::new(&keys[..end * width], end, width), Matrix::new(&values[..end * width], end, width));
                multiply(scores, stride, false, queries, keys.transposed(), Threads::One);
                multiply(slopes, stride, false, gradient, values.transposed(), Threads::One);
                let block = Block { first, stride, width, row_width };
                let operands = (&rows.context[here..], &rows.gradient[here..], &normalisers[first..end]);
                differentiate_rows(level, scores, slopes, block, self.scale(), operands, dropped.as_ref(), factors);
                let (kept, slopes) = (Matrix::strided(scores, count, end, stride), Matrix::strided(slopes, count, end, stride));
                multiply(of_values, width, true, kept.transposed(), gradient, Threads::One);
                multiply(&mut of_queries[first * width..], width, false, slopes, keys, Threads::One);
                multiply(of_keys, width, true, slopes.transposed(), queries, Threads::One);
            }
        }
    }
}

/// What a backward task reads: `[rows, query width]` twice, and `[sequence][query head][length]`.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    context: &'a [T],
    gradient: &'a [T],
    normalisers: &'a [T],
}

/// Rows of scores from row `first` of the sequence on, `stride` apart, and where a head's rows of the context lie.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    stride: usize,
    width: usize,
    row_width: usize,
}

levelled! {
    /// Scores become probabilities, 0 right of the diagonal; `normalisers` receives ln of the sum of exp(scale * score) of each row.
    fn softmax_rows<T>(scores: &mut [T], first: usize, stride: usize, scale: T, normalisers: &mut [T]) {
        for (r, (row, normaliser)) in scores.chunks_exact_mut(stride).zip(normalisers).enumerate() {
            let seen = first + r + 1;
            let (row, hidden) = row.split_at_mut(padded(seen));
            hidden.fill(T::zero());
            row[seen..].fill(T::NEGATIVE_INFINITY);
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
            *normaliser = largest * scale + T::from_f64(sum.to_f64().ln());
            let inverse = T::one() / sum;
            row[..seen].iter_mut().for_each(|probability| *probability *= inverse);
            row[seen..].fill(T::zero());
        }
    }
}

levelled! {
    fn drop_rows<T>(probabilities: &mut [T], first: usize, stride: usize, dropped: &Dropped<'_>, factors: &mut [T]) {
        let factors = &mut factors[..dropped.length];
        for (r, row) in probabilities.chunks_exact_mut(stride).enumerate() {
            dropped.rate.factors(dropped.stream, first + r, factors);
            row.iter_mut().zip(factors.iter()).for_each(|(probability, factor)| *probability *= *factor);
        }
    }
}

levelled! {
    /// Scores become probabilities after dropout, and `slopes`, the gradients of those, become the gradients of the unscaled scores.
    /// `operands`: the context, its gradient, the normalisers of these rows.
    fn differentiate_rows<T>(
        scores: &mut [T], slopes: &mut [T], block: Block, scale: T, operands: (&[T], &[T], &[T]), dropped: Option<&Dropped<'_>>,
        factors: &mut [T],
    ) {
        let (context, gradient, normalisers) = operands;
        factors.fill(T::one());
        for (r, (scores, slopes)) in scores.chunks_exact_mut(block.stride).zip(slopes.chunks_exact_mut(block.stride)).enumerate() {
            let seen = block.first + r + 1;
            if let Some(dropped) = dropped {
                dropped.rate.factors(dropped.stream, block.first + r, &mut factors[..dropped.length]);
            }
            let here = r * block.row_width..r * block.row_width + block.width;
            let mean = super::level::lane_sum_of_two(&context[here.clone()], &gradient[here], |context, gradient| context * gradient);
            let normaliser = normalisers[r];
            let whole = padded(seen);
            for ((score, slope), factor) in scores[..whole].iter_mut().zip(&mut slopes[..whole]).zip(factors.iter()) {
                let probability = (*score * scale - normaliser).exp();
                *slope = probability * (*slope * *factor - mean) * scale;
                *score = probability * *factor;
            }
            scores[seen..].fill(T::zero());
            slopes[seen..].fill(T::zero());
        }
    }
}
