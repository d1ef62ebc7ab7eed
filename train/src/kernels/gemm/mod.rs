//! Products of single-precision matrices, their operands taken as they are or rounded to bf16.
//!
//! The operands are copied into panels ([`panels`]), the result is made tile by tile ([`tile`]), and this file says which part of the product
//! is made when, and by which thread: the right operand is packed once, a strip of columns at a time, by all threads; then every task makes
//! some rows of the strip, packing its rows of the left operand as it goes. The depth is cut into blocks so that a panel of the right operand
//! stays in the first cache, and one block of the left in the second (Goto and van de Geijn 2008).
//!
//! An element of the result is a sum of blocks of [`BLOCK_DEPTH`], each a chain of fused multiply-adds. Neither depends on the instructions, the
//! number of threads or the shape of the result, so neither do the bits.

mod kernel;
mod panels;
mod scratch;
mod tile;

use super::level::Level;
use super::matrix::{Matrix, Threads};
use super::precision::Precision;
use kernel::Kernel;
use panels::Operand;
use rayon::prelude::*;
use scratch::with_scratch;
use std::ops::Range;
use tile::{MOST_NUMBERS, Tile};

/// Depth of one block: 256 times 32 columns are 32 KiB of the first cache.
const BLOCK_DEPTH: usize = 256;

/// Rows of the left operand that one task takes at most: 240 rows of one block are 240 KiB of the second cache.
const BLOCK_ROWS: usize = 240;

/// Fewer rows are no task of their own.
const FEWEST_ROWS: usize = 48;

/// Depth that is packed of the right operand at a time: whole blocks.
const STRIP_DEPTH: usize = 8 * BLOCK_DEPTH;

/// Words of the right operand that are packed at a time.
const STRIP_WORDS: usize = 1 << 22;

/// `destination = left right`, or `destination += left right` where `accumulate`; rows of the destination lie `row_stride` apart.
///
/// # Safety
/// `destination` must be valid for writes of left.rows x right.columns numbers, and initialised if `accumulate`; the inner dimensions must be
/// equal.
pub(super) unsafe fn multiply(
    precision: Precision,
    destination: *mut f32,
    row_stride: usize,
    accumulate: bool,
    left: Matrix<'_, f32>,
    right: Matrix<'_, f32>,
    threads: Threads,
) {
    let threads = if threads == Threads::One { 1 } else { rayon::current_num_threads() };
    let product = Product {
        kernel: Kernel::new(precision, Level::best()),
        left: Operand { values: left.values, lane_stride: left.row_stride, depth_stride: left.column_stride },
        right: Operand { values: right.values, lane_stride: right.column_stride, depth_stride: right.row_stride },
        rows: left.rows,
        columns: right.columns,
        depth: left.columns,
    };
    // SAFETY: as the caller promises.
    unsafe { product.run(Destination { first: destination, row_stride, accumulate }, threads) };
}

/// A product: `rows` lanes of the left operand, `columns` lanes of the right one, over their common depth.
#[derive(Clone, Copy)]
struct Product<'a> {
    kernel: Kernel,
    left: Operand<'a>,
    right: Operand<'a>,
    rows: usize,
    columns: usize,
    depth: usize,
}

/// Where the result goes. Tasks write to parts of it that do not overlap.
#[derive(Clone, Copy)]
struct Destination {
    first: *mut f32,
    row_stride: usize,
    accumulate: bool,
}

// SAFETY: tasks are given disjoint tiles of it (see `Product::run`).
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// Columns over some depth, their right operand packed.
struct Strip<'a> {
    columns: Range<usize>,
    depths: Range<usize>,
    panels: &'a [u32],
}

