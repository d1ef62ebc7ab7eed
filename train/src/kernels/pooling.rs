//! One vector for each sequence: the states of its tokens pooled, and scaled to length 1.

use super::element::Element;
use super::level::{Level, lane_sum_of_two};
use super::packing::Packing;
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use logitcache::target::Pooling;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;

/// `[sequences, width]` from the rows `[rows, width]` of `packing`: of each sequence the mean of its rows, the first one, or the largest value in
/// each column, of equals the first.
pub fn pool(x: &Tensor, packing: &Arc<Packing>, pooling: Pooling) -> Result<Tensor> {
    let (rows, width) = rows_and_width("pool", x)?;
    if rows != packing.rows() {
        return Err(failure("pool", format!("{rows} rows for a packing of {}", packing.rows())));
    }
    for_dtype!("pool", x.dtype(), T => x.apply_op1(Pool::<T> { packing: packing.clone(), pooling, width, element: PhantomData }))
}

struct Pool<T> {
    packing: Arc<Packing>,
    pooling: Pooling,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> Pool<T> {
    fn rows<'a>(&self, x: &'a [T], sequence: usize) -> &'a [T] {
        let range = self.packing.range(sequence);
        &x[range.start * self.width..range.end * self.width]
    }

    fn forward(&self, x: &[T]) -> Vec<T> {
        let sequences = self.packing.sequences();
        filled_by_chunks(sequences * self.width, self.width, (0..sequences).into_par_iter(), |y, sequence| {
            let rows = self.rows(x, sequence);
            y.copy_from_slice(&rows[..self.width]);
            match self.pooling {
                Pooling::Cls => {}
                Pooling::Mean => {
                    for row in rows.chunks_exact(self.width).skip(1) {
                        y.iter_mut().zip(row).for_each(|(y, x)| *y += *x);
                    }
                    let share = T::from_f64(1.0 / self.packing.range(sequence).len() as f64);
                    y.iter_mut().for_each(|y| *y *= share);
                }
                Pooling::Max => {
                    for row in rows.chunks_exact(self.width).skip(1) {
                        y.iter_mut().zip(row).for_each(|(y, x)| *y = if *x > *y { *x } else { *y });
                    }
                }
            }
        })
    }

    fn backward(&self, x: &[T], y: &[T], gradient: &[T]) -> Vec<T> {
        let mut dx = vec![T::zero(); x.len()];
        let width = self.width;
        self.packing.split(&mut dx, width).into_par_iter().enumerate().for_each(|(sequence, dx)| {
            let gradient = &gradient[sequence * width..][..width];
            match self.pooling {
                Pooling::Cls => dx[..width].copy_from_slice(gradient),
                Pooling::Mean => {
                    let share = T::from_f64(1.0 / self.packing.range(sequence).len() as f64);
                    dx.chunks_exact_mut(width).flat_map(|dx| dx.iter_mut().zip(gradient)).for_each(|(dx, g)| *dx = share * *g);
                }
                Pooling::Max => {
                    let rows = self.rows(x, sequence);
                    for (column, largest) in y[sequence * width..][..width].iter().enumerate() {
                        let first = (column..rows.len()).step_by(width).find(|place| rows[*place] == *largest);
                        if let Some(place) = first {
                            dx[place] = gradient[column];
                        }
                    }
                }
            }
        });
        dx
    }
}

