//! Matrix products on strided views, and sums over rows.

use super::element::Element;
use super::level::Level;
use super::precision::Precision;
use super::storage::written;
use ::gemm::Parallelism;
use rayon::prelude::*;

/// Whether a product may use the thread pool. Products inside a loop that is parallel already must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone.
    One,
    /// All threads of the current pool.
    All,
}

/// A view of a matrix: element (i, j) is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// A row-major matrix whose rows lie `columns` apart.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// A row-major matrix whose rows lie `row_stride` apart, for example some columns of a wider one.
    ///
    /// # Panics
    /// If the last element lies outside `values`.
    pub fn strided(values: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert_covers(values.len(), rows, columns, row_stride);
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// The first `count` rows, and the others.
    fn split_rows(self, count: usize) -> (Self, Self) {
        let rest = Self { values: &self.values[count * self.row_stride..], rows: self.rows - count, ..self };
        (Self { rows: count, ..self }, rest)
    }

    /// Rows and columns exchanged; nothing moves.
    pub fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    fn as_single(self) -> Option<Matrix<'a, f32>> {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Some(Matrix { values: T::as_single(values)?, rows, columns, row_stride, column_stride })
    }
}

fn assert_covers(length: usize, rows: usize, columns: usize, row_stride: usize) {
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
    assert!(length >= needed, "a matrix of {rows} x {columns} with rows {row_stride} apart needs {needed} numbers, has {length}");
    assert!(row_stride >= columns, "rows of {columns} numbers cannot lie {row_stride} apart");
}

/// `destination = left right`, or `destination += left right` where `accumulate`. `destination` is row-major with rows `row_stride` apart.
///
/// # Panics
/// If the inner dimensions differ or `destination` is too short.
pub fn multiply<T: Element>(
    destination: &mut [T],
    row_stride: usize,
    accumulate: bool,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    threads: Threads,
) {
    multiply_in(Precision::Single, destination, row_stride, accumulate, left, right, threads);
}

/// [`multiply`], the operands taken in some precision. Double-precision ones are never rounded.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_in<T: Element>(
    precision: Precision,
    destination: &mut [T],
    row_stride: usize,
    accumulate: bool,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    threads: Threads,
) {
    assert_covers(destination.len(), left.rows, right.columns, row_stride);
    // SAFETY: the destination covers rows x columns, and where it is read (`accumulate`) it is initialised, being a slice.
    unsafe { multiply_raw(precision, destination.as_mut_ptr(), row_stride, accumulate, left, right, threads) }
}

/// A new row-major buffer with `left right`.
///
/// # Panics
/// If the inner dimensions differ.
pub fn product<T: Element>(left: Matrix<'_, T>, right: Matrix<'_, T>, threads: Threads) -> Vec<T> {
    product_in(Precision::Single, left, right, threads)
}

/// [`product`], the operands taken in some precision. Double-precision ones are never rounded.
///
/// # Panics
/// As [`product`].
pub fn product_in<T: Element>(precision: Precision, left: Matrix<'_, T>, right: Matrix<'_, T>, threads: Threads) -> Vec<T> {
    let columns = right.columns;
    let write = |values: &mut [std::mem::MaybeUninit<T>]| {
        // SAFETY: the buffer has rows x columns places, which are not read.
        unsafe { multiply_raw(precision, values.as_mut_ptr().cast::<T>(), columns, false, left, right, threads) }
    };
    // SAFETY: without `accumulate` a product writes every element of its destination.
    unsafe { written(left.rows * columns, write) }
}

