//! Rows of a cache in a seeded order, and the thread that reads ahead.
//!
//! An epoch visits every row group of every shard once, in an order drawn from (seed, epoch). The rows of a group enter a buffer that
//! holds at most [`BUFFER_TOKENS`] tokens beyond one row group; each step takes a random row out of it. So memory depends on the buffer
//! and on one row group, not on the cache, and the order depends on nothing but the seed, the epoch and the cache. A position in the
//! order is a count of rows taken.

use logitcache::cache::reader::{Cache, Projection, ShardReader};
use logitcache::cache::record::Record;
use logitcache::error::Result;
use logitcache::seed::{Purpose, RandomStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Tokens that the shuffle buffer may hold before it gives rows back: 16 micro-batches of the default size.
pub const BUFFER_TOKENS: usize = 32_768;

/// Which rows of a cache are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Selection {
    /// Every row.
    All,
    /// The share of the documents that training never sees, with all their sequences.
    HeldOut(f64),
    /// The rest.
    NotHeldOut(f64),
}

impl Selection {
    /// Whether the rows of a document belong; the same in every pass, for every seed, and in every cache that numbers documents alike.
    pub fn holds(self, document_id: u64) -> bool {
        let below = |share: f64| RandomStream::new(0, Purpose::HoldingOut, &[document_id]).uniform() < share;
        match self {
            Self::All => true,
            Self::HeldOut(share) => below(share),
            Self::NotHeldOut(share) => !below(share),
        }
    }
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As stored.
    Stored,
    /// Shuffled, each epoch in its own way.
    Shuffled {
        /// The run's seed.
        seed: u64,
        /// The epoch, from 0.
        epoch: u64,
    },
}

/// A bounded buffer that gives rows back in random order.
struct ShuffleBuffer {
    rows: Vec<Record>,
    tokens: usize,
    draws: RandomStream,
}

impl ShuffleBuffer {
    fn push(&mut self, row: Record) {
        self.tokens += row.input_ids.len();
        self.rows.push(row);
    }

    fn pop(&mut self) -> Option<Record> {
        if self.rows.is_empty() {
            return None;
        }
        let row = self.rows.swap_remove(self.draws.below(self.rows.len()));
        self.tokens -= row.input_ids.len();
        Some(row)
    }
}

/// A row group's place: shard, group.
type Place = (usize, usize);

/// The rows of one epoch, read when asked for. Ends after the first error.
pub struct RowStream {
    cache: Cache,
    projection: Projection,
    selection: Selection,
    places: std::vec::IntoIter<Place>,
    open: Option<(usize, ShardReader)>,
    stored: std::vec::IntoIter<Record>,
    shuffled: Option<ShuffleBuffer>,
}

impl RowStream {
    /// The selected rows of `cache` in `order`; `hidden_layers` are decoded, and with none the hidden files stay closed.
    ///
    /// # Errors
    /// A shard whose footer cannot be read.
    pub fn new(cache: &Cache, hidden_layers: &[u32], selection: Selection, order: Order) -> Result<Self> {
        let mut places = Vec::new();
        for shard in 0..cache.shards() {
            // Footers alone: a file is hashed when its first row group is read, not before the first batch.
            places.extend((0..cache.row_groups(shard)?).map(|group| (shard, group)));
        }
        let shuffled = match order {
            Order::Stored => None,
            Order::Shuffled { seed, epoch } => {
                RandomStream::new(seed, Purpose::Shuffling, &[epoch, 0]).shuffle(&mut places);
                let draws = RandomStream::new(seed, Purpose::Shuffling, &[epoch, 1]);
                Some(ShuffleBuffer { rows: Vec::new(), tokens: 0, draws })
            }
        };
        Ok(Self {
            cache: cache.clone(),
            projection: Projection { hidden_layers: hidden_layers.to_vec() },
            selection,
            places: places.into_iter(),
            open: None,
            stored: Vec::new().into_iter(),
            shuffled,
        })
    }

