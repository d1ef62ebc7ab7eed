//! A register of f32 lanes, in the three widths that the kernels are compiled for.
//!
//! Written with the processor's own operations, since what a compiler makes of plain loops over 16 lanes varies by a factor of ten from one wording to the
//! next. The wide types must only be used inside a function compiled for their instructions, into which everything here is inlined.

/// Numbers of a cache line, and of the widest register.
pub(super) const LINE: usize = 16;

/// Operations lane by lane.
pub(super) trait Lanes: Copy {
    /// Lanes of a register.
    const COUNT: usize;
    /// The same value in every lane.
    fn splat(value: f32) -> Self;
    /// The first `COUNT` values of a slice that holds as many.
    fn load(values: &[f32]) -> Self;
    /// Puts the lanes into the first `COUNT` places of a slice that has as many.
    fn store(self, values: &mut [f32]);
    /// Asks for the memory at `place`, which need not be anyone's, to be brought near: it is only a hint, and nothing is read.
    fn prefetch(place: *const f32);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// self * factor + term, rounded once where the processor can.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger one; `other` where one is NaN.
    fn larger(self, other: Self) -> Self;
    /// A bit per lane, set where the lane is at least `threshold`.
    fn reaches(self, threshold: Self) -> u32;
    /// self * 2^n for lanes of `shifted` that hold 1.5 * 2^23 + n, where neither side nor the product is 0, subnormal or too large.
    fn times_power_of_two(self, shifted: Self) -> Self;
    fn largest(self) -> f32;
    fn sum(self) -> f32;
}

/// For any processor: as many lanes as the narrowest registers hold.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        Self([operation(a, e), operation(b, f), operation(c, g), operation(d, h)])
    }
}

impl Lanes for Portable {
    const COUNT: usize = 4;
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    fn load(values: &[f32]) -> Self {
        Self(std::array::from_fn(|lane| values[lane]))
    }
    #[inline(always)]
    fn store(self, values: &mut [f32]) {
        values[..4].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn prefetch(_place: *const f32) {}
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // Not f32::mul_add, which without the instruction is a call per lane.
        self.mul(factor).add(term)
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn reaches(self, threshold: Self) -> u32 {
        (0..4).map(|lane| u32::from(self.0[lane] >= threshold.0[lane]) << lane).sum()
    }
    #[inline(always)]
    fn times_power_of_two(self, shifted: Self) -> Self {
        self.zip(shifted, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        self.0.into_iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "all for one reason: the types are only used inside functions compiled for their instructions, and memory is of checked length"
)]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub(in crate::topk) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const COUNT: usize = 16;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        fn load(values: &[f32]) -> Self {
            assert!(values.len() >= Self::COUNT);
            Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, values: &mut [f32]) {
            assert!(values.len() >= Self::COUNT);
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn prefetch(place: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn reaches(self, threshold: Self) -> u32 {
            u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, threshold.0) })
        }
        #[inline(always)]
        fn times_power_of_two(self, shifted: Self) -> Self {
            Self(unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), exponent))
            })
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            unsafe { _mm512_reduce_max_ps(self.0) }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(in crate::topk) struct Avx2(__m256);

    impl Avx2 {
        /// The lanes folded by an operation on pairs.
        #[inline(always)]
        fn fold(self, operation: impl Fn(__m128, __m128) -> __m128) -> f32 {
            unsafe {
                let four = operation(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = operation(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(operation(two, _mm_movehdup_ps(two)))
            }
        }
    }

    impl Lanes for Avx2 {
        const COUNT: usize = 8;
        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        fn load(values: &[f32]) -> Self {
            assert!(values.len() >= Self::COUNT);
            Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, values: &mut [f32]) {
            assert!(values.len() >= Self::COUNT);
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn prefetch(place: *const f32) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn reaches(self, threshold: Self) -> u32 {
            (unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(self.0, threshold.0)) }) as u32
        }
        #[inline(always)]
        fn times_power_of_two(self, shifted: Self) -> Self {
            Self(unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), exponent))
            })
        }
        #[inline(always)]
        fn largest(self) -> f32 {
            self.fold(|a, b| unsafe { _mm_max_ps(a, b) })
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            self.fold(|a, b| unsafe { _mm_add_ps(a, b) })
        }
    }
}
