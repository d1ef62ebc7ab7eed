//! Named random streams.
//!
//! Every draw is a function of (seed, stream, key, counter): never of time, threads or the order of a directory. The generator is
//! SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in counter mode, so that a draw can be made at any position without making those
//! before it.

/// What the numbers are for; two streams of one seed share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Which positions are masked, and by what. Key: pass, sequence.
    Masking = 1,
    /// Which unmasked positions carry targets under a share. Key: pass, sequence.
    Positions = 2,
    /// The order of training rows. Key: epoch.
    Shuffling = 3,
    /// Dropped activations. Key: step, sequence, layer.
    Dropout = 4,
    /// Random initial weights. Key: the parameter's number.
    Initialisation = 5,
    /// Which documents training never sees. Key: document.
    HoldingOut = 6,
    /// The inputs of a model that is timed. Key: batch, length.
    Timing = 7,
    /// Random first weights of what maps a student's hidden states to the teacher's width. Key: the states of both.
    Projections = 8,
    /// The order of a corpus's documents. Key: document.
    Documents = 9,
    /// What stays of more than can be held. Key: sequence, pass.
    Sampling = 10,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers at a position.
#[derive(Clone, Debug)]
pub struct RandomStream {
    key: u64,
    counter: u64,
}

impl RandomStream {
    /// The stream of `seed` for `purpose` at `key`, for example `[pass, sequence_id]`.
    pub fn new(seed: u64, purpose: Purpose, key: &[u64]) -> Self {
        let start = mix(seed.wrapping_add(GOLDEN)) ^ mix((purpose as u64).wrapping_mul(GOLDEN));
        let key = key.iter().fold(mix(start), |state, part| mix(state.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN))));
        Self { key, counter: 0 }
    }

    /// The number at `counter`, without moving the stream.
    #[inline(always)]
    pub fn at(&self, counter: u64) -> u64 {
        mix(self.key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// The next 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let value = self.at(self.counter);
        self.counter += 1;
        value
    }

    /// Uniform in [0, 1), 53 bits.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..bound by multiplication (Lemire 2019, without rejection: the bias is below bound / 2^64).
    ///
    /// # Panics
    /// If `bound` is 0.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "RandomStream::below needs a bound above 0");
        ((self.next_u64() as u128 * bound as u128) >> 64) as usize
    }

    /// A standard normal draw (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_every_part_of_its_name() {
        let first = |seed, purpose, key: &[u64]| RandomStream::new(seed, purpose, key).next_u64();
        let base = first(0, Purpose::Masking, &[0, 0]);
        assert_eq!(base, first(0, Purpose::Masking, &[0, 0]));
        let others = [
            first(1, Purpose::Masking, &[0, 0]),
            first(0, Purpose::Positions, &[0, 0]),
            first(0, Purpose::Masking, &[1, 0]),
            first(0, Purpose::Masking, &[0, 1]),
            first(0, Purpose::Masking, &[0]),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut stream = RandomStream::new(7, Purpose::Dropout, &[3]);
        let n = 200_000;
        let mean = (0..n).map(|_| stream.uniform()).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.005, "mean of uniform draws {mean}");
        let squares = (0..n).map(|_| stream.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((squares - 1.0).abs() < 0.02, "variance of normal draws {squares}");
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        RandomStream::new(1, Purpose::Shuffling, &[0]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
