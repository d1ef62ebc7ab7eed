//! Every kernel against a product in double precision, and against every other to the bit.

use super::*;
use crate::kernels::level::with_level;

/// Numbers of both signs and several magnitudes.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed) as f32 * 0.73).sin() * 10f32.powi((i % 4) as i32 - 2)).collect()
}

/// The nearest bf16 by its definition: of the two that enclose the value the nearer, of two equally near the even one.
fn nearest_bf16(value: f32) -> f32 {
    let below = value.to_bits() & 0xffff_0000;
    let candidates = [below, below + 0x1_0000].map(f32::from_bits);
    let [to_below, to_above] = candidates.map(|candidate| (f64::from(value) - f64::from(candidate)).abs());
    let even = candidates[usize::from(below & 0x1_0000 != 0)];
    if to_below == to_above { even } else { candidates[usize::from(to_above < to_below)] }
}

/// A product and what it is made of: operands as they lie in memory, element (i, j) at `i * strides.0 + j * strides.1`.
struct Case {
    rows: usize,
    columns: usize,
    depth: usize,
    left: (Vec<f32>, usize, usize),
    right: (Vec<f32>, usize, usize),
}

impl Case {
    /// The three products of a linear map, and the fourth there is, by whether an operand is used transposed; rows lie further apart than wide.
    fn all(rows: usize, columns: usize, depth: usize) -> Vec<Self> {
        let lefts = [(numbers(rows * (depth + 3), 1), depth + 3, 1), (numbers(depth * (rows + 2), 2), 1, rows + 2)];
        let rights = [(numbers(depth * (columns + 5), 3), columns + 5, 1), (numbers(columns * (depth + 1), 4), 1, depth + 1)];
        let pairs = lefts.iter().flat_map(|left| rights.iter().map(move |right| (left.clone(), right.clone())));
        pairs.map(|(left, right)| Self { rows, columns, depth, left, right }).collect()
    }

    fn product(&self, kernel: Kernel) -> Product<'_> {
        let (left, right) = (&self.left, &self.right);
        Product {
            kernel,
            left: Operand { values: &left.0, lane_stride: left.1, depth_stride: left.2 },
            right: Operand { values: &right.0, lane_stride: right.2, depth_stride: right.1 },
            rows: self.rows,
            columns: self.columns,
            depth: self.depth,
        }
    }

    /// The result between untouched columns, whose rows lie `columns + 2` apart, added to ones where `accumulate`.
    fn run(&self, kernel: Kernel, threads: usize, accumulate: bool) -> Vec<f32> {
        let mut result = vec![1f32; self.rows * (self.columns + 2)];
        let destination = Destination { first: result.as_mut_ptr(), row_stride: self.columns + 2, accumulate };
        // SAFETY: the buffer covers the product and is initialised.
        unsafe { self.product(kernel).run(destination, threads) };
        result
    }

    /// Element (i, j) and the sum of its terms' magnitudes, in double precision.
    fn expected(&self, precision: Precision, i: usize, j: usize) -> (f64, f64) {
        let read = |value: f32| f64::from(if precision == Precision::Bf16 { nearest_bf16(value) } else { value });
        let term =
            |k: usize| read(self.left.0[i * self.left.1 + k * self.left.2]) * read(self.right.0[k * self.right.1 + j * self.right.2]);
        (0..self.depth).map(term).fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    /// Every element within depth * 2^-24 of its terms' magnitudes, the bound of a chain of that many roundings.
    fn check(&self, precision: Precision, result: &[f32], accumulate: bool) {
        for i in 0..self.rows {
            let row = &result[i * (self.columns + 2)..][..self.columns + 2];
            for (j, found) in row[..self.columns].iter().enumerate() {
                let (sum, size) = self.expected(precision, i, j);
                let (sum, size) = if accumulate { (sum + 1.0, size + 1.0) } else { (sum, size) };
                let (error, limit) = ((f64::from(*found) - sum).abs(), (self.depth + 1) as f64 * 2f64.powi(-24) * size);
                assert!(error <= limit, "({i}, {j}): {found}, expected {sum}, off by {error:e} of at most {limit:e}");
            }
            assert_eq!(row[self.columns..], [1.0, 1.0], "columns beyond the product must not change");
        }
    }
}

#[test]
fn every_kernel_equals_the_definition_and_every_other_to_the_bit() {
    let shapes = [(1, 1, 1), (5, 7, 3), (13, 33, 258), (40, 20, 2), (250, 65, 31), (12, 32, 512), (3, 100, 4100), (600, 5, 9)];
    for precision in [Precision::Single, Precision::Bf16] {
        for case in shapes.into_iter().flat_map(|(rows, columns, depth)| Case::all(rows, columns, depth)) {
            for accumulate in [false, true] {
                let kernels = Kernel::all(precision);
                let first = case.run(kernels[0], 1, accumulate);
                case.check(precision, &first, accumulate);
                for (kernel, threads) in kernels.iter().flat_map(|kernel| [(kernel, 1), (kernel, 2), (kernel, 7)]) {
                    let same = case.run(*kernel, threads, accumulate).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{precision} {:?} on {threads} threads: {} x {} x {}",
                        kernel.format, case.rows, case.columns, case.depth
                    );
                }
            }
        }
    }
}

#[test]
fn a_depth_of_none_gives_zeros_or_adds_nothing() {
    let case = Case { rows: 2, columns: 3, depth: 0, left: (vec![], 1, 1), right: (vec![], 3, 1) };
    let kernel = Kernel::new(Precision::Bf16, Level::best());
    assert_eq!(case.run(kernel, 1, false), [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(case.run(kernel, 1, true), [1.0; 10]);
}

#[test]
fn rounding_is_to_the_nearest_even_and_keeps_what_is_no_number() {
    let values =
        numbers(4000, 5).into_iter().chain([1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0, 3.0e38, 0.0, -0.0, 1.2e-38]);
    for value in values {
        assert_eq!(f32::from_bits(panels::rounded(value)).to_bits(), nearest_bf16(value).to_bits(), "{value}");
    }
    let rounded = |value: f32| f32::from_bits(panels::rounded(value));
    assert!(rounded(f32::NAN).is_nan() && rounded(f32::from_bits(0x7f80_0001)).is_nan() && rounded(f32::from_bits(0xffff_ffff)).is_nan());
    assert_eq!((rounded(f32::INFINITY), rounded(f32::MAX), rounded(-f32::MAX)), (f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY));
    assert_eq!((rounded(1e-40).to_bits(), rounded(-1e-40).to_bits()), (0, 1 << 31));
}

#[test]
fn a_product_is_the_same_at_every_level() {
    let (left, right) = (numbers(70 * 90, 6), numbers(50 * 90, 7));
    let run = || {
        let mut result = vec![0f32; 70 * 50];
        let (left, right) = (Matrix::new(&left, 70, 90), Matrix::new(&right, 50, 90).transposed());
        crate::kernels::matrix::multiply_in(Precision::Bf16, &mut result, 50, false, left, right, Threads::All);
        result
    };
    let results: Vec<_> = Level::available().into_iter().map(|level| with_level(level, run)).collect();
    assert!(results.iter().all(|result| *result == results[0]));
    let unrounded = crate::kernels::matrix::product(Matrix::new(&left, 70, 90), Matrix::new(&right, 50, 90).transposed(), Threads::One);
    assert_ne!(unrounded, results[0]);
}
