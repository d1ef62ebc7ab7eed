//! Sums of exponentials over a row, for the log-normaliser at every temperature.

/// Lanes of the loops: one AVX-512 register, two of AVX2.
const LANES: usize = 16;
/// Terms that are added in f32 before the lanes go to f64: 16 a lane, whose rounding stays within a few 1e-7 of the sum.
const RUN: usize = 16 * LANES;
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

    /// Writes log sum exp((z - maximum) / T) to each column of the chain, and returns the smallest logit. NaN where a logit is NaN; the smallest passes
    /// over it.
    #[inline(always)]
    pub(super) fn log_z<const FMA: bool>(&self, logits: &[f32], maximum: f32, log_z: &mut [f32]) -> f32 {
        let (sums, minimum) = match self.columns.len() {
            1 => padded(sums::<1, FMA>(logits, maximum, self.inverse)),
            2 => padded(sums::<2, FMA>(logits, maximum, self.inverse)),
            _ => sums::<LONGEST, FMA>(logits, maximum, self.inverse),
        };
        for (column, sum) in self.columns.iter().zip(sums) {
            log_z[*column] = sum.ln() as f32;
        }
        minimum
    }
}

fn padded<const LINKS: usize>((sums, minimum): ([f64; LINKS], f32)) -> ([f64; LONGEST], f32) {
    (std::array::from_fn(|link| sums.get(link).copied().unwrap_or_default()), minimum)
}

/// The sums of a chain, and the smallest logit.
#[inline(always)]
fn sums<const LINKS: usize, const FMA: bool>(logits: &[f32], maximum: f32, inverse: f32) -> ([f64; LINKS], f32) {
    let mut totals = [[0f64; LANES]; LINKS];
    let mut low = [maximum; LANES];
    for run in logits.chunks(RUN) {
        let mut partial = [[0f32; LANES]; LINKS];
        let (chunks, rest) = run.as_chunks::<LANES>();
        for chunk in chunks {
            add::<LINKS, FMA>(chunk, maximum, inverse, &mut partial);
            for lane in 0..LANES {
                low[lane] = smaller(chunk[lane], low[lane]);
            }
        }
        for link in 0..LINKS {
            for lane in 0..LANES {
                totals[link][lane] += f64::from(partial[link][lane]);
            }
        }
        for logit in rest {
            let mut term = exp::<FMA>((logit - maximum) * inverse);
            for total in &mut totals {
                total[0] += f64::from(term);
                term = square(term);
            }
            low[0] = smaller(*logit, low[0]);
        }
    }
    (totals.map(|lanes| lanes.iter().sum()), low.into_iter().fold(maximum, f32::min))
}

#[inline(always)]
fn add<const LINKS: usize, const FMA: bool>(chunk: &[f32; LANES], maximum: f32, inverse: f32, partial: &mut [[f32; LANES]; LINKS]) {
    let mut terms = [0f32; LANES];
    for lane in 0..LANES {
        terms[lane] = exp::<FMA>((chunk[lane] - maximum) * inverse);
    }
    for (link, sums) in partial.iter_mut().enumerate() {
        for lane in 0..LANES {
            sums[lane] += terms[lane];
            if link + 1 < LINKS {
                terms[lane] = square(terms[lane]);
            }
        }
    }
}

/// As the processor's own instruction does it: `b` where one is NaN.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn square(term: f32) -> f32 {
    let term = if term < SMALLEST_SQUARED { SMALLEST_SQUARED } else { term };
    term * term
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction `mul_add` would be a call per number.
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// exp(x) for x <= 0 to about 1e-7 relative; below -87 that of -87, which no sum of a row notices; NaN stays NaN.
///
/// exp(x) = 2^n exp(f) with n = round(x / ln 2) and |f| <= ln 2 / 2, ln 2 subtracted in two parts of which the first times n is exact;
/// exp(f) by the degree-6 minimax polynomial of the Cephes library (Moshier 1989).
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Written so that a NaN fails the comparison and passes.
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding 1.5 * 2^23 leaves no room for a fraction, and the integer n in the low bits of the mantissa: no conversion is needed.
    let rounder = 12_582_912.0f32;
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, rounder);
    let n = shifted - rounder;
    let f = multiply_add::<FMA>(n, -0.693_359_4, x);
    let f = multiply_add::<FMA>(n, 2.121_944_4e-4, f);
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = multiply_add::<FMA>(p, f, coefficient);
    }
    let p = multiply_add::<FMA>(p * f, f, f + 1.0);
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
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
            for value in [exp::<false>(x), exp::<true>(x)] {
                let error = (f64::from(value) - expected).abs() / expected;
                assert!(error < 3e-7, "exp({x}) is {value}, not {expected}: relative error {error:e}");
            }
        }
        assert!(exp::<false>(f32::NAN).is_nan() && exp::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }
}
