//! The innermost loop: one tile of the result, from one panel of each operand.
//!
//! Every element of a tile is one chain of fused multiply-adds in the order of the depth, in whatever vectors: all instruction sets give the
//! same bits. `vdpbf16ps` is such a chain too, of two links (Intel's manual: no rounding in between but that of each link), save that it takes
//! subnormal sums for zeros.

/// Rows and columns of a tile, and how it is made.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) run: Run,
}

/// `run(steps, left, right, destination, row_stride, accumulate)`: a whole tile is written to `destination`, or added to it where `accumulate`.
///
/// # Safety
/// The panels must have `steps` times `rows` and `steps` times `columns` words, the destination `rows` rows of `columns` numbers that lie
/// `row_stride` apart, and the processor the instructions of the tile.
pub(super) type Run = unsafe fn(usize, *const u32, *const u32, *mut f32, usize, bool);

/// Numbers of the largest tile.
pub(super) const MOST_NUMBERS: usize = 12 * 32;

/// For AVX-512: 24 accumulators of 16 numbers.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512: Tile = Tile { rows: 12, columns: 32, run: x86::avx512 };

/// The same for pairs of bf16.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX512_BF16: Tile = Tile { rows: 12, columns: 32, run: x86::avx512_bf16 };

/// For AVX2: 8 accumulators of 8 numbers, enough for two multiply-adds at a time that take four cycles each. With 12 and what they are made of, all
/// 16 registers are taken, the compiler keeps one in memory, and the loop waits for it: less than half as fast.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: Tile = Tile { rows: 4, columns: 16, run: x86::avx2 };

/// For any processor.
pub(super) const PORTABLE: Tile = Tile { rows: 4, columns: 24, run: portable };

/// # Safety
/// See [`Run`].
unsafe fn portable(steps: usize, left: *const u32, right: *const u32, destination: *mut f32, row_stride: usize, accumulate: bool) {
    // SAFETY: the caller's panels have this many words.
    let (left, right) = unsafe { (std::slice::from_raw_parts(left, steps * 4), std::slice::from_raw_parts(right, steps * 24)) };
    let mut sums = [[0f32; 24]; 4];
    for (left, right) in left.chunks_exact(4).zip(right.chunks_exact(24)) {
        for (sums, left) in sums.iter_mut().zip(left) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = f32::from_bits(*left).mul_add(f32::from_bits(*right), *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's destination has 4 rows of 24 numbers.
        let destination = unsafe { std::slice::from_raw_parts_mut(destination.add(row * row_stride), 24) };
        for (value, sum) in destination.iter_mut().zip(sums) {
            *value = if accumulate { *value + *sum } else { *sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Writes or adds the accumulators `$sums[row][vector]`.
    macro_rules! store {
        ($sums:ident, $lanes:literal, $load:ident, $add:ident, $store:ident, $destination:ident, $row_stride:ident, $accumulate:ident) => {
            for (row, sums) in $sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    // SAFETY: the caller's destination covers the tile.
                    unsafe {
                        let place = $destination.add(row * $row_stride + vector * $lanes);
                        $store(place, if $accumulate { $add($load(place), *sum) } else { *sum });
                    }
                }
            }
        };
    }

    /// # Safety
    /// See [`super::Run`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(
        steps: usize,
        left: *const u32,
        right: *const u32,
        destination: *mut f32,
        row_stride: usize,
        accumulate: bool,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; 12];
        for row in 0..12 {
            // Asks for the destination early; a prefetch reads nothing.
            _mm_prefetch::<_MM_HINT_T0>(destination.wrapping_add(row * row_stride).cast());
            _mm_prefetch::<_MM_HINT_T0>(destination.wrapping_add(row * row_stride + 16).cast());
            _mm_prefetch::<_MM_HINT_T0>(destination.wrapping_add(row * row_stride + 31).cast());
        }
        for step in 0..steps {
            // SAFETY: the caller's panels have `steps` times 12 and 32 words.
            unsafe {
                let right = right.add(step * 32).cast::<f32>();
                let columns = [_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*left.add(step * 12 + row).cast::<f32>());
                    sums[0] = _mm512_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(value, columns[1], sums[1]);
                }
            }
        }
        store!(sums, 16, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps, destination, row_stride, accumulate);
    }

    /// # Safety
    /// See [`super::Run`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn avx512_bf16(
        steps: usize,
        left: *const u32,
        right: *const u32,
        destination: *mut f32,
        row_stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: the two types are the same 512 bits.
        let pairs = |words: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) };
        let mut sums = [[_mm512_setzero_ps(); 2]; 12];
        for step in 0..steps {
            // SAFETY: the caller's panels have `steps` times 12 and 32 words.
            unsafe {
                let right = right.add(step * 32);
                let columns = [pairs(_mm512_loadu_si512(right.cast())), pairs(_mm512_loadu_si512(right.add(16).cast()))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = pairs(_mm512_set1_epi32(*left.add(step * 12 + row).cast::<i32>()));
                    sums[0] = _mm512_dpbf16_ps(sums[0], value, columns[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], value, columns[1]);
                }
            }
        }
        store!(sums, 16, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps, destination, row_stride, accumulate);
    }

    /// # Safety
    /// See [`super::Run`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        steps: usize,
        left: *const u32,
        right: *const u32,
        destination: *mut f32,
        row_stride: usize,
        accumulate: bool,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; 4];
        for step in 0..steps {
            // SAFETY: the caller's panels have `steps` times 4 and 16 words.
            unsafe {
                let right = right.add(step * 16).cast::<f32>();
                let columns = [_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*left.add(step * 4 + row).cast::<f32>());
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
            }
        }
        store!(sums, 8, _mm256_loadu_ps, _mm256_add_ps, _mm256_storeu_ps, destination, row_stride, accumulate);
    }
}
