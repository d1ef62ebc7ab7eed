//! Rotary position embeddings (Su et al. 2021), pairs half a head apart as Llama has them.
//!
//! At position p the pair (x_i, x_(i + d/2)) of a head of width d is turned by the angle p f_i: (x_i cos - x_(i + d/2) sin, x_(i + d/2) cos +
//! x_i sin). Turning back, by the negative angle, is the backward pass.

use super::element::Element;
use std::sync::{Arc, Mutex};

/// The angles of a model's heads; cosines and sines are worked out for as many positions as the longest sequence so far had.
#[derive(Debug)]
pub struct Rotary {
    /// `[head_width / 2]`, in radians per position.
    frequencies: Vec<f64>,
    positions: usize,
    known: Mutex<Arc<Angles>>,
}

/// `[positions, head_width / 2]` both.
#[derive(Debug, Default)]
struct Angles {
    cosines: Vec<f64>,
    sines: Vec<f64>,
}

impl Rotary {
    /// Of `positions` positions, counted from 0, and these frequencies in radians per position, half as many as a head is wide.
    ///
    /// `transformers` computes angles in float32: a frequency is rounded to float32, so is its product with the position, and so are cosine and
    /// sine.
    pub fn new(frequencies: Vec<f64>, positions: usize) -> Self {
        Self { frequencies, positions, known: Mutex::default() }
    }

    /// The published frequencies of a head of this (even) width: base^(-2 i / width).
    pub fn frequencies(head_width: usize, base: f64) -> Vec<f64> {
        (0..head_width / 2).map(|i| base.powf(-2.0 * i as f64 / head_width as f64)).collect()
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Positions that there may be.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of the first `positions` positions, in a kernel's number type.
    pub(crate) fn table<T: Element>(&self, positions: usize) -> RotaryTable<T> {
        let (half, angles) = (self.frequencies.len(), self.angles(positions));
        let cast = |values: &[f64]| values[..positions * half].iter().map(|value| T::from_f64(*value)).collect();
        RotaryTable { half, cosines: cast(&angles.cosines), sines: cast(&angles.sines) }
    }

    fn angles(&self, positions: usize) -> Arc<Angles> {
        // A panic elsewhere leaves a whole table: it is replaced, never changed.
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.cosines.len() < positions * self.frequencies.len() {
            let of_position = |position| self.frequencies.iter().map(move |frequency| f64::from(position as f32 * *frequency as f32));
            let angles: Vec<f64> = (0..positions.next_power_of_two()).flat_map(of_position).collect();
            let rounded = |function: fn(f64) -> f64| angles.iter().map(|angle| f64::from(function(*angle) as f32)).collect();
            let (cosines, sines) = (rounded(f64::cos), rounded(f64::sin));
            *known = Arc::new(Angles { cosines, sines });
        }
        known.clone()
    }
}

/// A [`Rotary`] in one number type.
pub(crate) struct RotaryTable<T> {
    half: usize,
    cosines: Vec<T>,
    sines: Vec<T>,
}

impl<T: Element> RotaryTable<T> {
    /// Cosines and sines of a position.
    #[inline(always)]
    pub(crate) fn at(&self, position: usize) -> (&[T], &[T]) {
        let row = position * self.half..(position + 1) * self.half;
        (&self.cosines[row.clone()], &self.sines[row])
    }
}

levelled! {
    /// Turns one head's row `from` into `to`, by the angles or, `back`, by the negative ones.
    pub(crate) fn turn<T>(from: &[T], to: &mut [T], cosines: &[T], sines: &[T], back: bool) {
        let half = cosines.len();
        let sines = &sines[..half];
        let (from_first, from_second) = (&from[..half], &from[half..2 * half]);
        let (to_first, to_second) = to.split_at_mut(half);
        let to_second = &mut to_second[..half];
        let sign = if back { -T::one() } else { T::one() };
        for i in 0..half {
            let sine = sign * sines[i];
            to_first[i] = from_first[i] * cosines[i] - from_second[i] * sine;
            to_second[i] = from_second[i] * cosines[i] + from_first[i] * sine;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::level::Level;
    use super::*;

    #[test]
    fn pairs_are_turned_and_turned_back() {
        let rotary = Rotary::new(Rotary::frequencies(6, 100.0), 5);
        assert_eq!((rotary.head_width(), rotary.positions()), (6, 5));
        let table = rotary.table::<f64>(5);
        let x = [1.0, -2.0, 0.5, 3.0, 0.25, -1.0];
        for position in 0..5 {
            let (mut y, mut back) = ([0.0; 6], [0.0; 6]);
            let (cosines, sines) = table.at(position);
            turn(Level::best(), &x, &mut y, cosines, sines, false);
            for i in 0..3 {
                let angle = position as f64 * 100f64.powf(-(i as f64) / 3.0);
                let expected = [x[i] * angle.cos() - x[i + 3] * angle.sin(), x[i + 3] * angle.cos() + x[i] * angle.sin()];
                assert!((y[i] - expected[0]).abs() < 1e-6 && (y[i + 3] - expected[1]).abs() < 1e-6, "position {position}, pair {i}");
            }
            turn(Level::best(), &y, &mut back, cosines, sines, true);
            assert!(back.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