/// # Safety
/// `destination` must be valid for writes of left.rows x right.columns elements with rows `row_stride` apart, and initialised if `accumulate`.
unsafe fn multiply_raw<T: Element>(
    precision: Precision,
    destination: *mut T,
    row_stride: usize,
    accumulate: bool,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    threads: Threads,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions of a matrix product");
    if let (Precision::Bf16, Some(left), Some(right)) = (precision, left.as_single(), right.as_single()) {
        // SAFETY: `T` is `f32`; the rest is this function's own contract.
        return unsafe { super::gemm::multiply(precision, destination.cast::<f32>(), row_stride, accumulate, left, right, threads) };
    }
    let threads = if threads == Threads::One { 1 } else { rayon::current_num_threads() };
    // SAFETY: both operands cover their shapes (checked when the views were made); the destination does by this function's own contract.
    unsafe { multiply_parts(Destination(destination), row_stride, accumulate, left, right, threads) }
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Destination<T>(*mut T);

// SAFETY: threads are given parts of it that do not overlap (see `multiply_parts`).
unsafe impl<T: Send> Send for Destination<T> {}

/// Multiply-adds that are worth a thread of their own: some microseconds.
const WORTH_A_THREAD: usize = 1 << 19;

/// Rows or columns at whose multiples a product is cut, so that no part ends within a tile of the kernel.
const CUT: usize = 64;

/// Cuts the longer side of the result among the threads, until each has a part: no thread waits for what another one packs, which makes two
/// threads up to half as fast again as the crate's own division of a product.
///
/// # Safety
/// As for [`multiply_raw`].
unsafe fn multiply_parts<T: Element>(
    destination: Destination<T>,
    row_stride: usize,
    accumulate: bool,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    threads: usize,
) {
    let longer = left.rows.max(right.columns);
    if threads == 1 || longer <= CUT || left.rows * right.columns * left.columns < 2 * WORTH_A_THREAD {
        // SAFETY: as the caller promises.
        return unsafe { multiply_alone(destination.0, row_stride, accumulate, left, right) };
    }
    let first_threads = threads / 2;
    let cut = (longer * first_threads / threads).next_multiple_of(CUT).min((longer - 1) / CUT * CUT);
    let (lefts, rights, offset) = if left.rows >= right.columns {
        (left.split_rows(cut), (right, right), cut * row_stride)
    } else {
        let (first, second) = right.transposed().split_rows(cut);
        ((left, left), (first.transposed(), second.transposed()), cut)
    };
    // SAFETY: the second part begins within the destination.
    let second = Destination(unsafe { destination.0.add(offset) });
    rayon::join(
        // SAFETY: each part covers its rows and columns, which the other has none of.
        move || unsafe { multiply_parts(destination, row_stride, accumulate, lefts.0, rights.0, first_threads) },
        // SAFETY: as above.
        move || unsafe { multiply_parts(second, row_stride, accumulate, lefts.1, rights.1, threads - first_threads) },
    );
}

/// On the calling thread.
///
/// # Safety
/// As for [`multiply_raw`].
unsafe fn multiply_alone<T: Element>(destination: *mut T, row_stride: usize, accumulate: bool, left: Matrix<'_, T>, right: Matrix<'_, T>) {
    // SAFETY: as the caller promises.
    unsafe {
        ::gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            destination,
            1,
            row_stride as isize,
            accumulate,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Columns that one task of [`add_column_sums`] owns.
const COLUMN_BLOCK: usize = 64;

levelled! {
    fn add_column_block<T>(values: &[T], width: usize, first: usize, sums: &mut [T]) {
        for row in values.chunks_exact(width) {
            for (sum, value) in sums.iter_mut().zip(&row[first..]) {
                *sum += *value;
            }
        }
    }
}

/// Adds to `sums` the sums of the neighbouring columns that begin at `first`, of `values` `[rows, width]`. Rows are added in order, whatever
/// the number of threads.
pub fn add_column_sums<T: Element>(values: &[T], width: usize, first: usize, sums: &mut [T]) {
    let level = Level::best();
    sums.par_chunks_mut(COLUMN_BLOCK).enumerate().for_each(|(block, sums)| {
        add_column_block(level, values, width, first + block * COLUMN_BLOCK, sums);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: f64) -> Vec<f64> {
        (0..count).map(|i| ((i as f64 + seed) * 0.7).sin()).collect()
    }

    #[test]
    fn strided_and_transposed_products_equal_the_definition() {
        let (rows, columns, inner) = (5, 7, 3);
        let left = numbers(rows * 4, 0.0); // [5, 3] with rows 4 apart
        let right = numbers(columns * inner, 9.0); // [7, 3], used transposed
        let expected = |i: usize, j: usize| (0..inner).map(|k| left[i * 4 + k] * right[j * inner + k]).sum::<f64>();
        let left_view = Matrix::strided(&left, rows, inner, 4);
        let right_view = Matrix::new(&right, columns, inner).transposed();
        for threads in [Threads::One, Threads::All] {
            let fresh = product(left_view, right_view, threads);
            let mut added = vec![1.0; rows * 9];
            multiply(&mut added, 9, true, left_view, right_view, threads);
            for i in 0..rows {
                for j in 0..columns {
                    assert!((fresh[i * columns + j] - expected(i, j)).abs() < 1e-14);
                    assert!((added[i * 9 + j] - 1.0 - expected(i, j)).abs() < 1e-14);
                }
                assert_eq!(&added[i * 9 + 7..i * 9 + 9], [1.0, 1.0], "columns beyond the product must not change");
            }
        }
    }

    /// Sides that are cut, evenly and not, by rows and by columns, on as many threads as a small server has.
    #[test]
    fn a_product_that_many_threads_share_equals_one_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(7).build().unwrap();
        for (rows, columns, inner) in [(700, 65, 70), (65, 700, 70), (300, 300, 40), (64, 64, 900), (1, 2000, 900)] {
            let (left, right) = (numbers(rows * inner, 1.0), numbers(columns * inner, 5.0));
            let (left, right) = (Matrix::new(&left, rows, inner), Matrix::new(&right, columns, inner).transposed());
            let expected = product(left, right, Threads::One);
            let mut found = vec![f64::NAN; rows * (columns + 3)];
            pool.install(|| multiply(&mut found, columns + 3, false, left, right, Threads::All));
            for (found, expected) in found.chunks(columns + 3).zip(expected.chunks(columns)) {
                assert!(
                    found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-11),
                    "{rows} x {columns} x {inner}"
                );
                assert!(found[columns..].iter().all(|beyond| beyond.is_nan()));
            }
        }
    }

    #[test]
    fn column_sums_are_added() {
        let width = 70;
        let values = numbers(11 * width, 2.0);
        let mut sums = vec![3.0; width - 2];
        add_column_sums(&values, width, 1, &mut sums);
        for (column, sum) in sums.iter().enumerate() {
            let expected = 3.0 + (0..11).map(|row| values[row * width + column + 1]).sum::<f64>();
            assert!((sum - expected).abs() < 1e-12);
        }
    }

    #[test]
    #[should_panic(expected = "needs 12 numbers")]
    fn a_view_that_is_too_short_is_refused() {
        let _ = Matrix::new(&[0f32; 11], 3, 4);
    }
}
