//! Products of states with a vocabulary's weights, a strip of rows and a panel of ids at a time.
//!
//! The weights never change, so they are put into panels once: for each number of a state the weights of a panel's ids, side by side. The states of a
//! strip lie likewise. Then the innermost loop reads both from one end to the other, and its sums stay in registers (the order of K. Goto and R. van de
//! Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34, 2008). Every sum has the same order of terms, whatever rows are beside it
//! and however wide the registers are: its logit is the same to the bit on every processor whose multiply-add rounds once.

use super::aligned::Aligned;
use super::lanes::{LINE, Lanes};

/// Rows of a strip: with the registers of a panel, as many sums as registers hold beside what is multiplied.
pub(super) const STRIP: usize = 6;
/// Ids whose logits are looked at together, while they are in the nearest memory.
pub(super) const TILE: usize = 256;
/// Weights of a panel that are gone through at a time: they stay in the nearest memory while every strip meets them.
const NEAR_WEIGHTS: usize = 8192;
/// Steps that the loop takes at once. Without it a third of its instructions are the loop's own.
const UNROLLED: usize = 4;

/// What is multiplied by `weight`, of a state's number `inner` and the id `id`, in panels of `panel` ids: `[panels, depth, panel]`, 0 behind the last id.
pub(super) fn pack_weights(depth: usize, width: usize, panel: usize, weight: impl Fn(usize, usize) -> f32) -> Aligned {
    let mut packed = Aligned::zeros(width.next_multiple_of(panel) * depth);
    for (first, panel) in (0..width).step_by(panel).zip(packed.get_mut().chunks_exact_mut(panel * depth)) {
        for (inner, weights) in panel.chunks_exact_mut(panel.len() / depth).enumerate() {
            weights.iter_mut().zip(first..width).for_each(|(packed, id)| *packed = weight(inner, id));
        }
    }
    packed
}

/// Rows of `depth` numbers in strips: `[strips, depth, STRIP]`, 0 behind the last row.
pub(super) fn pack_states(rows: &[&[f32]], depth: usize, packed: &mut Vec<f32>) {
    packed.clear();
    packed.resize(rows.len().next_multiple_of(STRIP) * depth, 0.0);
    for (strip, rows) in packed.chunks_exact_mut(STRIP * depth).zip(rows.chunks(STRIP)) {
        for (place, row) in rows.iter().enumerate() {
            for (states, value) in strip.as_chunks_mut::<STRIP>().0.iter_mut().zip(*row) {
                states[place] = *value;
            }
        }
    }
}

/// The logits of a tile: `strips` as [`pack_states`] leaves them, the `panels` of at most [`TILE`] ids and as many of `bias`; `logits`: as many rows as
/// the strips hold. `PANEL` is `REGISTERS` times the lanes of a register.
#[inline(always)]
pub(super) fn products<L: Lanes, const REGISTERS: usize, const PANEL: usize>(
    strips: &[f32],
    depth: usize,
    panels: &[f32],
    bias: &[f32],
    logits: &mut [[f32; TILE]],
) {
    for (index, panel) in panels.chunks_exact(depth * PANEL).enumerate() {
        let (first, panel) = (index * PANEL, panel.as_chunks::<PANEL>().0);
        let bias = &bias.as_chunks::<PANEL>().0[index];
        let mut from = 0;
        while from < depth {
            let to = (from + NEAR_WEIGHTS / PANEL).min(depth);
            // What is multiplied next lies behind, far away: a share of it is asked for with every strip.
            let near = &panel[from..to];
            let mut next = near.as_flattened().as_ptr_range().end;
            let share = near.as_flattened().len().div_ceil(strips.len() / depth / STRIP).next_multiple_of(LINE);
            for (strip, logits) in strips.chunks_exact(STRIP * depth).zip(logits.as_chunks_mut::<STRIP>().0) {
                (0..share).step_by(LINE).for_each(|place| L::prefetch(next.wrapping_add(place)));
                next = next.wrapping_add(share);
                let strip = &strip.as_chunks::<STRIP>().0[from..to];
                sums::<L, REGISTERS, PANEL>(strip, near, (from == 0).then_some(bias), first, logits);
            }
            from = to;
        }
    }
}

/// Adds a strip's products with a panel to `logits`, from column `first` on; to `bias` where there is one.
#[inline(always)]
fn sums<L: Lanes, const REGISTERS: usize, const PANEL: usize>(
    strip: &[[f32; STRIP]],
    panel: &[[f32; PANEL]],
    bias: Option<&[f32; PANEL]>,
    first: usize,
    logits: &mut [[f32; TILE]; STRIP],
) {
    let mut sums = [[L::splat(0.0); REGISTERS]; STRIP];
    for (sums, logits) in sums.iter_mut().zip(logits.iter()) {
        let start: &[f32] = bias.map_or(&logits[first..first + PANEL], |bias| bias);
        for (register, sum) in sums.iter_mut().enumerate() {
            *sum = L::load(&start[register * L::COUNT..]);
        }
    }
    let (runs, rest) = strip.as_chunks::<UNROLLED>();
    let (panel_runs, panel_rest) = panel.as_chunks::<UNROLLED>();
    for (states, weights) in runs.iter().zip(panel_runs) {
        for step in 0..UNROLLED {
            step_of::<L, REGISTERS, PANEL>(&states[step], &weights[step], &mut sums);
        }
    }
    for (states, weights) in rest.iter().zip(panel_rest) {
        step_of::<L, REGISTERS, PANEL>(states, weights, &mut sums);
    }
    for (sums, logits) in sums.iter().zip(logits) {
        for (register, sum) in sums.iter().enumerate() {
            sum.store(&mut logits[first + register * L::COUNT..first + PANEL]);
        }
    }
}

/// One number of every row with its weights.
#[inline(always)]
fn step_of<L: Lanes, const REGISTERS: usize, const PANEL: usize>(
    states: &[f32; STRIP],
    weights: &[f32; PANEL],
    sums: &mut [[L; REGISTERS]; STRIP],
) {
    let mut row = [L::splat(0.0); REGISTERS];
    for (register, weights_of_register) in row.iter_mut().enumerate() {
        *weights_of_register = L::load(&weights[register * L::COUNT..]);
    }
    for (state, sums) in states.iter().zip(sums) {
        let state = L::splat(*state);
        for (sum, weights) in sums.iter_mut().zip(row) {
            *sum = state.mul_add(weights, *sum);
        }
    }
}
