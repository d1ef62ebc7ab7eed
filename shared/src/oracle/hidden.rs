//! Losses of hidden states beside the cosine.

use super::LossAndGradient;

/// The mean over `hidden_size` of (s - t)^2 of two hidden states `[hidden_size]`; d / ds_j = 2 (s_j - t_j) / hidden_size.
pub fn hidden_squared_error(student: &[f64], teacher: &[f64]) -> LossAndGradient {
    let width = student.len() as f64;
    let differences: Vec<f64> = student.iter().zip(teacher).map(|(s, t)| s - t).collect();
    LossAndGradient {
        loss: differences.iter().map(|difference| difference * difference).sum::<f64>() / width,
        gradient: differences.iter().map(|difference| 2.0 * difference / width).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_right_by_hand() {
        let found = hidden_squared_error(&[1.0, 5.0], &[2.0, 2.0]);
        assert_eq!((found.loss, found.gradient), (5.0, vec![-1.0, 3.0]));
    }
}
