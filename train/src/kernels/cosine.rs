//! 1 - cos against the teacher's last hidden state, over all rows of a batch.

use super::element::Element;
use super::level::{Level, lane_sum, lane_sum_of_two};
use super::precomputed::{Gradients, precomputed};
use super::storage::{failure, filled_by_chunks, for_dtype, rows_and_width, with_slice};
use crate::loss::cosine::Cosine;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// The sum over the rows of `hidden` `[rows, width]` of 1 - cos with the same row of `teacher` `[rows, width]`, divided by `tokens`, the rows
/// of the whole step. Gives the scalar tensor, times `weight`, and the number itself, without.
pub fn cosine_loss(hidden: &Tensor, teacher: &[f32], weight: f64, tokens: usize) -> Result<(Tensor, f64)> {
    let (rows, width) = rows_and_width("cosine_loss", hidden)?;
    if teacher.len() != rows * width {
        return Err(failure("cosine_loss", format!("{} teacher numbers for {rows} rows of {width}", teacher.len())));
    }
    if tokens < rows {
        return Err(failure("cosine_loss", format!("{rows} rows of a step of {tokens} tokens")));
    }
    for_dtype!("cosine_loss", hidden.dtype(), T => run::<T>(hidden, teacher, width, weight, tokens))
}

fn run<T: Element>(hidden: &Tensor, teacher: &[f32], width: usize, weight: f64, tokens: usize) -> Result<(Tensor, f64)> {
    let level = Level::best();
    let factor = -weight / tokens.max(1) as f64;
    let mut cosines = vec![0.0; teacher.len() / width];
    let gradient = with_slice("cosine_loss", hidden, |hidden: &[T]| {
        let rows = hidden.par_chunks(width).zip(teacher.par_chunks(width)).zip(cosines.par_iter_mut()).with_min_len(16);
        filled_by_chunks(hidden.len(), width, rows, |gradient, ((hidden, teacher), cosine)| {
            *cosine = row(level, hidden, teacher, factor, gradient);
        })
    })?;
    let loss = cosines.iter().map(|cosine| 1.0 - cosine).sum::<f64>() / tokens.max(1) as f64;
    let gradients = hidden.track_op().then(|| Gradients { activation: gradient, parameters: Vec::new() });
    Ok((precomputed::<T>("cosine_loss", hidden, weight * loss, gradients)?, loss))
}

levelled! {
    fn row<T>(hidden: &[T], teacher: &[f32], factor: f64, gradient: &mut [T]) -> f64 {
        let width = gradient.len();
        let (hidden, teacher) = (&hidden[..width], &teacher[..width]);
        let both = lane_sum_of_two(hidden, teacher, |hidden, teacher| hidden * T::from_f32(teacher));
        let student = lane_sum(hidden, |hidden| hidden * hidden);
        let teacher_length = lane_sum(teacher, |teacher| T::from_f32(teacher) * T::from_f32(teacher));
        let cosine = Cosine::new(both.to_f64(), student.to_f64(), teacher_length.to_f64());
        let (of_teacher, of_student) = (T::from_f64(factor * cosine.of_teacher), T::from_f64(factor * cosine.of_student));
        for i in 0..width {
            gradient[i] = of_teacher * T::from_f32(teacher[i]) - of_student * hidden[i];
        }
        cosine.cosine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};
    use logitcache::oracle;

    #[test]
    fn it_agrees_with_the_oracle_and_with_finite_differences() {
        for width in [1, 16, 37] {
            let hidden = random(1, &[6, width], 1.0);
            let teacher: Vec<f32> = numbers(&random(2, &[6, width], 1.0)).iter().map(|value| *value as f32).collect();
            let (scalar, loss) = cosine_loss(&hidden, &teacher, 3.0, 10).unwrap();
            let exact: Vec<f64> = teacher.iter().map(|value| f64::from(*value)).collect();
            let rows = numbers(&hidden);
            let expected: f64 =
                rows.chunks(width).zip(exact.chunks(width)).map(|(s, t)| oracle::cosine_distance(s, t).loss).sum::<f64>() / 10.0;
            assert_close("loss", &[loss, numbers(&scalar)[0]], &[expected, 3.0 * expected], 1e-9, 1e-11);
            if width > 1 {
                let run = |x: &[Tensor], _: &[_]| Ok(cosine_loss(&x[0], &teacher, 3.0, 10)?.0);
                Proof { inputs: &[hidden], parameters: &[], run }.check();
            }
        }
    }

    #[test]
    fn a_state_of_zeros_stays_finite() {
        let zeros = candle_core::Var::zeros((2, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let (scalar, loss) = cosine_loss(&zeros, &[1.0; 8], 1.0, 2).unwrap();
        assert_eq!(loss, 1.0);
        let gradients = scalar.backward().unwrap();
        assert!(numbers(gradients.get(&zeros).unwrap()).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn counts_are_checked() {
        let hidden = random(1, &[2, 4], 1.0);
        assert!(cosine_loss(&hidden, &[1.0; 7], 1.0, 2).is_err());
        assert!(cosine_loss(&hidden, &[1.0; 8], 1.0, 1).is_err());
    }
}
