//! Packing: the operands of a product copied into panels, in the order in which the innermost loop reads them.
//!
//! A panel holds `W` neighbouring lanes (rows of the left operand, columns of the right one) over some depth: lane l at depth d is word
//! `d * W + l`. Lanes beyond the last, and depths up to a multiple of [`DEPTH_STEP`], are zeros. In the two bf16 formats depths are taken by
//! twos, the second of each two first, because that is the order in which `vdpbf16ps` adds.

use std::ops::Range;

/// The depth of a panel is a multiple of this.
pub(super) const DEPTH_STEP: usize = 4;

/// One operand: lane l at depth d is `values[l * lane_stride + d * depth_stride]`. One of the strides is 1.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) values: &'a [f32],
    pub(super) lane_stride: usize,
    pub(super) depth_stride: usize,
}

/// What a word of a panel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One number in single precision.
    Single,
    /// One number rounded to bf16, widened again; of every two depths the second lies first.
    Rounded,
    /// The bf16 of two depths, the first in the low half: half as many words.
    Pairs,
}

impl Format {
    /// Words of a panel for each lane.
    pub(super) fn words(self, depth: usize) -> usize {
        let depth = depth.next_multiple_of(DEPTH_STEP);
        if self == Self::Pairs { depth / 2 } else { depth }
    }
}

/// The bits of the nearest bf16 (ties to even) in the upper half, zeros in the lower. As the processor's own instructions do, numbers below the
/// normal range become zeros of their sign.
#[inline(always)]
pub(super) fn rounded(value: f32) -> u32 {
    const SIGN: u32 = 1 << 31;
    const INFINITY: u32 = 0x7f80_0000;
    const SMALLEST_NORMAL: u32 = 0x0080_0000;
    let bits = value.to_bits();
    let magnitude = bits & !SIGN;
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    let normal = if magnitude < SMALLEST_NORMAL { bits & SIGN } else { nearest };
    // A rounding carry would turn some not-a-number into infinity.
    if magnitude > INFINITY { (bits | 0x0040_0000) & 0xffff_0000 } else { normal }
}

/// `V` lanes at [`DEPTH_STEP`] depths: few enough for the registers, because what goes through memory on its way waits there.
type Block<T, const V: usize> = [[T; V]; DEPTH_STEP];

/// A block of numbers as the words of a format.
trait Words {
    /// Rows of words.
    const ROWS: usize;

    /// The words; rows beyond [`Self::ROWS`] mean nothing.
    fn of<const V: usize>(block: &Block<f32, V>) -> Block<u32, V>;
}

#[inline(always)]
fn each<const V: usize>(block: &Block<f32, V>, word: impl Fn(f32) -> u32) -> Block<u32, V> {
    let mut words = [[0; V]; DEPTH_STEP];
    for depth in 0..DEPTH_STEP {
        for lane in 0..V {
            words[depth][lane] = word(block[depth][lane]);
        }
    }
    words
}

struct Single;
struct Rounded;
struct Pairs;

impl Words for Single {
    const ROWS: usize = 4;

    #[inline(always)]
    fn of<const V: usize>(block: &Block<f32, V>) -> Block<u32, V> {
        each(block, f32::to_bits)
    }
}

impl Words for Rounded {
    const ROWS: usize = 4;

    #[inline(always)]
    fn of<const V: usize>(block: &Block<f32, V>) -> Block<u32, V> {
        let [a, b, c, d] = each(block, rounded);
        [b, a, d, c]
    }
}

impl Words for Pairs {
    const ROWS: usize = 2;

    #[inline(always)]
    fn of<const V: usize>(block: &Block<f32, V>) -> Block<u32, V> {
        let words = each(block, rounded);
        let mut pairs = [[0; V]; DEPTH_STEP];
        for pair in 0..Self::ROWS {
            for lane in 0..V {
                pairs[pair][lane] = words[2 * pair][lane] >> 16 | words[2 * pair + 1][lane];
            }
        }
        pairs
    }
}

/// Packs one panel of at most `W` lanes, `V` of them at a time where they lie beside each other.
///
/// # Panics
/// If the operand or the panel is too short.
#[inline(always)]
fn pack<const W: usize, const V: usize>(
    operand: Operand<'_>,
    lanes: Range<usize>,
    depths: Range<usize>,
    format: Format,
    panel: &mut [u32],
) {
    match format {
        Format::Single => pack_words::<Single, W, V>(operand, lanes, depths, panel),
        Format::Rounded => pack_words::<Rounded, W, V>(operand, lanes, depths, panel),
        Format::Pairs => pack_words::<Pairs, W, V>(operand, lanes, depths, panel),
    }
}

