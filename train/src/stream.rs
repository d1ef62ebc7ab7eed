//! Rows of a cache in a seeded order, and the thread that reads ahead.
//!
//! An epoch visits every row group of every shard once, in an order drawn from (seed, epoch). The rows of a group enter a buffer that
//! holds at most [`BUFFER_TOKENS`] tokens beyond one row group; each step takes a random row out of it. So memory depends on the buffer
//! and on one row group, not on the cache, and the order depends on nothing but the seed, the epoch and the cache. A [`StreamPosition`] says
//! which rows are in the buffer, so that a stream can go on from it without those that were given before.

mod position;
mod prefetch;

pub use position::{RowPlace, StreamPosition};
pub use prefetch::Prefetch;

use logitcache::cache::reader::{Cache, Projection, ShardReader};
use logitcache::cache::record::Record;
use logitcache::error::Result;
use logitcache::seed::{Purpose, RandomStream};

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

/// A row and where it stands.
struct Placed {
    record: Record,
    place: RowPlace,
}

/// A bounded buffer that gives rows back in random order.
struct ShuffleBuffer {
    rows: Vec<Placed>,
    tokens: usize,
    draws: RandomStream,
}

impl ShuffleBuffer {
    fn push(&mut self, row: Placed) {
        self.tokens += row.record.input_ids.len();
        self.rows.push(row);
    }

    fn pop(&mut self) -> Option<Placed> {
        if self.rows.is_empty() {
            return None;
        }
        let row = self.rows.swap_remove(self.draws.below(self.rows.len()));
        self.tokens -= row.record.input_ids.len();
        Some(row)
    }
}

/// A row group: shard, group.
type Group = (usize, usize);

/// The rows of one epoch, read when asked for. Ends after the first error.
pub struct RowStream {
    cache: Cache,
    projection: Projection,
    selection: Selection,
    /// In the epoch's order.
    groups: Vec<Group>,
    /// How many of them have been read.
    taken: usize,
    open: Option<(usize, ShardReader)>,
    stored: std::vec::IntoIter<Placed>,
    shuffled: Option<ShuffleBuffer>,
    /// What an earlier stream gave and nobody used.
    given_back: Option<Placed>,
    last: Option<RowPlace>,
}

impl RowStream {
    /// The selected rows of `cache` in `order`; `hidden_layers` are decoded, and with none the hidden files stay closed.
    ///
    /// # Errors
    /// A shard whose footer cannot be read.
    pub fn new(cache: &Cache, hidden_layers: &[u32], selection: Selection, order: Order) -> Result<Self> {
        // Footers alone: a file is hashed when its first row group is read, not before the first batch.
        let counts = cache.row_groups()?.iter().enumerate();
        let mut groups: Vec<Group> = counts.flat_map(|(shard, count)| (0..*count).map(move |group| (shard, group))).collect();
        let shuffled = match order {
            Order::Stored => None,
            Order::Shuffled { seed, epoch } => {
                RandomStream::new(seed, Purpose::Shuffling, &[epoch, 0]).shuffle(&mut groups);
                let draws = RandomStream::new(seed, Purpose::Shuffling, &[epoch, 1]);
                Some(ShuffleBuffer { rows: Vec::new(), tokens: 0, draws })
            }
        };
        Ok(Self {
            cache: cache.clone(),
            projection: Projection { hidden_layers: hidden_layers.to_vec() },
            selection,
            groups,
            taken: 0,
            open: None,
            stored: Vec::new().into_iter(),
            shuffled,
            given_back: None,
            last: None,
        })
    }

    /// The selected rows of the next row group; nothing after the last.
    fn next_group(&mut self) -> Result<Option<Vec<Placed>>> {
        let Some((shard, group)) = self.groups.get(self.taken).copied() else { return Ok(None) };
        let reader = match self.open.take() {
            Some((open, reader)) if open == shard => reader,
            _ => self.cache.shard(shard)?,
        };
        let records = reader.read(group, &self.projection)?;
        self.open = Some((shard, reader));
        let number = self.taken as u32;
        self.taken += 1;
        let placed = records.into_iter().zip(0..).map(|(record, row)| Placed { record, place: [number, row] });
        Ok(Some(placed.filter(|row| self.selection.holds(row.record.document_id)).collect()))
    }

    fn next_row(&mut self) -> Result<Option<Placed>> {
        if let Some(row) = self.given_back.take() {
            return Ok(Some(row));
        }
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
        let row = self.next_row();
        if row.is_err() {
            self.taken = self.groups.len();
            self.stored = Vec::new().into_iter();
            self.shuffled = None;
        }
        row.transpose().map(|row| {
            row.map(|row| {
                self.last = Some(row.place);
                row.record
            })
        })
    }
}

#[cfg(test)]
mod tests;
