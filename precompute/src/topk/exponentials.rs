//! Sums of exponentials over a row, for the log-normaliser at every temperature.

use super::lanes::{LINE, Lanes};

/// Registers that are added in f32 before the sum goes to f64: the rounding of as few additions stays within a few 1e-7.
const RUN: usize = 16;
/// Links of a chain at most: every squaring doubles the relative error.
pub(super) const LONGEST: usize = 3;
/// Its square is the smallest that is no subnormal number, which many processors are slow at.
const SMALLEST_SQUARED: f32 = 1.1e-19;

/// Temperatures each of which is half the one before: exp(x / (T / 2)) is the square of exp(x / T), so a chain costs one exponential.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    /// 1 / T of the first, the largest.
    inverse: f32,
    /// Where each link's result goes.
    columns: Vec<usize>,
}

impl Chain {
    /// Covers `temperatures` with as few chains as their order of size gives.
    pub(super) fn plan(temperatures: &[f32]) -> Vec<Self> {
        let mut left: Vec<usize> = (0..temperatures.len()).collect();
        left.sort_by(|a, b| temperatures[*b].total_cmp(&temperatures[*a]));
        let mut chains = Vec::new();
        while !left.is_empty() {
            let mut columns = vec![left.remove(0)];
            while columns.len() < LONGEST {
                let half = temperatures[columns[columns.len() - 1]] / 2.0;
                let Some(next) = left.iter().position(|column| temperatures[*column] == half) else { break };
                columns.push(left.remove(next));
            }
            chains.push(Self { inverse: 1.0 / temperatures[columns[0]], columns });
        }
        chains
    }

    /// Writes log sum exp((z - maximum) / T) to each column of the chain. Every logit is finite. `next` is where the row after this
    /// one is likely to lie.
    #[inline(always)]
    pub(super) fn log_z<L: Lanes>(&self, logits: &[f32], next: *const f32, maximum: f32, log_z: &mut [f32]) {
        let mut totals = [0f64; LONGEST];
        self.add::<L>(logits, next, maximum, &mut totals);
        self.finish(&totals, log_z);
    }

    /// Adds the sums of exp((z - maximum) / T) to `totals`, one for each link. Every logit is finite and at most `maximum`. `next` as for
    /// [`log_z`](Self::log_z).
    #[inline(always)]
    pub(super) fn add<L: Lanes>(&self, logits: &[f32], next: *const f32, maximum: f32, totals: &mut [f64; LONGEST]) {
        match self.columns.len() {
            1 => sums::<L, 1>(logits, next, maximum, self.inverse, totals),
            2 => sums::<L, 2>(logits, next, maximum, self.inverse, totals),
            _ => sums::<L, LONGEST>(logits, next, maximum, self.inverse, totals),
        }
    }

    /// Multiplies the sums by exp(difference / T).
    pub(super) fn scale(&self, difference: f64, totals: &mut [f64; LONGEST]) {
        let mut inverse = f64::from(self.inverse);
        for total in totals {
            *total *= (difference * inverse).exp();
            inverse *= 2.0;
        }
    }

    /// Writes the logarithms of the sums to the columns of the chain.
    pub(super) fn finish(&self, totals: &[f64; LONGEST], log_z: &mut [f32]) {
        for (column, total) in self.columns.iter().zip(totals) {
            log_z[*column] = total.ln() as f32;
        }
    }
}

/// Adds the sums of a chain's first `LINKS` temperatures to `totals`.
#[inline(always)]
fn sums<L: Lanes, const LINKS: usize>(logits: &[f32], next: *const f32, maximum: f32, inverse: f32, totals: &mut [f64; LONGEST]) {
    // exp(x / T) = 2^(x log2(e) / T).
    let (shift, scale) = (L::splat(maximum), L::splat(inverse * std::f32::consts::LOG2_E));
    // Below, what no sum of a row notices: all terms are at most 1, and one is. A square must be no subnormal number either.
    let smallest = L::splat(if LINKS > 1 { -62.0 } else { -125.0 });
    let whole = logits.len() / L::COUNT * L::COUNT;
    for (index, run) in logits[..whole].chunks(RUN * L::COUNT).enumerate() {
        // While a row is added up, the memory is free to bring what is likely to be the next one.
        for line in (0..RUN * L::COUNT).step_by(LINE) {
            L::prefetch(next.wrapping_add(index * RUN * L::COUNT + line));
        }
        let mut partial = [L::splat(0.0); LONGEST];
        for lanes in run.chunks_exact(L::COUNT) {
            let term = power_of_two(L::load(lanes).sub(shift).mul(scale).larger(smallest));
            partial[0] = partial[0].add(term);
            // Spelled out: as a loop over the links, the sums would live in memory rather than in registers.
            if LINKS > 1 {
                let term = term.mul(term);
                partial[1] = partial[1].add(term);
                if LINKS > 2 {
                    partial[2] = partial[2].add(square(term));
                }
            }
        }
        for (total, partial) in totals[..LINKS].iter_mut().zip(partial) {
            *total += f64::from(partial.sum());
        }
    }
    for logit in &logits[whole..] {
        let mut term = (f64::from(logit - maximum) * f64::from(inverse)).exp();
        for total in &mut totals[..LINKS] {
            *total += term;
            term *= term;
        }
    }
}

#[inline(always)]
fn square<L: Lanes>(term: L) -> L {
    let term = term.larger(L::splat(SMALLEST_SQUARED));
    term.mul(term)
}

/// 2^t for -125 <= t <= 0 to about 2e-7 relative.
///
/// 2^t = 2^n 2^f with n = round(t), so that f = t - n is exact and |f| <= 1/2; 2^f by the polynomial of degree 5 whose largest relative error there is
/// the least (7.5e-8, found by Remez' exchange).
#[inline(always)]
fn power_of_two<L: Lanes>(t: L) -> L {
    // Adding 1.5 * 2^23 leaves no room for a fraction, and the integer n in the low bits of the mantissa: no conversion is needed.
    let rounder = L::splat(12_582_912.0);
    let shifted = t.add(rounder);
    let f = t.sub(shifted.sub(rounder));
    let mut p = L::splat(1.327_647_2e-3);
    for coefficient in [9.675_541e-3, 5.550_713e-2, 2.402_212e-1, 6.931_469_4e-1, 1.000_000_1] {
        p = p.mul_add(f, L::splat(coefficient));
    }
    p.times_power_of_two(shifted)
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Portable;
    use super::*;

    #[test]
    fn halves_are_chained_and_everything_is_covered_once() {
        let columns = |temperatures: &[f32]| Chain::plan(temperatures).into_iter().map(|chain| chain.columns).collect::<Vec<_>>();
        assert_eq!(columns(&[2.0, 1.0]), [vec![0, 1]]);
        assert_eq!(columns(&[1.0, 2.0, 4.0]), [vec![2, 1, 0]]);
        assert_eq!(columns(&[3.0, 1.0]), [vec![0], vec![1]]);
        assert_eq!(columns(&[8.0, 1.0, 4.0, 2.0, 1.5, 3.0]), [vec![0, 2, 3], vec![5, 4], vec![1]]);
    }

    #[test]
    fn the_power_is_close_over_its_whole_range() {
        for step in 0..=125_000 {
            let t = -(step as f32) / 1000.0;
            let expected = f64::from(t).exp2();
            let value = power_of_two(Portable::splat(t)).largest();
            let error = (f64::from(value) - expected).abs() / expected;
            assert!(error < 3e-7, "2^{t} is {value}, not {expected}: relative error {error:e}");
        }
    }
}
