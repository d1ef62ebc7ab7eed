//! The rows that are asked: what the head runs on.

use super::element::Element;
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows `asked` (strictly ascending) of `x` `[rows, width]`, as `[asked, width]`. The backward pass puts their gradients back, and zeros into
/// the other rows. Where all rows are asked, `x` itself comes back.
pub fn gather_rows(x: &Tensor, asked: &[u32]) -> Result<Tensor> {
    let (rows, width) = rows_and_width("gather_rows", x)?;
    check_asked("gather_rows", asked, rows)?;
    if asked.len() == rows {
        return Ok(x.clone());
    }
    for_dtype!("gather_rows", x.dtype(), T => x.apply_op1(GatherRows::<T> { asked: asked.to_vec(), width, element: PhantomData }))
}

/// Refuses rows out of order or range.
pub(crate) fn check_asked(operation: &str, asked: &[u32], rows: usize) -> Result<()> {
    if !asked.is_sorted_by(|a, b| a < b) {
        return Err(failure(operation, "the rows asked must be strictly ascending"));
    }
    match asked.last().filter(|row| **row as usize >= rows) {
        Some(row) => Err(failure(operation, format!("row {row} was asked of {rows} rows"))),
        None => Ok(()),
    }
}

struct GatherRows<T> {
    asked: Vec<u32>,
    width: usize,
    element: PhantomData<T>,
}

/// Rows `asked` of `x` `[rows, width]`.
pub(crate) fn gathered<T: Element>(x: &[T], width: usize, asked: &[u32]) -> Vec<T> {
    filled_by_chunks(asked.len() * width, width, asked.par_iter(), |y, row| y.copy_from_slice(&x[*row as usize * width..][..width]))
}

/// `[rows, width]` with the rows of `y` at the places `asked`, ascending, and zeros at the others.
pub(crate) fn scattered<T: Element>(y: &[T], width: usize, asked: &[u32], rows: usize) -> Vec<T> {
    filled_by_chunks(rows * width, width, (0..rows).into_par_iter(), |x, row| {
        if let Ok(position) = asked.binary_search(&(row as u32)) {
            x.copy_from_slice(&y[position * width..][..width]);
        }
    })
}

impl<T: Element> CustomOp1 for GatherRows<T> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y: Vec<T> = gathered(slice_of("gather_rows", storage, layout)?, self.width, &self.asked);
        Ok((T::to_cpu_storage_owned(y), (self.asked.len(), self.width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let rows = x.elem_count() / self.width;
        let dx = with_slice("gather_rows", gradient, |gradient: &[T]| scattered(gradient, self.width, &self.asked, rows))?;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, numbers, random};

    #[test]
    fn rows_come_out_and_gradients_go_back() {
        let x = random(1, &[5, 3], 1.0);
        let (all, some) = (numbers(&x), numbers(&gather_rows(&x, &[0, 3, 4]).unwrap()));
        assert_eq!(some, [&all[..3], &all[9..]].concat());
        Proof { inputs: &[x], parameters: &[], run: |x: &[Tensor], _: &[_]| gather_rows(&x[0], &[0, 3, 4]) }.check();
    }

    #[test]
    fn nothing_asked_gives_no_rows_and_no_gradient() {
        let x = candle_core::Var::from_tensor(&random(1, &[2, 3], 1.0)).unwrap();
        let none = gather_rows(&x, &[]).unwrap();
        assert_eq!(none.dims(), [0, 3]);
        let gradients = none.sum_all().unwrap().backward().unwrap();
        assert_eq!(numbers(gradients.get(&x).unwrap()), [0.0; 6]);
    }

    #[test]
    fn rows_out_of_order_or_range_are_refused() {
        let x = random(1, &[5, 3], 1.0);
        assert!(gather_rows(&x, &[1, 1]).unwrap_err().to_string().contains("ascending"));
        assert!(gather_rows(&x, &[1, 5]).unwrap_err().to_string().contains("row 5"));
    }
}
