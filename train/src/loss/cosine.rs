//! 1 - cos between the student's and the teacher's hidden state of a token.

/// Added to both squared lengths, as PyTorch's `cosine_embedding_loss` does; a state of zeros then gives 1 and not a NaN.
pub const EPSILON: f64 = 1e-12;

/// The cosine and the two factors of its gradient: d cos / d x = `of_teacher` * y - `of_student` * x, for x the student's state and y the
/// teacher's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    /// x y / sqrt((x x + epsilon) (y y + epsilon)).
    pub cosine: f64,
    /// The factor of the teacher's state.
    pub of_teacher: f64,
    /// The factor of the student's state.
    pub of_student: f64,
}

impl Cosine {
    /// From the three inner products.
    pub fn new(student_teacher: f64, student_student: f64, teacher_teacher: f64) -> Self {
        let (student, teacher) = (student_student + EPSILON, teacher_teacher + EPSILON);
        let of_teacher = 1.0 / (student * teacher).sqrt();
        let cosine = student_teacher * of_teacher;
        Self { cosine, of_teacher, of_student: cosine / student }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(x: [f64; 3], y: [f64; 3]) -> Cosine {
        let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        Cosine::new(dot(x, y), dot(x, x), dot(y, y))
    }

    #[test]
    fn parallel_orthogonal_opposite_and_zero_states() {
        assert!((cosine([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).cosine - 1.0).abs() < 1e-12);
        assert_eq!(cosine([1.0, 0.0, 0.0], [0.0, 5.0, 0.0]).cosine, 0.0);
        assert!((cosine([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]).cosine + 1.0).abs() < 1e-12);
        assert_eq!(cosine([0.0; 3], [1.0, 2.0, 3.0]).cosine, 0.0);
    }

    #[test]
    fn the_factors_are_the_slope() {
        let (x, y) = ([0.3, -1.0, 0.7], [1.0, 0.4, 2.0]);
        let at = cosine(x, y);
        for j in 0..3 {
            let moved = |step: f64| {
                let mut x = x;
                x[j] += step;
                cosine(x, y).cosine
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((slope - (at.of_teacher * y[j] - at.of_student * x[j])).abs() < 1e-9);
        }
    }
}
