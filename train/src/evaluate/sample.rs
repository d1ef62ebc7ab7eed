//! A bounded share of what streams by, which depends on the sequences alone: not on their order, nor on how they are batched.

use logitcache::seed::{Purpose, RandomStream};
use std::collections::BTreeMap;

/// The entries with the smallest draws, each sequence having its own.
#[derive(Clone, Debug)]
pub struct Sample<T> {
    most: usize,
    kept: BTreeMap<(u64, u64, u16), T>,
}

impl<T> Sample<T> {
    /// Nothing yet; of more than `most` entries a sample stays, each as likely as the others.
    pub fn new(most: usize) -> Self {
        Self { most, kept: BTreeMap::new() }
    }

    /// Adds what belongs to a sequence, once; `entry` is asked for it only where it stays for now.
    pub fn add(&mut self, sequence_id: u64, pass: u16, entry: impl FnOnce() -> T) {
        let draw = RandomStream::new(0, Purpose::Sampling, &[sequence_id, u64::from(pass)]).next_u64();
        let key = (draw, sequence_id, pass);
        if self.kept.len() >= self.most {
            if self.kept.last_key_value().is_none_or(|(last, _)| key >= *last) {
                return;
            }
            self.kept.pop_last();
        }
        self.kept.insert(key, entry());
    }

    /// What stayed, in the order of the sequences.
    pub fn finish(self) -> Vec<T> {
        let mut kept: Vec<_> = self.kept.into_iter().collect();
        kept.sort_by_key(|((_, sequence_id, pass), _)| (*pass, *sequence_id));
        kept.into_iter().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_same_in_any_order_and_spread_over_all() {
        let drawn = |ids: Vec<u64>| {
            let mut sample = Sample::new(100);
            ids.into_iter().for_each(|id| sample.add(id, 0, || id));
            sample.finish()
        };
        let found = drawn((0..1000).collect());
        assert_eq!((found.len(), &found), (100, &drawn((0..1000).rev().collect())));
        assert!(found.is_sorted() && found[10] > 20 && found[90] > 700, "{found:?}");
        assert_eq!(drawn((0..7).rev().collect()), [0, 1, 2, 3, 4, 5, 6]);
    }
}
