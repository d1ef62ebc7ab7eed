//! The k largest of a row, exactly.

use super::Scratch;
use super::lanes::Lanes;

/// A logit and its id as one number whose order is the stored order: larger logits are larger, then smaller ids are larger.
#[inline(always)]
pub(super) fn key(logit: f32, id: usize) -> u64 {
    // Adding 0 turns -0 into 0: they are equal, so their ids decide.
    let bits = (logit + 0.0).to_bits();
    // Flipping the negative numbers entirely and the sign of the others makes the order of bits that of values.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
    u64::from(ordered) << 32 | u64::from(!(id as u32))
}

/// The id in a key.
#[inline(always)]
pub(super) fn id_of(key: u64) -> u32 {
    !(key as u32)
}

/// The logit in a key; 0 for both zeros.
#[inline(always)]
pub(super) fn value_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered })
}

/// Leaves the keys of the `k` largest, descending, in `scratch.candidates`, and returns the largest logit; nothing where a logit is not finite. Where
/// there is a bias, it is added first, and `scratch.row` holds the sums.
#[inline(always)]
pub(super) fn largest<L: Lanes>(logits: &[f32], bias: Option<&[f32]>, k: usize, scratch: &mut Scratch) -> Option<f32> {
    // The bound needs k blocks; twice as many keep it tight. Smaller blocks cost more reductions, but far less than collecting a whole row.
    if logits.len() / 64 >= 2 * k { by_blocks::<L, 64>(logits, bias, k, scratch) } else { by_blocks::<L, 16>(logits, bias, k, scratch) }
}

#[inline(always)]
fn by_blocks<L: Lanes, const BLOCK: usize>(logits: &[f32], bias: Option<&[f32]>, k: usize, scratch: &mut Scratch) -> Option<f32> {
    let Scratch { row, maxima, ranking, candidates } = scratch;
    let (maximum, logits) = match bias {
        None => (block_maxima::<L, BLOCK, false>(logits, &[], &mut [], maxima)?, logits),
        Some(bias) => {
            row.resize(logits.len(), 0.0);
            (block_maxima::<L, BLOCK, true>(logits, bias, row, maxima)?, &row[..])
        }
    };
    let threshold = if maxima.len() > k {
        ranking.clone_from(maxima);
        *ranking.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    candidates.clear();
    collect_row::<L, BLOCK>(logits, maxima, 0, threshold, candidates);
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(|a, b| b.cmp(a));
    Some(maximum)
}

/// Fills `maxima` with the largest logit of every block, and returns the largest of all; nothing where a logit is not finite. If `BIASED`, `bias` is
/// added to `logits` first, and the sums are written to `row`; all three are of one length.
#[inline(always)]
pub(super) fn block_maxima<L: Lanes, const BLOCK: usize, const BIASED: bool>(
    logits: &[f32],
    bias: &[f32],
    row: &mut [f32],
    maxima: &mut Vec<f32>,
) -> Option<f32> {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    let (biases, rest_of_bias) = bias.as_chunks::<BLOCK>();
    let (sums, rest_of_row) = row.as_chunks_mut::<BLOCK>();
    maxima.clear();
    maxima.resize(logits.len().div_ceil(BLOCK), f32::NEG_INFINITY);
    // A finite number times 0 is 0; infinities and NaN give NaN, which stays in a sum. Two sums, so that one addition need not wait for the other.
    let zero = L::splat(0.0);
    let mut witnesses = [zero; 2];
    for (index, (block, maximum)) in blocks.iter().zip(&mut maxima[..]).enumerate() {
        let mut high = L::splat(f32::NEG_INFINITY);
        for start in (0..BLOCK).step_by(L::COUNT) {
            let mut lanes = L::load(&block[start..]);
            if BIASED {
                lanes = lanes.add(L::load(&biases[index][start..]));
                lanes.store(&mut sums[index][start..]);
            }
            let witness = &mut witnesses[start / L::COUNT % 2];
            *witness = lanes.mul_add(zero, *witness);
            high = lanes.larger(high);
        }
        *maximum = high.largest();
    }
    let finite = witnesses[0].add(witnesses[1]).sum() == 0.0;
    let rest = if BIASED {
        rest_of_row.iter_mut().zip(rest.iter().zip(rest_of_bias)).for_each(|(sum, (logit, bias))| *sum = logit + bias);
        rest_of_row
    } else {
        rest
    };
    if let ([_, ..], Some(maximum)) = (rest, maxima.last_mut()) {
        *maximum = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    }
    let finite = finite && rest.iter().all(|logit| logit.is_finite());
    finite.then(|| maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// Pushes the keys of the logits that reach the threshold, the first of which is that of the id `first`. `maxima` as [`block_maxima`] leaves them.
#[inline(always)]
pub(super) fn collect_row<L: Lanes, const BLOCK: usize>(
    logits: &[f32],
    maxima: &[f32],
    first: usize,
    threshold: f32,
    candidates: &mut Vec<u64>,
) {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate() {
        if maxima[index] >= threshold {
            collect::<L>(block, first + index * BLOCK, threshold, candidates);
        }
    }
    let first = first + logits.len() - rest.len();
    for (offset, logit) in rest.iter().enumerate() {
        if *logit >= threshold {
            candidates.push(key(*logit, first + offset));
        }
    }
}

/// The same of a block.
#[inline(always)]
fn collect<L: Lanes>(block: &[f32], first: usize, threshold: f32, candidates: &mut Vec<u64>) {
    for start in (0..block.len()).step_by(L::COUNT) {
        let mut reached = L::load(&block[start..]).reaches(L::splat(threshold));
        while reached != 0 {
            let index = start + reached.trailing_zeros() as usize;
            reached &= reached - 1;
            candidates.push(key(block[index], first + index));
        }
    }
}
