//! Sums of exponentials over a row, for the log-normaliser at every temperature.

use super::lanes::Lanes;

/// Registers that are added in f32 before the sum goes to f64: the rounding of as few additions stays within a few 1e-7.
const RUN: usize = 16;
/// Links of a chain at most: every squaring doubles the relative error.
const LONGEST: usize = 3;
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

    /// Writes log sum exp((z - maximum) / T) to each column of the chain. Every logit is finite.
    #[inline(always)]
    pub(super) fn log_z<L: Lanes>(&self, logits: &[f32], maximum: f32, log_z: &mut [f32]) {
        let mut totals = [0f64; LONGEST];
        match self.columns.len() {
            1 => sums::<L, 1>(logits, maximum, self.inverse, &mut totals),
            2 => sums::<L, 2>(logits, maximum, self.inverse, &mut totals),
            _ => sums::<L, LONGEST>(logits, maximum, self.inverse, &mut totals),
        }
        for (column, total) in self.columns.iter().zip(totals) {
            log_z[*column] = total.ln() as f32;
        }
    }
}

/// Adds the sums of a chain's first `LINKS` temperatures to `totals`.
#[inline(always)]
fn sums<L: Lanes, const LINKS: usize>(logits: &[f32], maximum: f32, inverse: f32, totals: &mut [f64; LONGEST]) {
    let (shift, scale) = (L::splat(maximum), L::splat(inverse));
    let whole = logits.len() / L::COUNT * L::COUNT;
    for run in logits[..whole].chunks(RUN * L::COUNT) {
        let mut partial = [L::splat(0.0); LONGEST];
        for lanes in run.chunks_exact(L::COUNT) {
            let term = exp(L::load(lanes).sub(shift).mul(scale));
            partial[0] = partial[0].add(term);
            // Spelled out: as a loop over the links, the sums would live in memory rather than in registers.
            if LINKS > 1 {
                let term = square(term);
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

/// exp(x) for x <= 0 to about 1e-7 relative; below -87 that of -87, which no sum of a row notices.
///
/// exp(x) = 2^n exp(f) with n = round(x / ln 2) and |f| <= ln 2 / 2, ln 2 subtracted in two parts of which the first times n is exact;
/// exp(f) by the degree-6 minimax polynomial of the Cephes library (Moshier 1989).
#[inline(always)]
fn exp<L: Lanes>(x: L) -> L {
    let x = x.larger(L::splat(-87.0));
    // Adding 1.5 * 2^23 leaves no room for a fraction, and the integer n in the low bits of the mantissa: no conversion is needed.
    let rounder = L::splat(12_582_912.0);
    let shifted = x.mul_add(L::splat(std::f32::consts::LOG2_E), rounder);
    let n = shifted.sub(rounder);
    let f = n.mul_add(L::splat(-0.693_359_4), x);
    let f = n.mul_add(L::splat(2.121_944_4e-4), f);
    let mut p = L::splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(f, L::splat(coefficient));
    }
    let p = p.mul(f).mul_add(f, f.add(L::splat(1.0)));
    p.mul(shifted.power_of_two())
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
    fn the_exponential_is_close_over_its_whole_range() {
        for step in 0..=87_000 {
            let x = -(step as f32) / 1000.0;
            let expected = f64::from(x).exp();
            let value = exp(Portable::splat(x)).largest();
            let error = (f64::from(value) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) is {value}, not {expected}: relative error {error:e}");
        }
        assert!(exp(Portable::splat(f32::MIN)).largest() < 1e-37);
    }
}
