//! A tile of logits, all rows by some neighbouring ids: sums on the way in, slopes on the way out.
//!
//! A tile's exponentials are relative to the largest logit that its row has in the tile, so that a tile needs no other; what a row's tiles
//! found is put together by [`joined`].

use super::element::Element;
use super::head_row::{RowObjective, RowSlopes, RowSums};
use super::level::{LANES, lane_sum};

/// What a row has in a tile, with m the largest logit there; see [`RowSums`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TileSums<T> {
    largest: T,
    outside: T,
    all: T,
    tempered: T,
    /// How many ids of the tile are not stored.
    others: usize,
}

/// A stored id and its place among the row's.
pub(crate) type StoredId = (u32, u32);

/// The smallest exponent that counts: `Element::exp` in single precision goes no lower either.
const LOWEST: f64 = -87.0;

/// The largest coefficient of an exponential: it stays finite in single precision.
const LARGEST_COEFFICIENT: f64 = 1e38;

levelled! {
    /// One row of a tile whose ids begin at `first`, still without the bias (empty where there is none). Afterwards the stored ids hold their
    /// logits with the bias, and so do the others of a row with a label or without any tempered part; else the others hold their exponentials.
    pub(crate) fn sum_row<T>(
        row: &mut [T], bias: &[T], stored: &[StoredId], first: usize, labelled: bool, objective: &RowObjective, kept: &mut Vec<T>,
    ) -> TileSums<T> {
        let inverse_temperature = T::from_f64(objective.inverse_temperature);
        let largest = add_bias(row, bias);
        let mut sums = TileSums { largest, others: row.len() - stored.len(), ..TileSums::default() };
        if labelled {
            sums.all = lane_sum(row, |logit| (logit - largest).exp());
        }
        if !objective.is_tempered() {
            return sums;
        }
        kept.clear();
        kept.extend(stored.iter().map(|(id, _)| row[*id as usize - first]));
        if objective.sums_tempered() {
            stored.iter().for_each(|(id, _)| row[*id as usize - first] = largest);
            sums.tempered = lane_sum(row, |logit| (logit - largest) * inverse_temperature);
        }
        // The stored ids are set aside, so that the sum over the others is a sum and not a difference.
        stored.iter().for_each(|(id, _)| row[*id as usize - first] = T::NEGATIVE_INFINITY);
        sums.outside = match labelled {
            true => lane_sum(row, |logit| ((logit - largest) * inverse_temperature).exp()),
            false => exponentials(row, largest, inverse_temperature),
        };
        stored.iter().zip(kept.iter()).for_each(|((id, _), logit)| row[*id as usize - first] = *logit);
        sums
    }
}

/// Adds the bias, if there is one, and gives the largest logit. Whole lanes stand apart from the rest: a loop of a known length vectorises.
#[inline(always)]
fn add_bias<T: Element>(logits: &mut [T], bias: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut largest = [T::NEGATIVE_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks_mut::<LANES>();
    let (biases, last_biases) = bias.as_chunks::<LANES>();
    if bias.is_empty() {
        chunks.iter().for_each(|chunk| (0..LANES).for_each(|lane| largest[lane] = larger(largest[lane], chunk[lane])));
        largest.iter_mut().zip(rest.iter()).for_each(|(largest, logit)| *largest = larger(*largest, *logit));
    } else {
        for (chunk, bias) in chunks.iter_mut().zip(biases) {
            for lane in 0..LANES {
                chunk[lane] += bias[lane];
                largest[lane] = larger(largest[lane], chunk[lane]);
            }
        }
        for ((largest, logit), bias) in largest.iter_mut().zip(rest).zip(last_biases) {
            *logit += *bias;
            *largest = larger(*largest, *logit);
        }
    }
    largest.iter().fold(T::NEGATIVE_INFINITY, |a, b| larger(a, *b))
}

/// exp(factor (x - shift)) in place, and the sum.
#[inline(always)]
fn exponentials<T: Element>(values: &mut [T], shift: T, factor: T) -> T {
    let mut sums = [T::zero(); LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = ((chunk[lane] - shift) * factor).exp();
            sums[lane] += chunk[lane];
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *value = ((*value - shift) * factor).exp();
        *sum += *value;
    }
    sums.iter().fold(T::zero(), |a, b| a + *b)
}

/// A row's sums from those of its tiles, in order.
pub(crate) fn joined<T: Element>(tiles: impl Iterator<Item = TileSums<T>> + Clone, objective: &RowObjective) -> RowSums<T> {
    let largest = tiles.clone().fold(T::NEGATIVE_INFINITY, |largest, tile| if tile.largest > largest { tile.largest } else { largest });
    let mut sums = RowSums { largest, outside: 0.0, all: 0.0, tempered: 0.0 };
    for tile in tiles {
        let below = (tile.largest - largest).to_f64();
        let tempered = below * objective.inverse_temperature;
        sums.outside += tile.outside.to_f64() * tempered.max(LOWEST).exp();
        sums.all += tile.all.to_f64() * below.max(LOWEST).exp();
        sums.tempered += tile.tempered.to_f64() + tile.others as f64 * tempered;
    }
    sums
}

levelled! {
    /// What [`sum_row`] left of a row of a tile becomes the gradient, and is added to `sums`, the bias's. `of_stored` has the slopes of all of
    /// the row's stored ids, `stored` those of the tile.
    pub(crate) fn slope_row<T>(
        row: &mut [T], tile: TileSums<T>, stored: &[StoredId], of_stored: &[T], first: usize, slopes: RowSlopes<T>, objective: &RowObjective,
        sums: &mut [T],
    ) {
        let inverse_temperature = T::from_f64(objective.inverse_temperature);
        let below = (tile.largest - slopes.largest).to_f64();
        let coefficient = |slope: f64, exponent: f64| {
            T::from_f64((slope * exponent.max(LOWEST).exp()).clamp(-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT))
        };
        let of_tempered = coefficient(slopes.of_tempered, below * objective.inverse_temperature);
        let constant = T::from_f64(slopes.constant);
        match slopes.label {
            None => row.iter_mut().for_each(|exponential| *exponential = of_tempered * *exponential + constant),
            Some(_) => {
                let of_label = coefficient(slopes.of_label, below);
                if objective.is_tempered() {
                    row.iter_mut().for_each(|logit| {
                        let relative = *logit - tile.largest;
                        *logit = of_tempered * (relative * inverse_temperature).exp() + constant + of_label * relative.exp();
                    });
                } else {
                    row.iter_mut().for_each(|logit| *logit = of_label * (*logit - tile.largest).exp());
                }
            }
        }
        stored.iter().for_each(|(id, place)| row[*id as usize - first] = of_stored[*place as usize]);
        if let Some(label) = slopes.label.and_then(|label| label.checked_sub(first)).filter(|label| *label < row.len()) {
            row[label] -= T::from_f64(objective.label);
        }
        sums.iter_mut().zip(row.iter()).for_each(|(sum, slope)| *sum += *slope);
    }
}
