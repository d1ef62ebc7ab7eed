//! A language model's head, computed where its targets are made: the product of a state with the vocabulary's weights, a tile of ids at a time, and each
//! tile's part in the targets while it is in the nearest memory. The logits of a batch, which are a hundred times larger than its states, are nowhere as a
//! whole.
//!
//! It is for many ids alone, and for a processor with wide registers: elsewhere a library's product and the passes over its result are as good.

use super::aligned::Aligned;
use super::exponentials::Chain;
use super::lanes::{Lanes, Portable};
use super::product::{STRIP, TILE, pack_states, pack_weights, products};
use super::running::Running;
use super::{Kernel, NotFinite, Targets};
use rayon::prelude::*;
use std::fmt;

/// Ids below which there is nothing to win.
const FEWEST_IDS: usize = 4096;
/// Ids for each of the k that are kept, at least: else most of a row is a candidate.
const IDS_PER_K: usize = 16;
/// Rows that a thread takes through the vocabulary together, at most: they, their logits of a tile and a panel's weights fill the second-nearest memory.
const BLOCK_ROWS: usize = 264;

/// How the weights of a head lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[depth, vocabulary]`, as a MatMul has them.
    ByDepth,
    /// `[vocabulary, depth]`, as a table of embeddings has them.
    ById,
}

/// The weights and the bias of a head, in the order in which they are read.
pub struct Head {
    depth: usize,
    width: usize,
    kernel: Kernel,
    /// As [`pack_weights`] leaves them.
    panels: Aligned,
    /// Of as many ids as the panels hold.
    bias: Vec<f32>,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head").field("depth", &self.depth).field("width", &self.width).field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

/// A thread's memory.
#[derive(Default)]
struct Scratch {
    strips: Vec<f32>,
    /// `[rows, TILE]`.
    logits: Aligned,
    rows: Vec<Running>,
}

/// What is made of every row.
struct Wanted<'a> {
    k: usize,
    temperatures: &'a [f32],
    chains: &'a [Chain],
}

impl Head {
    /// Whether this way is the faster one for `k` of `width` ids on this processor.
    pub fn pays(k: usize, width: usize) -> bool {
        let wide = Kernel::available().any(|kernel| kernel != Kernel::Portable);
        wide && width >= FEWEST_IDS && width / IDS_PER_K >= k
    }

    /// From the weights of a state of `depth` numbers, and the bias, which may be empty. Nothing where their lengths do not fit.
    pub fn new(depth: usize, weights: &[f32], layout: Layout, bias: &[f32]) -> Option<Self> {
        let kernel = Kernel::available().next()?;
        Self::with_kernel(kernel, depth, weights, layout, bias)
    }

    fn with_kernel(kernel: Kernel, depth: usize, weights: &[f32], layout: Layout, bias: &[f32]) -> Option<Self> {
        let width = weights.len().checked_div(depth)?;
        if width == 0 || width * depth != weights.len() || !(bias.is_empty() || bias.len() == width) || u32::try_from(width).is_err() {
            return None;
        }
        let panel = panel(kernel);
        let panels = match layout {
            Layout::ByDepth => pack_weights(depth, width, panel, |inner, id| weights[inner * width + id]),
            Layout::ById => pack_weights(depth, width, panel, |inner, id| weights[id * depth + inner]),
        };
        let mut bias = bias.to_vec();
        bias.resize(width.next_multiple_of(panel), 0.0);
        Some(Self { depth, width, kernel, panels, bias })
    }

    /// Numbers of a state.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Ids, and so the length of a row of logits.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The targets of every state, for `k` ids and temperatures in stored order; on the threads of the pool that this is called in.
    ///
    /// # Errors
    /// For a state one of whose logits is not finite, which that is.
    ///
    /// # Panics
    /// If a state has another length than [`depth`](Self::depth), `k` is 0 or there is no temperature.
    pub fn targets(&self, states: &[&[f32]], k: usize, temperatures: &[f32]) -> Vec<Result<Targets, NotFinite>> {
        assert!(k > 0 && !temperatures.is_empty(), "targets need k of at least 1 and a temperature");
        assert!(states.iter().all(|state| state.len() == self.depth), "a state has the head's depth");
        let chains = &Chain::plan(temperatures);
        let wanted = Wanted { k: k.min(self.width), temperatures, chains };
        let blocks = states.par_chunks(block_rows(states.len(), rayon::current_num_threads()));
        blocks.map_init(Scratch::default, |scratch, rows| self.block(rows, &wanted, scratch)).flatten_iter().collect()
    }

    fn block(&self, rows: &[&[f32]], wanted: &Wanted<'_>, scratch: &mut Scratch) -> Vec<Result<Targets, NotFinite>> {
        pack_states(rows, self.depth, &mut scratch.strips);
        scratch.logits.reserve(rows.len().next_multiple_of(STRIP) * TILE);
        scratch.rows.resize_with(rows.len(), || Running::new(wanted.chains));
        scratch.rows.iter_mut().for_each(Running::restart);
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::available` has seen this processor's avx512f, avx2 and fma.
            Kernel::Avx512 => unsafe { tiles_avx512(self, wanted, scratch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::available` has seen this processor's avx2 and fma.
            Kernel::Avx2 => unsafe { tiles_avx2(self, wanted, scratch) },
            Kernel::Portable => tiles::<Portable, 2, 8>(self, wanted, scratch),
        }
        scratch.rows.iter_mut().map(|row| row.targets(wanted.k, wanted.temperatures, wanted.chains)).collect()
    }
}

/// Ids of a panel.
fn panel(kernel: Kernel) -> usize {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => 64,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 => 16,
        Kernel::Portable => 8,
    }
}

/// Rows of a block, so that every thread has as many blocks as the next and few rows of a strip are none.
fn block_rows(rows: usize, threads: usize) -> usize {
    let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads.max(1)).max(1);
    rows.div_ceil(blocks).next_multiple_of(STRIP).max(STRIP)
}

/// Takes the rows of `scratch` through all ids.
#[inline(always)]
fn tiles<L: Lanes, const REGISTERS: usize, const PANEL: usize>(head: &Head, wanted: &Wanted<'_>, scratch: &mut Scratch) {
    let Scratch { strips, logits, rows } = scratch;
    let logits = logits.get_mut().as_chunks_mut::<TILE>().0;
    let panels = head.panels.get()[..head.bias.len() * head.depth].chunks(head.depth * TILE);
    for ((panels, bias), first) in panels.zip(head.bias.chunks(TILE)).zip((0..).step_by(TILE)) {
        products::<L, REGISTERS, PANEL>(strips, head.depth, panels, bias, logits);
        let ids = TILE.min(head.width - first);
        for (row, logits) in rows.iter_mut().zip(logits.iter()) {
            row.take::<L>(&logits[..ids], first, wanted.k, wanted.chains);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn tiles_avx512(head: &Head, wanted: &Wanted<'_>, scratch: &mut Scratch) {
    tiles::<super::lanes::Avx512, 4, 64>(head, wanted, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn tiles_avx2(head: &Head, wanted: &Wanted<'_>, scratch: &mut Scratch) {
    tiles::<super::lanes::Avx2, 2, 16>(head, wanted, scratch);
}

#[cfg(test)]
mod tests;
