//! The rows that are asked: what the head runs on.

use super::element::Element;
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows `asked` (strictly ascending) of `x` `[rows, width]`, as `[asked, width]`. The backward pass puts their gradients back, and zeros into
/// the other rows.
pub fn gather_rows(x: &Tensor, asked: &[u32]) -> Result<Tensor> {
    let (rows, width) = rows_and_width("gather_rows", x)?;
    if !asked.is_sorted_by(|a, b| a < b) {
        return Err(failure("gather_rows", "the rows asked must be strictly ascending"));
    }
    if let Some(row) = asked.last().filter(|row| **row as usize >= rows) {
        return Err(failure("gather_rows", format!("row {row} was asked of {rows} rows")));
    }
    for_dtype!("gather_rows", x.dtype(), T => x.apply_op1(GatherRows::<T> { asked: asked.to_vec(), width, element: PhantomData }))
}

struct GatherRows<T> {
    asked: Vec<u32>,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for GatherRows<T> {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[T] = slice_of("gather_rows", storage, layout)?;
        let width = self.width;
        let y = filled_by_chunks(self.asked.len() * width, width, self.asked.par_iter(), |y, row| {
            y.copy_from_slice(&x[*row as usize * width..][..width]);
        });
        Ok((T::to_cpu_storage_owned(y), (self.asked.len(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = self.width;
        let dx = with_slice("gather_rows", gradient, |gradient: &[T]| {
            let rows = (0..x.elem_count() / width).into_par_iter();
            filled_by_chunks(x.elem_count(), width, rows, |dx, row| {
                if let Ok(position) = self.asked.binary_search(&(row as u32)) {
                    dx.copy_from_slice(&gradient[position * width..][..width]);
                }
            })
        })?;
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
