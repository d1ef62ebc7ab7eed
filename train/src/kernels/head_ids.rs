//! A vocabulary cut down to the ids that some rows are taught: what they store, and what they answer with.
//!
//! Few ids of a large vocabulary are among the k most probable ones of any of a batch's rows (4,126 of 32,000 for 901 rows of k = 64 in children's
//! stories). A step that counts these alone has smaller products with the decoder; what it leaves out is the student's mass on all others,
//! which nothing in the step then holds down. Under its loss the student's distribution is the one over the ids that are counted.

use super::element::Element;
use super::head_loss::HeadTargets;
use rayon::prelude::*;

/// The ids that count, and targets that name them by their places.
pub(super) struct FewIds {
    /// Ascending.
    ids: Vec<u32>,
    /// `[rows, k]`.
    top_ids: Vec<u32>,
    /// `[rows]`.
    labels: Vec<i32>,
}

impl FewIds {
    /// Of targets that are within the vocabulary. None where so many ids count that the whole vocabulary costs little more, or where every row
    /// stores all of them.
    pub(super) fn of(targets: &HeadTargets<'_>, vocabulary: usize) -> Option<Self> {
        let answers = targets.labels.iter().filter_map(|label| u32::try_from(*label).ok());
        let mut places: Vec<Option<u32>> = vec![None; vocabulary];
        targets.top_ids.iter().copied().chain(answers).for_each(|id| places[id as usize] = Some(0));
        let ids: Vec<u32> = (0..).zip(&places).filter(|(_, place)| place.is_some()).map(|(id, _)| id).collect();
        if ids.len() <= targets.k || ids.len() * 4 > vocabulary * 3 {
            return None;
        }
        (0..).zip(&ids).for_each(|(place, id)| places[*id as usize] = Some(place));
        let place = |id: u32| places[id as usize].unwrap_or_default();
        let top_ids = targets.top_ids.iter().map(|id| place(*id)).collect();
        let labels = targets.labels.iter().map(|label| u32::try_from(*label).map_or(*label, |id| place(id) as i32)).collect();
        Some(Self { ids, top_ids, labels })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.ids.len()
    }

    /// The targets by places.
    pub(super) fn targets<'a>(&'a self, targets: &HeadTargets<'a>) -> HeadTargets<'a> {
        HeadTargets { top_ids: &self.top_ids, labels: &self.labels, ..*targets }
    }

    /// Their rows of `values` `[vocabulary, width]`.
    pub(super) fn gather<T: Element>(&self, values: &[T], width: usize) -> Vec<T> {
        let mut taken = vec![T::zero(); self.ids.len() * width];
        taken.par_chunks_mut(width).zip(&self.ids).with_min_len(64).for_each(|(row, id)| {
            row.copy_from_slice(&values[*id as usize * width..][..width]);
        });
        taken
    }

    /// `all` `[vocabulary, width]` becomes `rows` at their ids and 0 elsewhere.
    pub(super) fn scatter<T: Element>(&self, rows: &[T], width: usize, all: &mut [T]) {
        all.par_chunks_mut(1 << 16).for_each(|piece| piece.fill(T::zero()));
        for (row, id) in rows.chunks_exact(width).zip(&self.ids) {
            all[*id as usize * width..][..width].copy_from_slice(row);
        }
    }
}
