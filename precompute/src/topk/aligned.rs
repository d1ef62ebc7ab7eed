//! Numbers that begin where a cache line does.
//!
//! A register as wide as a line that is loaded from within one reads two, and an allocator promises less: the head's product is a tenth faster where its
//! weights begin with a line (tests/BENCHMARKS.md).

use super::lanes::LINE;

/// A buffer of numbers whose first lies at the beginning of a cache line.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    values: Vec<f32>,
    /// Where the first number is.
    start: usize,
}

impl Aligned {
    /// `length` times 0.
    pub(super) fn zeros(length: usize) -> Self {
        let values = vec![0.0f32; length + LINE];
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>());
        Self { values, start }
    }

    /// Makes room for `length` numbers, whatever they are.
    pub(super) fn reserve(&mut self, length: usize) {
        if self.values.len() < length + LINE {
            *self = Self::zeros(length);
        }
    }

    /// The numbers; behind those that were asked for may be others.
    pub(super) fn get(&self) -> &[f32] {
        &self.values[self.start..]
    }

    /// The same, to be written.
    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_at_the_beginning_of_a_line() {
        let mut aligned = Aligned::default();
        for length in [0, 1, 15, 16, 17, 1000, 3] {
            aligned.reserve(length);
            assert!(aligned.get().len() >= length && (length == 0 || aligned.get().as_ptr().addr().is_multiple_of(64)), "{length}");
            assert_eq!(Aligned::zeros(length).get_mut()[..length], vec![0.0; length]);
        }
    }
}