#[inline(always)]
fn pack_words<F: Words, const W: usize, const V: usize>(
    operand: Operand<'_>,
    lanes: Range<usize>,
    depths: Range<usize>,
    panel: &mut [u32],
) {
    for (depth, words) in depths.clone().step_by(DEPTH_STEP).zip(panel.chunks_exact_mut(F::ROWS * W)) {
        if lanes.len() < W || depths.end - depth < DEPTH_STEP {
            for lane in (0..W).step_by(4) {
                store::<F, W, 4>(&padded(operand, lanes.start + lane..lanes.end, depth..depths.end), lane, words);
            }
        } else if operand.lane_stride == 1 {
            for lane in (0..W).step_by(V) {
                store::<F, W, V>(&copied(operand, lanes.start + lane, depth), lane, words);
            }
        } else {
            for lane in (0..W).step_by(4) {
                store::<F, W, 4>(&transposed(operand, lanes.start + lane, depth), lane, words);
            }
        }
    }
}

#[inline(always)]
fn store<F: Words, const W: usize, const V: usize>(block: &Block<f32, V>, lane: usize, words: &mut [u32]) {
    let rows = F::of(block);
    for row in 0..F::ROWS {
        words[row * W + lane..][..V].copy_from_slice(&rows[row]);
    }
}

/// Rows of a strided operand that are asked for ahead of their use: the processor does not guess them by itself.
const AHEAD: usize = 12;

/// Lanes that lie beside each other.
#[inline(always)]
fn copied<const V: usize>(operand: Operand<'_>, lane: usize, depth: usize) -> Block<f32, V> {
    let mut block = [[0.0; V]; DEPTH_STEP];
    for (i, row) in block.iter_mut().enumerate() {
        let first = lane + (depth + i) * operand.depth_stride;
        prefetch(operand.values, first + AHEAD * operand.depth_stride);
        row.copy_from_slice(&operand.values[first..][..V]);
    }
    block
}

/// Four lanes whose depths lie beside each other.
#[inline(always)]
fn transposed(operand: Operand<'_>, lane: usize, depth: usize) -> Block<f32, 4> {
    let mut lanes = [[0.0; 4]; DEPTH_STEP];
    for (i, lanes) in lanes.iter_mut().enumerate() {
        let first = (lane + i) * operand.lane_stride + depth;
        lanes.copy_from_slice(&operand.values[first..][..DEPTH_STEP]);
    }
    let [a, b, c, d] = lanes;
    [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]], [a[2], b[2], c[2], d[2]], [a[3], b[3], c[3], d[3]]]
}

/// The first four of the lanes at the first depths, zeros where there are fewer.
#[inline(always)]
fn padded(operand: Operand<'_>, lanes: Range<usize>, depths: Range<usize>) -> Block<f32, 4> {
    let mut block = [[0.0; 4]; DEPTH_STEP];
    for (row, depth) in block.iter_mut().zip(depths) {
        for (value, lane) in row.iter_mut().zip(lanes.clone()) {
            *value = operand.values[lane * operand.lane_stride + depth * operand.depth_stride];
        }
    }
    block
}

/// Asks for the cache line of a number that will be read soon, if it is there.
#[inline(always)]
fn prefetch(values: &[f32], place: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(values.as_ptr().wrapping_add(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, place);
}

/// Packs a panel: operand, lanes, depths, format, panel.
///
/// # Safety
/// The processor must have the instructions it was compiled for.
pub(super) type Pack = unsafe fn(Operand<'_>, Range<usize>, Range<usize>, Format, &mut [u32]);

/// How the panels of a tile's two operands are packed.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    pub(super) left: Pack,
    pub(super) right: Pack,
}

/// Compiles the packing of one kind of tile, with the instructions that are named, if any.
macro_rules! packing {
    ($name:ident, $rows:literal, $columns:literal by $vector:literal $(, $features:literal)?) => {
        pub(super) const $name: Packing = {
            $(#[target_feature(enable = $features)])?
            fn left(operand: Operand<'_>, lanes: Range<usize>, depths: Range<usize>, format: Format, panel: &mut [u32]) {
                pack::<$rows, 4>(operand, lanes, depths, format, panel);
            }
            $(#[target_feature(enable = $features)])?
            fn right(operand: Operand<'_>, lanes: Range<usize>, depths: Range<usize>, format: Format, panel: &mut [u32]) {
                pack::<$columns, $vector>(operand, lanes, depths, format, panel);
            }
            Packing { left, right }
        };
    };
}

packing!(PORTABLE, 4, 24 by 8);
#[cfg(target_arch = "x86_64")]
packing!(AVX2, 4, 16 by 8, "avx2,fma");
#[cfg(target_arch = "x86_64")]
packing!(AVX512, 12, 32 by 16, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
