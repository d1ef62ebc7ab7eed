//! The two number types of the kernels: `f32` to train with, `f64` to prove gradients with.

use candle_core::WithDType;
use std::iter::Sum;
use std::ops::Neg;

/// A number type that every kernel runs on. `f32` has polynomial transcendental functions that vectorise, accurate to a few units in the last
/// place; `f64` has the exact ones, so that finite differences can test the same code.
pub trait Element: WithDType + Neg<Output = Self> + Sum + Default {
    /// The smallest number a kernel starts a maximum from.
    const NEGATIVE_INFINITY: Self;

    /// From a stored single-precision value.
    fn from_f32(value: f32) -> Self;

    /// The same numbers, if they are of single precision.
    fn as_single(values: &[Self]) -> Option<&[f32]>;

    /// e^x. In single precision arguments are clamped to [-87, 88], so the result is always a positive normal number.
    fn exp(self) -> Self;

    /// The square root.
    fn sqrt(self) -> Self;

    /// The standard normal distribution at x: (cumulative, density). In single precision the cumulative is within 4e-7 of the exact one.
    fn normal_distribution(self) -> (Self, Self);
}

const INVERSE_SQRT_TAU: f64 = 0.398_942_280_401_432_7;

impl Element for f32 {
    const NEGATIVE_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    fn as_single(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    /// Range reduction by ln 2 split in two parts, then a polynomial of degree 6 (the coefficients of Cephes' `expf`, Moshier 1989). Adding
    /// 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits, from where it becomes the exponent.
    #[inline(always)]
    fn exp(self) -> Self {
        const ROUNDER: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
        let power = shifted - ROUNDER;
        let rest = (x - power * 0.693_359_4) + power * 2.121_944_4e-4;
        let mut series = 1.987_569_1e-4f32;
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            series = series * rest + coefficient;
        }
        let mantissa = series * rest * rest + rest + 1.0;
        f32::from_bits(shifted.to_bits().wrapping_add(127) << 23) * mantissa
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    /// Abramowitz and Stegun 7.1.26 for erf, whose exponential is also the density's.
    #[inline(always)]
    fn normal_distribution(self) -> (Self, Self) {
        let argument = self.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / (1.0 + 0.327_591_1 * argument);
        let exponential = Element::exp(-argument * argument);
        let mut series = 1.061_405_4f32;
        for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
            series = series * t + coefficient;
        }
        let tail = 0.5 * series * t * exponential;
        (if self >= 0.0 { 1.0 - tail } else { tail }, exponential * INVERSE_SQRT_TAU as f32)
    }
}

impl Element for f64 {
    const NEGATIVE_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f64::from(value)
    }

    fn as_single(_values: &[Self]) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn normal_distribution(self) -> (Self, Self) {
        let cumulative = 0.5 * candle_core::cpu::erf::erfc_f64(-self * std::f64::consts::FRAC_1_SQRT_2);
        (cumulative, INVERSE_SQRT_TAU * (-0.5 * self * self).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_single_precision_exponential_is_accurate() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            let relative = (f64::from(Element::exp(x)) - exact).abs() / exact;
            assert!(relative < 3e-7, "exp({x}) is off by {relative:e}");
        }
        assert!(Element::exp(-1e30f32) > 0.0 && Element::exp(-1e30f32) < 1e-37);
        assert!(Element::exp(f32::NEG_INFINITY) < 1e-37);
        assert!(Element::exp(f32::NAN).is_nan());
        assert_eq!(Element::exp(0f32), 1.0);
    }

    #[test]
    fn the_normal_distribution_is_accurate_and_is_the_integral_of_its_density() {
        for i in -600..=600 {
            let x = f64::from(i) * 0.01;
            let (cumulative, density) = x.normal_distribution();
            let step = 1e-5;
            let slope = ((x + step).normal_distribution().0 - (x - step).normal_distribution().0) / (2.0 * step);
            assert!((slope - density).abs() < 1e-9, "density at {x}: {density} against a slope of {slope}");
            let (single_cumulative, single_density) = (x as f32).normal_distribution();
            assert!((f64::from(single_cumulative) - cumulative).abs() < 4e-7, "cumulative at {x}");
            assert!((f64::from(single_density) - density).abs() < 4e-7, "density at {x}");
        }
        assert_eq!(0f64.normal_distribution().0, 0.5);
    }
}