impl Product<'_> {
    /// # Safety
    /// The destination must be valid for writes of rows x columns numbers, and initialised if it is added to.
    unsafe fn run(&self, destination: Destination, threads: usize) {
        if self.rows == 0 || self.columns == 0 {
            return;
        }
        if self.depth == 0 {
            // SAFETY: as the caller promises.
            return unsafe { destination.add_nothing(self.rows, self.columns) };
        }
        let width = self.kernel.tile.columns;
        for first_depth in (0..self.depth).step_by(STRIP_DEPTH) {
            let depths = first_depth..self.depth.min(first_depth + STRIP_DEPTH);
            let words = self.kernel.format.words(depths.len());
            let strips = (self.columns * words).div_ceil(STRIP_WORDS);
            let strip = self.columns.div_ceil(strips).next_multiple_of(width);
            for first in (0..self.columns).step_by(strip) {
                let columns = first..self.columns.min(first + strip);
                with_scratch::<1, _>(columns.len().next_multiple_of(width) * words, |panels| {
                    self.pack_right(&columns, &depths, panels, threads);
                    let strip = Strip { columns, depths: depths.clone(), panels };
                    let tasks = self.tasks(strip.columns.len(), threads);
                    // SAFETY: the tasks are parts of the caller's destination that do not overlap.
                    let make = |(rows, panels): (Range<usize>, Range<usize>)| unsafe { self.make(destination, &strip, rows, panels) };
                    if threads == 1 { tasks.into_iter().for_each(make) } else { tasks.into_par_iter().for_each(make) }
                });
            }
        }
    }

    fn pack_right(&self, columns: &Range<usize>, depths: &Range<usize>, panels: &mut [u32], threads: usize) {
        let Kernel { tile, packing, format } = self.kernel;
        let words = tile.columns * format.words(depths.len());
        let pack = |(i, panel): (usize, &mut [u32])| {
            let first = columns.start + i * tile.columns;
            // SAFETY: the kernel was chosen for this processor.
            unsafe { (packing.right)(self.right, first..columns.end.min(first + tile.columns), depths.clone(), format, panel) };
        };
        if threads == 1 {
            panels.chunks_exact_mut(words).enumerate().for_each(pack);
        } else {
            panels.par_chunks_exact_mut(words).enumerate().for_each(pack);
        }
    }

    /// Rows, and panels of the strip, of every task: enough of them for all threads, where the product is large enough.
    fn tasks(&self, columns: usize, threads: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let wanted = if threads == 1 { 1 } else { 2 * threads };
        let blocks = self.rows.div_ceil(BLOCK_ROWS).max(wanted.min(self.rows / FEWEST_ROWS)).max(1);
        let rows = self.rows.div_ceil(blocks).next_multiple_of(self.kernel.tile.rows);
        let panels = columns.div_ceil(self.kernel.tile.columns);
        let groups = wanted.div_ceil(self.rows.div_ceil(rows)).min(panels);
        let group = panels.div_ceil(groups);
        let starts = (0..self.rows).step_by(rows).flat_map(|row| (0..panels).step_by(group).map(move |panel| (row, panel)));
        starts.map(|(row, panel)| (row..self.rows.min(row + rows), panel..panels.min(panel + group))).collect()
    }

    /// Makes some rows of some panels of a strip.
    ///
    /// # Safety
    /// As for [`Self::run`], for these rows and columns.
    unsafe fn make(&self, destination: Destination, strip: &Strip<'_>, rows: Range<usize>, panels: Range<usize>) {
        let Kernel { tile, packing, format } = self.kernel;
        let words = tile.columns * format.words(strip.depths.len());
        let tiles = || rows.clone().step_by(tile.rows).map(|row| row..rows.end.min(row + tile.rows));
        let block = BLOCK_DEPTH.min(strip.depths.len());
        with_scratch::<0, _>(rows.len().next_multiple_of(tile.rows) * format.words(block), |left| {
            for depth in strip.depths.clone().step_by(block) {
                let depths = depth..strip.depths.end.min(depth + block);
                let (before, steps) = (format.words(depth - strip.depths.start), format.words(depths.len()));
                for (rows, panel) in tiles().zip(left.chunks_exact_mut(tile.rows * steps)) {
                    // SAFETY: the kernel was chosen for this processor.
                    unsafe { (packing.left)(self.left, rows, depths.clone(), format, panel) };
                }
                for panel in panels.clone() {
                    let right = &strip.panels[panel * words + before * tile.columns..][..steps * tile.columns];
                    let first = strip.columns.start + panel * tile.columns;
                    let columns = strip.columns.end.min(first + tile.columns) - first;
                    for (rows, left) in tiles().zip(left.chunks_exact(tile.rows * steps)) {
                        // SAFETY: the tile lies within these rows and columns of the destination.
                        unsafe {
                            let place = destination.first.add(rows.start * destination.row_stride + first);
                            let place = Destination { first: place, accumulate: destination.accumulate || depth > 0, ..destination };
                            place.write(tile, rows.len(), columns, steps, left, right);
                        }
                    }
                }
            }
        });
    }
}

impl Destination {
    /// Writes the sums of nothing.
    ///
    /// # Safety
    /// This destination must cover `rows` and `columns`.
    unsafe fn add_nothing(self, rows: usize, columns: usize) {
        for row in 0..if self.accumulate { 0 } else { rows } {
            // SAFETY: as the caller promises.
            unsafe { std::ptr::write_bytes(self.first.add(row * self.row_stride), 0, columns) };
        }
    }

    /// Writes one tile, of which `rows` and `columns` are there.
    ///
    /// # Safety
    /// This destination must begin at the tile and cover it.
    unsafe fn write(self, tile: Tile, rows: usize, columns: usize, steps: usize, left: &[u32], right: &[u32]) {
        if rows == tile.rows && columns == tile.columns {
            // SAFETY: the tile is whole.
            return unsafe { (tile.run)(steps, left.as_ptr(), right.as_ptr(), self.first, self.row_stride, self.accumulate) };
        }
        let mut whole = [0f32; MOST_NUMBERS];
        // SAFETY: `whole` holds the largest tile.
        unsafe { (tile.run)(steps, left.as_ptr(), right.as_ptr(), whole.as_mut_ptr(), tile.columns, false) };
        for (row, sums) in whole.chunks_exact(tile.columns).take(rows).enumerate() {
            for (column, sum) in sums.iter().take(columns).enumerate() {
                // SAFETY: within the caller's destination.
                unsafe {
                    let place = self.first.add(row * self.row_stride + column);
                    place.write(if self.accumulate { *place + *sum } else { *sum });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
