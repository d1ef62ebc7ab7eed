//! Which vector instructions a kernel runs with.
//!
//! A kernel is written once, as plain loops over fixed-size lanes, and compiled three times: with AVX-512, with AVX2, and with what the
//! target has by default. Lanes have the same number everywhere and products are not contracted into fused multiply-adds, so that the three
//! give the same bits; only the GEMM underneath differs between processors.

use super::element::Element;

/// Lanes of a reduction: the same on every level, so that sums do not depend on the processor.
pub(crate) const LANES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A set of instructions that this processor has. Only [`Level::best`] and [`Level::available`] make one, so holding a `Level` is the proof
/// that its instructions may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Instructions);

impl Level {
    /// Every level of this processor, narrowest first.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self(Instructions::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 {
                levels.push(Self(Instructions::Avx2));
            }
            if avx2 && avx512 {
                levels.push(Self(Instructions::Avx512));
            }
        }
        levels
    }

    /// The level to run at: the widest of this processor.
    pub fn best() -> Self {
        #[cfg(test)]
        if let Some(level) = forced() {
            return level;
        }
        Self::widest()
    }

    fn widest() -> Self {
        static WIDEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *WIDEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self(Instructions::Portable)))
    }

    /// What a benchmark prints: `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_avx2(self) -> bool {
        self.0 == Instructions::Avx2
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_avx512(self) -> bool {
        self.0 == Instructions::Avx512
    }
}

/// The sum of `term` over the numbers of a row, in lanes whose number does not depend on the processor.
#[inline(always)]
pub(crate) fn lane_sum<T: Element, A: Copy>(a: &[A], term: impl Fn(A) -> T) -> T {
    lane_sum_of_three(a, a, a, |a, _, _| term(a))
}

/// [`lane_sum`] over two rows of one width, number by number.
///
/// # Panics
/// If the widths differ.
#[inline(always)]
pub(crate) fn lane_sum_of_two<T: Element, A: Copy, B: Copy>(a: &[A], b: &[B], term: impl Fn(A, B) -> T) -> T {
    lane_sum_of_three(a, b, b, |a, b, _| term(a, b))
}

/// [`lane_sum`] over three rows of one width, number by number. Whole lanes stand apart from the rest: a loop of a known length over arrays
/// vectorises, one over checked places does not.
///
/// # Panics
/// If the widths differ.
#[inline(always)]
pub(crate) fn lane_sum_of_three<T: Element, A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C], term: impl Fn(A, B, C) -> T) -> T {
    assert!(a.len() == b.len() && a.len() == c.len(), "rows of {}, {} and {} numbers", a.len(), b.len(), c.len());
    let mut lanes = [T::zero(); LANES];
    let ((a, last_a), (b, last_b), (c, last_c)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane], c[lane]);
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(last_a).zip(last_b).zip(last_c) {
        *lane += term(*a, *b, *c);
    }
    lanes.iter().fold(T::zero(), |sum, lane| sum + *lane)
}

/// Compiles a kernel once per level: `levelled! { fn name<T>(arguments) { body } }` becomes `name(level, arguments)`. Everything the body
/// calls in its inner loops has to be `#[inline(always)]`, or it is compiled without the wide instructions.
macro_rules! levelled {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident<$element:ident>($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<$element: $crate::kernels::element::Element>(
            level: $crate::kernels::level::Level, $($argument: $kind),*
        ) $(-> $result)? {
            #[inline(always)]
            fn portable<$element: $crate::kernels::element::Element>($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$element: $crate::kernels::element::Element>($($argument: $kind),*) $(-> $result)? {
                portable($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512<$element: $crate::kernels::element::Element>($($argument: $kind),*) $(-> $result)? {
                portable($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            if level.is_avx512() {
                // SAFETY: a `Level` with AVX-512 exists only where the processor has the features named above.
                return unsafe { avx512($($argument),*) };
            } else if level.is_avx2() {
                // SAFETY: a `Level` with AVX2 exists only where the processor has AVX2 and FMA.
                return unsafe { avx2($($argument),*) };
            }
            let _ = level;
            portable($($argument),*)
        }
    };
}

#[cfg(test)]
static FORCED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);

#[cfg(test)]
fn forced() -> Option<Level> {
    Level::available().get(FORCED.load(std::sync::atomic::Ordering::SeqCst)).copied()
}

/// Runs a test at one level, on every thread. Other tests that run meanwhile see it too, and must not care: all levels give the same bits.
#[cfg(test)]
pub(crate) fn with_level<R>(level: Level, run: impl FnOnce() -> R) -> R {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let index = Level::available().iter().position(|available| *available == level);
    FORCED.store(index.expect("a level of this processor"), std::sync::atomic::Ordering::SeqCst);
    let result = run();
    FORCED.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    levelled! {
        fn sum_of_squares<T>(values: &[T]) -> T {
            let mut lanes = [T::zero(); LANES];
            for chunk in values.chunks_exact(LANES) {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += *value * *value;
                }
            }
            lanes.iter().fold(T::zero(), |sum, lane| sum + *lane)
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let values: Vec<f32> = (0..160).map(|i| (i as f32 * 0.37).sin()).collect();
        let sums: Vec<u32> = Level::available().into_iter().map(|level| sum_of_squares(level, &values).to_bits()).collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        // Not `best`: another test may force a level meanwhile.
        assert_eq!(Level::available().last(), Some(&Level::widest()));
    }
}
