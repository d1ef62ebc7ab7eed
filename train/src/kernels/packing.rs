//! Which rows belong to which sequence.

use super::storage::failure;
use candle_core::Result;
use std::ops::Range;
use std::sync::Arc;

/// The layout of a packed batch: the rows of several sequences end to end, without padding. Shared by the operations that look across rows
/// (attention), count within a sequence (positions) or draw per sequence (dropout).
#[derive(Debug, PartialEq, Eq)]
pub struct Packing {
    offsets: Vec<usize>,
    sequence_ids: Vec<u64>,
    passes: Vec<u16>,
}

impl Packing {
    /// `offsets` `[sequences + 1]` start at 0 and rise: sequence `i` owns rows `offsets[i]..offsets[i + 1]`. `sequence_ids` and `passes`
    /// `[sequences]` name the sequences for the dropout streams.
    pub fn new(offsets: &[usize], sequence_ids: &[u64], passes: &[u16]) -> Result<Arc<Self>> {
        if offsets.first() != Some(&0) || !offsets.is_sorted_by(|a, b| a < b) {
            return Err(failure("packing", format!("offsets must start at 0 and rise, found {offsets:?}")));
        }
        let sequences = offsets.len() - 1;
        if sequence_ids.len() != sequences || passes.len() != sequences {
            let found = format!("{} ids and {} passes for {sequences} sequences", sequence_ids.len(), passes.len());
            return Err(failure("packing", found));
        }
        Ok(Arc::new(Self { offsets: offsets.to_vec(), sequence_ids: sequence_ids.to_vec(), passes: passes.to_vec() }))
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.offsets[self.sequences()]
    }

    /// Sequences of the batch.
    pub fn sequences(&self) -> usize {
        self.sequence_ids.len()
    }

    /// The rows of sequence `i`.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }

    /// The id and the pass of sequence `i`.
    pub fn identity(&self, i: usize) -> (u64, u16) {
        (self.sequence_ids[i], self.passes[i])
    }

    /// Rows of the longest sequence.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// Cuts a buffer of `width` numbers per row into the sequences' own parts, in order.
    pub(crate) fn split<'a, T>(&self, mut buffer: &'a mut [T], width: usize) -> Vec<&'a mut [T]> {
        let mut parts = Vec::with_capacity(self.sequences());
        for i in 0..self.sequences() {
            let (part, rest) = buffer.split_at_mut(self.range(i).len() * width);
            parts.push(part);
            buffer = rest;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_by_sequence() {
        let packing = Packing::new(&[0, 2, 3, 6], &[7, 8, 9], &[0, 0, 1]).unwrap();
        assert_eq!((packing.rows(), packing.sequences(), packing.longest()), (6, 3, 3));
        assert_eq!(packing.range(2), 3..6);
        assert_eq!(packing.identity(2), (9, 1));
        let mut buffer: Vec<u32> = (0..12).collect();
        let lengths: Vec<Vec<u32>> = packing.split(&mut buffer, 2).into_iter().map(|part| part.to_vec()).collect();
        assert_eq!(lengths, [vec![0, 1, 2, 3], vec![4, 5], vec![6, 7, 8, 9, 10, 11]]);
    }

    #[test]
    fn broken_offsets_are_refused() {
        assert!(Packing::new(&[], &[], &[]).is_err());
        assert!(Packing::new(&[1, 2], &[0], &[0]).is_err());
        assert!(Packing::new(&[0, 2, 2], &[0, 1], &[0, 0]).is_err());
        assert!(Packing::new(&[0, 2], &[0, 1], &[0]).is_err());
    }
}
