//! Which tile and which panels serve a product.

use super::panels::{self, Format, Packing};
use super::tile::{self, Tile};
use crate::kernels::level::Level;
use crate::kernels::precision::Precision;

/// A tile and the panels it reads, both of instructions that this processor has.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) tile: Tile,
    pub(super) packing: Packing,
    pub(super) format: Format,
}

impl Kernel {
    /// The fastest for this precision at this level.
    pub(super) fn new(precision: Precision, level: Level) -> Self {
        let format = if precision == Precision::Bf16 { Format::Rounded } else { Format::Single };
        #[cfg(target_arch = "x86_64")]
        if level.is_avx512() {
            if precision == Precision::Bf16 && x86::pairs_are_faster() {
                return x86::pairs();
            }
            return Self { tile: tile::AVX512, packing: panels::AVX512, format };
        } else if level.is_avx2() {
            return Self { tile: tile::AVX2, packing: panels::AVX2, format };
        }
        let _ = level;
        Self { tile: tile::PORTABLE, packing: panels::PORTABLE, format }
    }

    /// Every one of this processor for this precision. They give the same bits.
    #[cfg(test)]
    pub(super) fn all(precision: Precision) -> Vec<Self> {
        let format = if precision == Precision::Bf16 { Format::Rounded } else { Format::Single };
        // Whichever is the fastest for bf16 here, its rounded form is one of them.
        let of_level = |level| Self { format, ..Self::new(Precision::Single, level) };
        let mut all: Vec<Self> = Level::available().into_iter().map(of_level).collect();
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Bf16 && crate::kernels::precision::has_bf16() {
            all.push(x86::pairs());
        }
        all
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    /// The tile of `vdpbf16ps`.
    pub(super) fn pairs() -> Kernel {
        Kernel { tile: tile::AVX512_BF16, packing: panels::AVX512, format: Format::Pairs }
    }

    /// Whether `vdpbf16ps` is clearly faster than two fused multiply-adds on rounded numbers. Processors differ: some do it at half their rate.
    /// The choice changes no bit of a result, so it may be measured; it takes less than a millisecond, once.
    pub(super) fn pairs_are_faster() -> bool {
        static FASTER: OnceLock<bool> = OnceLock::new();
        *FASTER.get_or_init(|| {
            // Twice as many steps as pairs for the same product.
            crate::kernels::precision::has_bf16() && time(tile::AVX512_BF16, STEPS / 2) * 6 < time(tile::AVX512, STEPS) * 5
        })
    }

    /// Depth of the product that is timed.
    const STEPS: usize = 256;

    /// The shortest time of some tiles.
    fn time(tile: Tile, steps: usize) -> Duration {
        let (left, right) = (vec![0u32; tile.rows * STEPS], vec![0u32; tile.columns * STEPS]);
        let mut destination = vec![0f32; tile.rows * tile.columns];
        let once = || {
            let start = Instant::now();
            for _ in 0..16 {
                // SAFETY: the buffers have the tile's sizes, and `pairs_are_faster` and its caller looked for the instructions.
                unsafe { (tile.run)(steps, left.as_ptr(), right.as_ptr(), destination.as_mut_ptr(), tile.columns, true) };
            }
            start.elapsed()
        };
        std::iter::repeat_with(once).take(8).min().unwrap_or_default()
    }
}
