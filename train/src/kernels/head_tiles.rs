//! A chunk of rows against the whole vocabulary, tile by tile.
//!
//! The vocabulary is cut into tiles whose logits and weights stay in a core's cache while a thread works on them. A first pass makes the logits
//! and what each row sums up to, a second turns them into slopes and multiplies these by the weights and by the rows. Both give every tile to
//! one thread; the gradient of the rows, to which all tiles add, is added up within groups of tiles and then over the groups, in order.

use super::element::Element;
use super::head_loss::HeadTargets;
use super::head_row::{RowLosses, RowObjective, RowSlopes, RowTargets, teach_row};
use super::head_tile::{StoredId, TileSums, joined, slope_row, sum_row};
use super::level::Level;
use super::matrix::{Matrix, Threads, multiply_in};
use super::precision::Precision;
use rayon::prelude::*;
use std::any::Any;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Ids of a tile at most: 1,024 logits of 512 rows fill a second-level cache of 2 MB.
const LARGEST_TILE: usize = 1024;

/// Ids of a tile at least, but for a smaller vocabulary.
const SMALLEST_TILE: usize = 64;

/// Groups of tiles, whatever the number of threads: each has a gradient of the rows of its own.
const GROUPS: usize = 8;

/// Logits, to be cut into tiles.
pub(crate) struct Tiles<'a, T> {
    /// `[vocabulary, width]`.
    weight: &'a [T],
    /// `[vocabulary]`, or empty.
    bias: &'a [T],
    width: usize,
    vocabulary: usize,
    tile: usize,
    precision: Precision,
    level: Level,
}

/// Buffers for a chunk of rows. They hold whatever the last chunk left in them, and may be longer than this one needs.
#[derive(Default)]
pub(crate) struct ChunkBuffers<T> {
    /// Tile after tile, `[rows, ids of the tile]` each.
    logits: Vec<T>,
    /// `[tile, row]`.
    sums: Vec<TileSums<T>>,
    /// `[row, k]`: the stored ids' logits, then their slopes.
    kept: Vec<T>,
    /// `[row, k]`: the stored ids, ascending.
    stored: Vec<StoredId>,
    /// `[group, row, width]`.
    row_gradients: Vec<T>,
}

/// What a chunk's gradients are added to.
pub(crate) struct ChunkGradients<'a, T> {
    /// `[rows, width]`: written.
    pub(crate) rows: &'a mut [T],
    /// `[vocabulary, width]`: written by the first chunk, added to by the others.
    pub(crate) weight: &'a mut [T],
    /// `[vocabulary]`: added to.
    pub(crate) bias: &'a mut [T],
    pub(crate) is_first: bool,
}

/// Buffers between two steps: the logits are tens of megabytes, and a new buffer of that size costs as much to clear as a pass over them.
static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

impl<T: Element> ChunkBuffers<T> {
    fn kept() -> Self {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|buffers| buffers.is::<Self>()).map(|index| kept.swap_remove(index));
        found.and_then(|buffers| buffers.downcast().ok()).map_or_else(Self::default, |buffers| *buffers)
    }

    fn keep(self) {
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(self));
    }
}

fn at_least<V: Clone + Default>(buffer: &mut Vec<V>, length: usize) {
    if buffer.len() < length {
        // Nothing of what is there is worth copying into a longer one.
        buffer.clear();
        buffer.resize(length, V::default());
    }
}

impl<'a, T: Element> Tiles<'a, T> {
    pub(crate) fn new(precision: Precision, weight: &'a [T], bias: &'a [T], width: usize) -> Self {
        let vocabulary = weight.len() / width;
        let tile = vocabulary.div_ceil(GROUPS).next_multiple_of(SMALLEST_TILE).clamp(SMALLEST_TILE, LARGEST_TILE);
        Self { weight, bias, width, vocabulary, tile, precision, level: Level::best() }
    }

    fn count(&self) -> usize {
        self.vocabulary.div_ceil(self.tile)
    }

    fn tiles_per_group(&self) -> usize {
        self.count().div_ceil(GROUPS)
    }

    fn ids(&self, tile: usize) -> Range<usize> {
        tile * self.tile..((tile + 1) * self.tile).min(self.vocabulary)
    }

