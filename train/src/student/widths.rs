//! Which heads, neurons and hidden dimensions of a wider teacher a narrower student takes. Pure.
//!
//! **By order** the leading ones. **By importance** those of the largest measure, which stay in the teacher's order:
//!
//! | of | measure |
//! | --- | --- |
//! | a hidden dimension | the L2 norm of its column of the word embeddings, which is what the decoder reads too; of its row of the map from the embeddings, in an ALBERT |
//! | an embedding dimension of an ALBERT | the L2 norm of its column of the word embeddings |
//! | a head | the L2 norm of its columns of the attention's output projection |
//! | a dimension within a head | for values that of its column of the output projection; for queries and keys the product of its two rows' norms |
//! | a neuron of the feed-forward part | the product of the L2 norms of the weights into it and out of it |
//!
//! Hidden dimensions run through the whole model, so they are chosen once; heads, their dimensions and neurons are chosen for each layer.

use std::fmt;
use std::str::FromStr;

/// How a narrower student chooses from its teacher's widths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitWidths {
    /// The leading ones.
    #[default]
    Order,
    /// Those of the largest norms; the module's heading says of what.
    Importance,
}

impl InitWidths {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Order, Self::Importance];

    /// The name that the flag uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Importance => "importance",
        }
    }
}

impl fmt::Display for InitWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InitWidths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|widths| widths.name() == text);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Every place once, from the largest measure to the smallest; of equal ones the first comes first.
pub fn ranking(measures: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..measures.len()).collect();
    places.sort_by(|a, b| measures[*b].total_cmp(&measures[*a]));
    places
}

/// A number of places that the teacher has and how many of them the student takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width {
    pub(super) teacher: usize,
    pub(super) student: usize,
}

impl Width {
    pub(super) fn is_kept(self) -> bool {
        self.teacher == self.student
    }

    /// The places taken, ascending: those of the largest measures, or the leading ones where nothing is measured.
    pub(super) fn chosen(self, measures: Option<&[f64]>) -> Vec<usize> {
        let Some(measures) = measures else { return (0..self.student).collect() };
        let mut chosen = ranking(measures);
        chosen.truncate(self.student);
        chosen.sort_unstable();
        chosen
    }
}

/// The weights of a layer that its choices are made by: `[hidden, hidden]` the first three, `[between, hidden]` and `[hidden, between]`.
pub(super) struct LayerWeights {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) output: Vec<f32>,
    pub(super) widen: Vec<f32>,
    pub(super) narrow: Vec<f32>,
}

/// What a student takes of one teacher layer, ascending within each head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerChoice {
    /// Rows of the query and key projections.
    pub(super) query_key: Vec<usize>,
    /// Rows of the value projection and columns of the output projection.
    pub(super) value: Vec<usize>,
    /// Rows of the widening map and columns of the narrowing one.
    pub(super) neurons: Vec<usize>,
}

impl LayerChoice {
    /// The choice among `heads`, the numbers `within` each of them, and `neurons`: by the weights' measures, or the leading ones without.
    pub(super) fn new(heads: Width, within: Width, neurons: Width, weights: Option<&LayerWeights>) -> Self {
        let hidden = heads.teacher * within.teacher;
        let value_norms = weights.map(|weights| column_norms(&weights.output, hidden));
        let products = weights.map(|weights| product(row_norms(&weights.query, hidden), row_norms(&weights.key, hidden)));
        let head_norms: Option<Vec<f64>> =
            value_norms.as_ref().map(|norms| norms.chunks_exact(within.teacher).map(root_of_squares).collect());
        let of_neurons = weights.map(|weights| product(row_norms(&weights.widen, hidden), column_norms(&weights.narrow, neurons.teacher)));
        let (mut query_key, mut value) = (Vec::new(), Vec::new());
        for head in heads.chosen(head_norms.as_deref()) {
            let first = head * within.teacher;
            let in_head = |measures: &Option<Vec<f64>>| {
                let measures = measures.as_ref().map(|measures| &measures[first..first + within.teacher]);
                within.chosen(measures).into_iter().map(move |place| first + place)
            };
            query_key.extend(in_head(&products));
            value.extend(in_head(&value_norms));
        }
        Self { query_key, value, neurons: neurons.chosen(of_neurons.as_deref()) }
    }
}

fn product(a: Vec<f64>, b: Vec<f64>) -> Vec<f64> {
    a.into_iter().zip(b).map(|(a, b)| a * b).collect()
}

fn root_of_squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The L2 norm of each row of a row-major matrix.
pub(super) fn row_norms(values: &[f32], width: usize) -> Vec<f64> {
    values.chunks_exact(width).map(|row| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()).collect()
}