    /// The selected rows of the next row group; nothing after the last.
    fn next_group(&mut self) -> Result<Option<Vec<Record>>> {
        let Some((shard, group)) = self.places.next() else { return Ok(None) };
        let reader = match self.open.take() {
            Some((open, reader)) if open == shard => reader,
            _ => self.cache.shard(shard)?,
        };
        let mut rows = reader.read(group, &self.projection)?;
        self.open = Some((shard, reader));
        rows.retain(|row| self.selection.holds(row.document_id));
        Ok(Some(rows))
    }

    fn next_row(&mut self) -> Result<Option<Record>> {
        if self.shuffled.is_none() {
            loop {
                if let Some(row) = self.stored.next() {
                    return Ok(Some(row));
                }
                let Some(rows) = self.next_group()? else { return Ok(None) };
                self.stored = rows.into_iter();
            }
        }
        while self.shuffled.as_ref().is_some_and(|buffer| buffer.tokens < BUFFER_TOKENS) {
            let Some(rows) = self.next_group()? else { break };
            if let Some(buffer) = &mut self.shuffled {
                rows.into_iter().for_each(|row| buffer.push(row));
            }
        }
        Ok(self.shuffled.as_mut().and_then(ShuffleBuffer::pop))
    }
}

impl Iterator for RowStream {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.next_row().transpose();
        if matches!(row, Some(Err(_))) {
            self.places = Vec::new().into_iter();
            self.stored = Vec::new().into_iter();
            self.shuffled = None;
        }
        row
    }
}

/// An iterator that runs on a thread of its own, one item ahead of the reader.
///
/// Three items exist at most: the reader's, the one that waits (the channel holds one), and the one being made.
pub struct Prefetch<T> {
    receiver: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `items` on a thread; dropping the result stops it after the item being made.
    pub fn new(items: impl Iterator<Item = T> + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            for item in items {
                if sender.send(item).is_err() {
                    return;
                }
            }
        });
        Self { receiver: Some(receiver), thread: Some(thread) }
    }
}