    fn weight_of(&self, ids: &Range<usize>) -> Matrix<'a, T> {
        Matrix::new(&self.weight[ids.start * self.width..ids.end * self.width], ids.len(), self.width)
    }

    /// Where the logit of an id is in a chunk of `rows`.
    fn place(&self, rows: usize, row: usize, id: usize) -> usize {
        let ids = self.ids(id / self.tile);
        rows * ids.start + row * ids.len() + (id - ids.start)
    }

    /// Lends buffers for chunks of up to `rows`, with k stored ids each.
    pub(crate) fn with_buffers<R>(&self, rows: usize, k: usize, tracked: bool, borrow: impl FnOnce(&mut ChunkBuffers<T>) -> R) -> R {
        let groups = if tracked { self.count().div_ceil(self.tiles_per_group()) } else { 0 };
        let mut buffers = ChunkBuffers::kept();
        at_least(&mut buffers.logits, rows * self.vocabulary);
        at_least(&mut buffers.sums, rows * self.count());
        at_least(&mut buffers.kept, rows * k);
        at_least(&mut buffers.stored, rows * k);
        at_least(&mut buffers.row_gradients, groups * rows * self.width);
        let result = borrow(&mut buffers);
        buffers.keep();
        result
    }

    /// The losses of the rows `x` `[rows, width]`, whose targets begin at row `first`, and their gradients where they are wanted.
    pub(crate) fn run(
        &self,
        x: &[T],
        (targets, first): (&HeadTargets<'_>, usize),
        objective: &RowObjective,
        buffers: &mut ChunkBuffers<T>,
        gradients: Option<ChunkGradients<'_, T>>,
    ) -> RowLosses {
        let (rows, k) = (x.len() / self.width, targets.k);
        let ChunkBuffers { logits, sums, kept, stored, row_gradients } = buffers;
        let (logits, sums) = (&mut logits[..rows * self.vocabulary], &mut sums[..rows * self.count()]);
        let (kept, stored) = (&mut kept[..rows * k], &mut stored[..rows * k]);
        let targets_of = |row: usize| RowTargets::new(targets, first + row);
        stored.par_chunks_mut(k).enumerate().for_each(|(row, stored)| {
            let ids = targets_of(row).ids.iter().zip(0..);
            stored.iter_mut().zip(ids).for_each(|(stored, (id, place))| *stored = (*id, place));
            stored.sort_unstable();
        });
        let stored = &*stored;

        let tiles = logits.par_chunks_mut(rows * self.tile).zip(sums.par_chunks_mut(rows)).enumerate();
        tiles.for_each_init(Vec::new, |kept, (tile, (logits, sums))| {
            let ids = self.ids(tile);
            multiply_in(
                self.precision,
                logits,
                ids.len(),
                false,
                Matrix::new(x, rows, self.width),
                self.weight_of(&ids).transposed(),
                Threads::One,
            );
            let bias = self.bias.get(ids.clone()).unwrap_or_default();
            for (row, (logits, sums)) in logits.chunks_exact_mut(ids.len()).zip(sums).enumerate() {
                let labelled = objective.is_labelled(&targets_of(row));
                let stored = within(&stored[row * k..][..k], &ids);
                *sums = sum_row(self.level, logits, bias, stored, ids.start, labelled, objective, kept);
            }
        });

        let (taught_logits, taught_sums) = (&*logits, &*sums);
        let taught: Vec<(RowLosses, RowSlopes<T>)> = kept
            .par_chunks_mut(k)
            .enumerate()
            .map(|(row, kept)| {
                let targets = targets_of(row);
                let logit = |id: usize| taught_logits[self.place(rows, row, id)];
                kept.iter_mut().zip(targets.ids).for_each(|(kept, id)| *kept = logit(*id as usize));
                let of_label = targets.label.filter(|_| objective.is_labelled(&targets)).map(logit);
                let sums = joined(taught_sums[row..].iter().step_by(rows).copied(), objective);
                teach_row(self.level, kept, of_label, sums, &targets, objective)
            })
            .collect();
        let mut losses = RowLosses::default();
        taught.iter().for_each(|(row, _)| losses += *row);

        let Some(ChunkGradients { rows: dx, weight: dw, bias: db, is_first }) = gradients else { return losses };
        let (per_group, kept, sums) = (self.tiles_per_group(), &*kept, &*sums);
        let groups = logits.par_chunks_mut(rows * self.tile * per_group).zip(row_gradients.par_chunks_mut(rows * self.width));
        let parameters = dw.par_chunks_mut(self.tile * self.width * per_group).zip(db.par_chunks_mut(self.tile * per_group));
        groups.zip(parameters).enumerate().for_each(|(group, ((logits, dx), (dw, db)))| {
            let parameters = dw.chunks_mut(self.tile * self.width).zip(db.chunks_mut(self.tile));
            for (i, (logits, (dw, db))) in logits.chunks_mut(rows * self.tile).zip(parameters).enumerate() {
                let tile = group * per_group + i;
                let ids = self.ids(tile);
                for (row, logits) in logits.chunks_exact_mut(ids.len()).enumerate() {
                    let (stored, of_stored) = (within(&stored[row * k..][..k], &ids), &kept[row * k..][..k]);
                    slope_row(self.level, logits, sums[tile * rows + row], stored, of_stored, ids.start, taught[row].1, objective, db);
                }
                let slopes = Matrix::new(logits, rows, ids.len());
                multiply_in(self.precision, dx, self.width, i > 0, slopes, self.weight_of(&ids), Threads::One);
                multiply_in(self.precision, dw, self.width, !is_first, slopes.transposed(), Matrix::new(x, rows, self.width), Threads::One);
            }
        });
        let groups = self.count().div_ceil(per_group);
        dx.par_chunks_mut(self.width).enumerate().with_min_len(16).for_each(|(row, dx)| {
            for group in 0..groups {
                let part = &row_gradients[(group * rows + row) * self.width..][..self.width];
                match group {
                    0 => dx.copy_from_slice(part),
                    _ => dx.iter_mut().zip(part).for_each(|(dx, part)| *dx += *part),
                }
            }
        });
        losses
    }
}

/// Those of a row's stored ids, ascending, that lie in a range.
fn within<'a>(stored: &'a [StoredId], ids: &Range<usize>) -> &'a [StoredId] {
    let from = |id: usize| stored.partition_point(|(stored, _)| (*stored as usize) < id);
    &stored[from(ids.start)..from(ids.end)]
}