impl<T: Element> CustomOp1 for Pool<T> {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(slice_of("pool", storage, layout)?);
        Ok((T::to_cpu_storage_owned(y), (self.packing.sequences(), self.width).into()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let dx = with_slice("pool", &gradient, |gradient: &[T]| {
            with_slice("pool", y, |y| with_slice("pool", x, |x| self.backward(x, y, gradient)))
        })???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

/// The least length that a row is divided by, as PyTorch's `normalize` has it.
const LEAST_LENGTH: f64 = 1e-12;

/// Rows `[rows, width]` divided by their Euclidean lengths, or by 1e-12 where they are shorter.
pub fn unit_length(x: &Tensor) -> Result<Tensor> {
    let (_, width) = rows_and_width("unit_length", x)?;
    for_dtype!("unit_length", x.dtype(), T => x.apply_op1(UnitLength::<T> { width, element: PhantomData }))
}

struct UnitLength<T> {
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for UnitLength<T> {
    fn name(&self) -> &'static str {
        "unit_length"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[T] = slice_of("unit_length", storage, layout)?;
        let level = Level::best();
        let y = filled_by_chunks(x.len(), self.width, x.par_chunks(self.width), |y, x| {
            let (length, _) = length(level, x);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f64(x.to_f64() / length));
        });
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    /// With y = x / |x|: dx = (dy - (dy . y) y) / |x|.
    fn bwd(&self, x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let level = Level::best();
        let gradient = gradient.contiguous()?;
        let run = |x: &[T], y: &[T], gradient: &[T]| {
            let rows = x.par_chunks(self.width).zip(y.par_chunks(self.width)).zip(gradient.par_chunks(self.width));
            filled_by_chunks(x.len(), self.width, rows, |dx, ((x, y), gradient)| {
                let (length, is_short) = length(level, x);
                let along = if is_short { 0.0 } else { dot(level, gradient, y) };
                for ((dx, g), y) in dx.iter_mut().zip(gradient).zip(y) {
                    *dx = T::from_f64((g.to_f64() - along * y.to_f64()) / length);
                }
            })
        };
        let dx = with_slice("unit_length", &gradient, |gradient: &[T]| {
            with_slice("unit_length", y, |y| with_slice("unit_length", x, |x| run(x, y, gradient)))
        })???;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

/// What a row is divided by, and whether that is more than its length.
fn length<T: Element>(level: Level, x: &[T]) -> (f64, bool) {
    let length = dot(level, x, x).sqrt();
    (length.max(LEAST_LENGTH), length < LEAST_LENGTH)
}

levelled! {
    fn dot<T>(a: &[T], b: &[T]) -> f64 {
        lane_sum_of_two(a, &b[..a.len()], |a, b| a * b).to_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    fn packing() -> Arc<Packing> {
        Packing::new(&[0, 3, 4, 9], &[7, 8, 9], &[0, 0, 1]).unwrap()
    }

    #[test]
    fn rows_are_pooled_by_sequence() {
        let x = random(1, &[9, 5], 1.0);
        let rows: Vec<Vec<f64>> = numbers(&x).chunks(5).map(<[f64]>::to_vec).collect();
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Max] {
            let mut expected = Vec::new();
            for range in [0..3, 3..4, 4..9] {
                for column in 0..5 {
                    let values: Vec<f64> = rows[range.clone()].iter().map(|row| row[column]).collect();
                    expected.push(match pooling {
                        Pooling::Mean => values.iter().sum::<f64>() / values.len() as f64,
                        Pooling::Cls => values[0],
                        Pooling::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    });
                }
            }
            let found = pool(&x, &packing(), pooling).unwrap();
            assert_eq!(found.dims(), [3, 5]);
            assert_close(&format!("{pooling:?}"), &numbers(&found), &expected, 1e-12, 1e-12);
            let run = |x: &[Tensor], _: &[_]| pool(&x[0], &packing(), pooling);
            Proof { inputs: std::slice::from_ref(&x), parameters: &[], run }.check();
        }
        assert!(pool(&random(1, &[8, 5], 1.0), &packing(), Pooling::Mean).unwrap_err().to_string().contains("packing of 9"));
    }

    #[test]
    fn of_equal_values_the_first_gets_the_gradient() {
        let x = candle_core::Var::new(&[[1f64], [1.0], [0.0]], &candle_core::Device::Cpu).unwrap();
        let one = Packing::new(&[0, 3], &[0], &[0]).unwrap();
        let gradients = pool(&x, &one, Pooling::Max).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(numbers(gradients.get(&x).unwrap()), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn rows_get_length_one() {
        for width in [1, 7, 40] {
            let x = random(2, &[4, width], 3.0);
            let y = numbers(&unit_length(&x).unwrap());
            for (y, x) in y.chunks(width).zip(numbers(&x).chunks(width)) {
                let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                assert_close("row", y, &x.iter().map(|x| x / length).collect::<Vec<_>>(), 1e-12, 1e-12);
            }
            if width > 1 {
                Proof { inputs: &[x], parameters: &[], run: |x: &[Tensor], _: &[_]| unit_length(&x[0]) }.check();
            }
        }
        let zeros = candle_core::Var::zeros((2, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let y = unit_length(&zeros).unwrap();
        assert_eq!(numbers(&y), [0.0; 8]);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(numbers(gradients.get(&zeros).unwrap()).iter().all(|value| value.is_finite()));
    }
}