impl<T> Prefetch<T> {
    fn join(&mut self) {
        self.receiver = None;
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let item = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        if item.is_none() {
            self.join();
        }
        item
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_cache::SmallCache;
    use std::collections::BTreeSet;

    fn cache(directory: &tempfile::TempDir, passes: u16) -> Cache {
        Cache::open(&SmallCache { passes, ..SmallCache::default() }.write(directory.path(), "cache")).unwrap()
    }

    /// (sequence, pass) of every row, in order.
    fn rows(cache: &Cache, selection: Selection, order: Order) -> Vec<(u64, u16)> {
        let rows = RowStream::new(cache, &[], selection, order).unwrap();
        rows.map(|row| row.map(|row| (row.sequence_id, row.pass)).unwrap()).collect()
    }

    #[test]
    fn an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory, 2);
        let stored = rows(&cache, Selection::All, Order::Stored);
        assert_eq!(stored.len(), 200);
        assert!(stored.is_sorted_by_key(|(sequence, pass)| (*pass, *sequence)));
        let shuffled = |seed, epoch| rows(&cache, Selection::All, Order::Shuffled { seed, epoch });
        let first = shuffled(0, 0);
        assert_eq!(first, shuffled(0, 0), "the same name gives the same order");
        assert_ne!(first, shuffled(0, 1));
        assert_ne!(first, shuffled(1, 0));
        for mut order in [first, shuffled(0, 1), shuffled(1, 0)] {
            assert_ne!(order, stored);
            order.sort_by_key(|(sequence, pass)| (*pass, *sequence));
            assert_eq!(order, stored, "every row once");
        }
    }

    #[test]
    fn what_is_held_out_is_never_trained_on_in_any_pass() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory, 2);
        let order = Order::Shuffled { seed: 5, epoch: 3 };
        let held_out = rows(&cache, Selection::HeldOut(0.2), order);
        let trained = rows(&cache, Selection::NotHeldOut(0.2), order);
        assert_eq!(held_out.len() + trained.len(), 200);
        let sequences = |rows: &[(u64, u16)]| rows.iter().map(|row| row.0).collect::<BTreeSet<_>>();
        assert!(sequences(&held_out).is_disjoint(&sequences(&trained)));
        assert_eq!(held_out.len(), 2 * sequences(&held_out).len(), "in both passes");
        assert!((10..=60).contains(&held_out.len()), "{} of 200 rows for a share of 0.2", held_out.len());
    }

    #[test]
    fn hidden_states_are_read_only_where_asked() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory, 1);
        let first = |layers: &[u32]| RowStream::new(&cache, layers, Selection::All, Order::Stored).unwrap().next().unwrap().unwrap();
        assert!(first(&[]).hidden_states.is_empty());
        assert_eq!(first(&[2]).hidden_states[0].len(), first(&[2]).input_ids.len() * 16);
    }

    #[test]
    fn the_buffer_does_not_grow_beyond_its_bound_and_one_group() {
        let mut buffer = ShuffleBuffer { rows: Vec::new(), tokens: 0, draws: RandomStream::new(0, Purpose::Shuffling, &[0]) };
        let row = |id| Record { sequence_id: id, input_ids: vec![0; 100], ..Record::default() };
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache { shards_per_pass: 3, rows_per_shard: 2000, hidden_layers: vec![], ..SmallCache::default() };
        let cache = Cache::open(&cache.write(directory.path(), "cache")).unwrap();
        let mut stream = RowStream::new(&cache, &[], Selection::All, Order::Shuffled { seed: 0, epoch: 0 }).unwrap();
        let largest_group = 2000 * 13;
        let mut largest = 0;
        while let Some(row) = stream.next() {
            row.unwrap();
            largest = largest.max(stream.shuffled.as_ref().unwrap().tokens);
        }
        assert!(largest > 0 && largest <= BUFFER_TOKENS + largest_group, "{largest} tokens");
        (0..10).for_each(|id| buffer.push(row(id)));
        assert_eq!(buffer.tokens, 1000);
        let popped: BTreeSet<u64> = std::iter::from_fn(|| buffer.pop()).map(|row| row.sequence_id).collect();
        assert_eq!((popped.len(), buffer.tokens), (10, 0));
    }

    #[test]
    fn an_unreadable_shard_ends_the_stream_with_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory, 1);
        let mut stream = RowStream::new(&cache, &[], Selection::All, Order::Stored).unwrap();
        std::fs::remove_file(cache.directory().join("logits-00001.parquet")).unwrap();
        let rows: Vec<bool> = stream.by_ref().map(|row| row.is_ok()).collect();
        assert_eq!(rows.iter().filter(|ok| !**ok).count(), 1, "one error");
        assert!(!rows[rows.len() - 1], "and nothing after it");
    }

    #[test]
    fn a_document_is_held_out_with_all_its_sequences() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache { sequences_per_document: 3, ..SmallCache::default() };
        let cache = Cache::open(&cache.write(directory.path(), "cache")).unwrap();
        let documents = |selection| -> BTreeSet<u64> {
            RowStream::new(&cache, &[], selection, Order::Stored).unwrap().map(|row| row.unwrap().document_id).collect()
        };
        let (held_out, trained) = (documents(Selection::HeldOut(0.3)), documents(Selection::NotHeldOut(0.3)));
        assert!(!held_out.is_empty() && held_out.is_disjoint(&trained), "{held_out:?}");
        assert_eq!(held_out.len() + trained.len(), 34, "of 100 sequences, three to a document");
    }

    #[test]
    fn a_shard_is_hashed_when_it_is_first_read() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory, 1);
        let path = cache.directory().join("logits-00003.parquet");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let stream = RowStream::new(&cache, &[], Selection::All, Order::Stored).unwrap();
        let rows: Vec<Result<Record>> = stream.collect();
        assert_eq!(rows.len(), 76, "the rows of three sound shards, then the error");
        let error = rows.into_iter().last().unwrap().unwrap_err().to_string();
        assert!(error.contains("logits-00003.parquet: sha256"), "{error}");
    }

    #[test]
    fn reading_ahead_keeps_the_order_and_stops_when_dropped() {
        let made = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = made.clone();
        let items = (0..).inspect(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        });
        let mut ahead = Prefetch::new(items);
        assert_eq!(ahead.by_ref().take(5).collect::<Vec<i32>>(), [0, 1, 2, 3, 4]);
        drop(ahead);
        let made = made.load(std::sync::atomic::Ordering::SeqCst);
        assert!((5..=8).contains(&made), "{made} items made for 5 read");
    }
}