/// The L2 norm of each column of a row-major matrix.
pub(super) fn column_norms(values: &[f32], width: usize) -> Vec<f64> {
    let mut squares = vec![0.0; width];
    for row in values.chunks_exact(width) {
        squares.iter_mut().zip(row).for_each(|(square, value)| *square += f64::from(*value).powi(2));
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// The given rows and columns of a row-major matrix, in their order; `None` takes all.
pub(super) fn cut(values: &[f32], width: usize, rows: Option<&[usize]>, columns: Option<&[usize]>) -> Vec<f32> {
    let all: Vec<usize> = (0..values.len() / width).collect();
    let row = |row: &usize| &values[row * width..][..width];
    match columns {
        None => rows.unwrap_or(&all).iter().flat_map(|index| row(index).iter().copied()).collect(),
        Some(columns) => rows.unwrap_or(&all).iter().flat_map(|index| columns.iter().map(|column| row(index)[*column])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::seed::{Purpose, RandomStream};

    #[test]
    fn a_ranking_is_a_permutation_from_large_to_small() {
        let mut stream = RandomStream::new(1, Purpose::Initialisation, &[]);
        let measures: Vec<f64> = (0..50).map(|_| stream.below(20) as f64).collect();
        let ranked = ranking(&measures);
        let mut places = ranked.clone();
        places.sort_unstable();
        assert_eq!(places, (0..50).collect::<Vec<_>>());
        let in_order =
            |pair: &[usize]| (measures[pair[1]], pair[0]) < (measures[pair[0]], pair[1]) || measures[pair[0]] > measures[pair[1]];
        assert!(ranked.windows(2).all(in_order), "{ranked:?}");
    }

    #[test]
    fn choices_stay_in_the_teachers_order_and_all_is_the_identity() {
        let measures = [1.0, 5.0, 3.0, 4.0];
        let (some, all) = (Width { teacher: 4, student: 2 }, Width { teacher: 4, student: 4 });
        assert_eq!((some.chosen(Some(&measures)), some.chosen(None)), (vec![1, 3], vec![0, 1]));
        assert_eq!((all.chosen(Some(&measures)), all.chosen(None)), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
        for widths in InitWidths::ALL {
            assert_eq!(widths.to_string().parse(), Ok(widths));
        }
        assert!("size".parse::<InitWidths>().unwrap_err().contains("order, importance"));
    }

    /// 3 heads of 2, hidden 6, 4 neurons; all weights 0.1 but those that the student should find.
    #[test]
    fn importance_keeps_what_matters() {
        let (hidden, between) = (6, 4);
        let mut weights =
            LayerWeights { query: vec![0.1; 36], key: vec![0.1; 36], output: vec![0.1; 36], widen: vec![0.1; 24], narrow: vec![0.1; 24] };
        // Head 1 hardly reaches the output; of head 0 the first value, of head 2 the second does.
        for row in 0..hidden {
            [(0, 3.0), (2, 0.01), (3, 0.01), (5, 4.0)]
                .into_iter()
                .for_each(|(column, value)| weights.output[row * hidden + column] = value);
            // Neuron 0 is fed strongly but leads nowhere; neurons 1 and 3 do both.
            [(0, 0.0), (1, 2.0), (3, 2.0)].into_iter().for_each(|(column, value)| weights.narrow[row * between + column] = value);
        }
        weights.widen[..hidden].fill(9.0);
        // Queries and keys meet in the second number of head 0 and in the first of head 2.
        for row in [1, 4] {
            weights.query[row * hidden..][..hidden].fill(2.0);
            weights.key[row * hidden..][..hidden].fill(2.0);
        }
        let width = |teacher, student| Width { teacher, student };
        let (heads, within, neurons) = (width(3, 2), width(2, 1), width(4, 2));
        let chosen = LayerChoice::new(heads, within, neurons, Some(&weights));
        assert_eq!(chosen, LayerChoice { query_key: vec![1, 4], value: vec![0, 5], neurons: vec![1, 3] });
        let leading = LayerChoice::new(heads, within, neurons, None);
        assert_eq!(leading, LayerChoice { query_key: vec![0, 2], value: vec![0, 2], neurons: vec![0, 1] });
    }

    #[test]
    fn rows_and_columns_are_cut() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(cut(&values, 4, Some(&[2, 0]), Some(&[1, 3])), [9.0, 11.0, 1.0, 3.0]);
        assert_eq!(cut(&values, 4, None, None), values);
        assert_eq!(cut(&values, 1, Some(&[3]), None), [3.0]);
        assert_eq!(column_norms(&[3.0, 0.0, 4.0, 1.0], 2), [5.0, 1.0]);
        assert_eq!(row_norms(&[3.0, 4.0, 0.0, 1.0], 2), [5.0, 1.0]);
    }
}
