//! The mean squared difference from the teacher's hidden states, over all rows of a batch.

use super::element::Element;
use super::level::{Level, lane_sum_of_two};
use super::precomputed::{Gradients, precomputed};
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, with_slice};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// The sum over the rows of `hidden` `[rows, width]` of the mean over `width` of the squared difference from the same row of `teacher`
/// `[rows, width]`, divided by `tokens`, the rows of the whole step. Gives the scalar tensor, times `weight`, and the number itself, without.
pub fn hidden_mse_loss(hidden: &Tensor, teacher: &[f32], weight: f64, tokens: usize) -> Result<(Tensor, f64)> {
    let (rows, width) = rows_and_width("hidden_mse_loss", hidden)?;
    if teacher.len() != rows * width {
        return Err(failure("hidden_mse_loss", format!("{} teacher numbers for {rows} rows of {width}", teacher.len())));
    }
    if tokens < rows {
        return Err(failure("hidden_mse_loss", format!("{rows} rows of a step of {tokens} tokens")));
    }
    for_dtype!("hidden_mse_loss", hidden.dtype(), T => run::<T>(hidden, teacher, width, weight, tokens))
}

fn run<T: Element>(hidden: &Tensor, teacher: &[f32], width: usize, weight: f64, tokens: usize) -> Result<(Tensor, f64)> {
    let level = Level::best();
    let count = (tokens.max(1) * width) as f64;
    let factor = T::from_f64(2.0 * weight / count);
    let mut squares = vec![0.0; teacher.len() / width];
    let gradient = with_slice("hidden_mse_loss", hidden, |hidden: &[T]| {
        let rows = hidden.par_chunks(width).zip(teacher.par_chunks(width)).zip(squares.par_iter_mut()).with_min_len(16);
        filled_by_chunks(hidden.len(), width, rows, |gradient, ((hidden, teacher), square)| {
            *square = row(level, hidden, teacher, factor, gradient);
        })
    })?;
    let loss = squares.iter().sum::<f64>() / count;
    let gradients = hidden.track_op().then(|| Gradients { activation: gradient, parameters: Vec::new() });
    Ok((precomputed::<T>("hidden_mse_loss", hidden, weight * loss, gradients)?, loss))
}

levelled! {
    fn row<T>(hidden: &[T], teacher: &[f32], factor: T, gradient: &mut [T]) -> f64 {
        let width = gradient.len();
        let (hidden, teacher) = (&hidden[..width], &teacher[..width]);
        let square = lane_sum_of_two(hidden, teacher, |hidden, teacher| {
            let difference = hidden - T::from_f32(teacher);
            difference * difference
        });
        for i in 0..width {
            gradient[i] = factor * (hidden[i] - T::from_f32(teacher[i]));
        }
        square.to_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};
    use logitcache::oracle::hidden::hidden_squared_error;

    #[test]
    fn it_agrees_with_the_oracle_and_with_finite_differences() {
        for width in [1, 16, 37] {
            let hidden = random(1, &[6, width], 1.0);
            let teacher: Vec<f32> = numbers(&random(2, &[6, width], 1.0)).iter().map(|value| *value as f32).collect();
            let (scalar, loss) = hidden_mse_loss(&hidden, &teacher, 3.0, 10).unwrap();
            let exact: Vec<f64> = teacher.iter().map(|value| f64::from(*value)).collect();
            let rows = numbers(&hidden);
            let expected: f64 =
                rows.chunks(width).zip(exact.chunks(width)).map(|(s, t)| hidden_squared_error(s, t).loss).sum::<f64>() / 10.0;
            assert_close("loss", &[loss, numbers(&scalar)[0]], &[expected, 3.0 * expected], 1e-9, 1e-11);
            let run = |x: &[Tensor], _: &[_]| Ok(hidden_mse_loss(&x[0], &teacher, 3.0, 10)?.0);
            Proof { inputs: &[hidden], parameters: &[], run }.check();
        }
    }

    #[test]
    fn counts_are_checked() {
        let hidden = random(1, &[2, 4], 1.0);
        assert!(hidden_mse_loss(&hidden, &[1.0; 7], 1.0, 2).is_err());
        assert!(hidden_mse_loss(&hidden, &[1.0; 8], 1.0, 1).is_err());
    }
}
