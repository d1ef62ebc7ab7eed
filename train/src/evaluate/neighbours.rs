//! Cosines between vectors, and whether two models find the same nearest neighbours among the same texts. Pure.

use rayon::prelude::*;

/// Neighbours that are compared.
pub const NEIGHBOURS: usize = 10;

/// The cosine of two vectors of one width; 0 where one of them is 0.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { product(a, b) / lengths } else { 0.0 }
}

/// Vectors of length 1, or 0 where they were.
fn units<'a>(vectors: impl Iterator<Item = &'a [f32]>) -> Vec<Vec<f64>> {
    let unit = |vector: &[f32]| {
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        vector.iter().map(|value| if length > 0.0 { f64::from(*value) / length } else { 0.0 }).collect()
    };
    vectors.map(unit).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What two models say of the likeness of the same texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likeness {
    /// Mean share of the teacher's [`NEIGHBOURS`] nearest that are among as many nearest of the student; of all others where there are fewer.
    pub recall: Option<f64>,
    /// The cosine of each pair of texts: the student's and the teacher's.
    pub cosines: Vec<(f64, f64)>,
}

/// Of texts by the vectors of (student, teacher), each model's of one width. Of equally near neighbours the earlier one is the nearer.
pub fn likeness(vectors: &[(Vec<f32>, Vec<f32>)]) -> Likeness {
    let student = units(vectors.iter().map(|both| both.0.as_slice()));
    let teacher = units(vectors.iter().map(|both| both.1.as_slice()));
    let count = vectors.len();
    if count < 2 {
        return Likeness::default();
    }
    let nearest = NEIGHBOURS.min(count - 1);
    let rows: Vec<(usize, Vec<(f64, f64)>)> = (0..count)
        .into_par_iter()
        .map(|text| {
            let cosines: Vec<(f64, f64)> =
                (0..count).map(|other| (dot(&student[text], &student[other]), dot(&teacher[text], &teacher[other]))).collect();
            let best = |of: fn(&(f64, f64)) -> f64| {
                let mut others: Vec<usize> = (0..count).filter(|other| *other != text).collect();
                others.sort_by(|a, b| of(&cosines[*b]).total_cmp(&of(&cosines[*a])));
                others.truncate(nearest);
                others
            };
            let (student, teacher) = (best(|both| both.0), best(|both| both.1));
            let shared = teacher.iter().filter(|other| student.contains(other)).count();
            (shared, cosines[text + 1..].to_vec())
        })
        .collect();
    let shared: usize = rows.iter().map(|row| row.0).sum();
    Likeness { recall: Some(shared as f64 / (nearest * count) as f64), cosines: rows.into_iter().flat_map(|row| row.1).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::correlation::spearman;
    use crate::evaluate::golden::golden;

    #[derive(serde::Deserialize)]
    struct Retrieval {
        student: Vec<Vec<f32>>,
        teacher: Vec<Vec<f32>>,
        recall_at_10: f64,
        spearman: f64,
    }

    #[test]
    fn neighbours_are_those_of_scikit_learn() {
        for case in golden::<Retrieval>("retrieval") {
            let vectors: Vec<_> = case.student.into_iter().zip(case.teacher).collect();
            let found = likeness(&vectors);
            assert!((found.recall.unwrap() - case.recall_at_10).abs() < 1e-11, "{found:?}");
            assert!((spearman(&found.cosines).unwrap() - case.spearman).abs() < 1e-5, "of inputs in single precision");
            assert!((cosine(&vectors[0].0, &vectors[1].0) - found.cosines[0].0).abs() < 1e-12);
        }
    }

    #[test]
    fn few_texts_are_compared_as_far_as_they_go() {
        let vectors = |texts: &[f32]| texts.iter().map(|x| (vec![*x, 1.0], vec![*x, 1.0])).collect::<Vec<_>>();
        assert_eq!(likeness(&vectors(&[1.0])), Likeness::default());
        assert_eq!(likeness(&vectors(&[1.0, 2.0, 3.0])).recall, Some(1.0));
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
