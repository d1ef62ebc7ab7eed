//! The k largest of a row, exactly.

use super::Scratch;

/// Lanes of the loops: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

/// A logit and its id as one number whose order is the stored order: larger logits are larger, then smaller ids are larger.
#[inline(always)]
fn key(logit: f32, id: usize) -> u64 {
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

/// Leaves the keys of the `k` largest, descending, in `scratch.candidates`; returns the largest logit (NaN passed over).
#[inline(always)]
pub(super) fn largest(logits: &[f32], k: usize, scratch: &mut Scratch) -> f32 {
    // The bound needs k blocks; twice as many keep it tight. Smaller blocks cost more reductions, but far less than collecting a whole row.
    if logits.len() / 64 >= 2 * k { by_blocks::<64>(logits, k, scratch) } else { by_blocks::<16>(logits, k, scratch) }
}

#[inline(always)]
fn by_blocks<const BLOCK: usize>(logits: &[f32], k: usize, scratch: &mut Scratch) -> f32 {
    let Scratch { maxima, ranking, candidates } = scratch;
    let maximum = block_maxima::<BLOCK>(logits, maxima);
    let threshold = if maxima.len() > k {
        ranking.clone_from(maxima);
        *ranking.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    candidates.clear();
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        if maxima[index] >= threshold {
            collect(block, index * BLOCK, threshold, candidates);
        }
    }
    // With a NaN in the row there may be too few; the row is refused then.
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(|a, b| b.cmp(a));
    maximum
}

/// Fills `maxima` with the largest logit of every block (NaN passed over) and returns the largest of all.
#[inline(always)]
fn block_maxima<const BLOCK: usize>(logits: &[f32], maxima: &mut Vec<f32>) -> f32 {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    maxima.clear();
    maxima.resize(logits.len().div_ceil(BLOCK), f32::NEG_INFINITY);
    for (block, maximum) in blocks.iter().zip(&mut maxima[..]) {
        let mut high = [f32::NEG_INFINITY; LANES];
        for lanes in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                high[lane] = larger(lanes[lane], high[lane]);
            }
        }
        *maximum = largest_lane(high);
    }
    if let ([_, ..], Some(maximum)) = (rest, maxima.last_mut()) {
        for logit in rest {
            *maximum = larger(*logit, *maximum);
        }
    }
    let mut maximum = f32::NEG_INFINITY;
    for high in &maxima[..] {
        maximum = larger(*high, maximum);
    }
    maximum
}

#[inline(always)]
fn collect(block: &[f32], first: usize, threshold: f32, candidates: &mut Vec<u64>) {
    for (lanes, chunk) in block.chunks(LANES).enumerate() {
        let mut reached = 0u32;
        for (lane, logit) in chunk.iter().enumerate() {
            reached |= u32::from(*logit >= threshold) << lane;
        }
        while reached != 0 {
            let lane = reached.trailing_zeros() as usize;
            reached &= reached - 1;
            candidates.push(key(chunk[lane], first + lanes * LANES + lane));
        }
    }
}

/// As the processor's own instruction does it: `b` where one is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn largest_lane(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}
