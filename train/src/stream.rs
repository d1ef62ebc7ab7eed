//! Rows of a cache in a seeded order, and the thread that reads ahead.
//!
//! An epoch visits every row group of every shard once, in an order drawn from (seed, epoch). The rows of a group enter a buffer that
//! holds at most [`BUFFER_TOKENS`] tokens beyond one row group; each step takes a random row out of it. So memory depends on the buffer
//! and on one row group (or, of a stream that reads ahead, three for each of its readers), not on the cache, and the order depends on nothing but the
//! seed, the epoch and the cache. A [`StreamPosition`] says which rows are in the buffer, so that a stream can go on from it without those that were
//! given before.

mod position;
mod prefetch;

pub use position::{RowPlace, StreamPosition};
pub use prefetch::Prefetch;

use logitcache::cache::reader::{Cache, Projection, ShardReader};
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
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

/// Reads row groups, and keeps a shard open from one to the next.
struct GroupReader {
    cache: Cache,
    projection: Projection,
    open: Option<(usize, ShardReader)>,
}

impl GroupReader {
    fn new(cache: &Cache, hidden_layers: &[u32]) -> Self {
        Self { cache: cache.clone(), projection: Projection { hidden_layers: hidden_layers.to_vec() }, open: None }
    }

    fn read(&mut self, (shard, group): Group) -> Result<Vec<Record>> {
        let reader = match self.open.take() {
            Some((open, reader)) if open == shard => reader,
            _ => self.cache.shard(shard)?,
        };
        let records = reader.read(group, &self.projection)?;
        self.open = Some((shard, reader));
        Ok(records)
    }
}

/// The rows of one epoch, read when asked for or ahead. Ends after the first error.
pub struct RowStream {
    selection: Selection,
    /// In the epoch's order.
    groups: Vec<Group>,
    /// How many of them have been taken.
    taken: usize,
    reader: GroupReader,
    /// Threads that read ahead; none, and the stream reads when it is asked.
    readers: usize,
    /// Those threads, once there are any. A group is read by the one whose turn it is.
    lanes: Vec<Prefetch<Result<Vec<Record>>>>,
    /// The group that the first of them began with.
    lanes_from: usize,
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
            selection,
            groups,
            taken: 0,
            reader: GroupReader::new(cache, hidden_layers),
            readers: 0,
            lanes: Vec::new(),
            lanes_from: 0,
            stored: Vec::new().into_iter(),
            shuffled,
            given_back: None,
            last: None,
        })
    }

    /// The same rows in the same order, with `readers` threads that read ahead, for who takes rows faster than one thread reads them. With fewer than two
    /// the stream reads when it is asked.
    pub fn read_ahead(self, readers: usize) -> Self {
        Self { readers: if readers < 2 { 0 } else { readers }, ..self }
    }

    /// The selected rows of the next row group; nothing after the last.
    fn next_group(&mut self) -> Result<Option<Vec<Placed>>> {
        let Some(group) = self.groups.get(self.taken).copied() else { return Ok(None) };
        let records = match self.readers {
            0 => self.reader.read(group)?,
            _ => self.next_ahead()?,
        };
        let number = self.taken as u32;
        self.taken += 1;
        let placed = records.into_iter().zip(0..).map(|(record, row)| Placed { record, place: [number, row] });
        Ok(Some(placed.filter(|row| self.selection.holds(row.record.document_id)).collect()))
    }

    /// The records of the next row group, from the thread whose turn it is.
    fn next_ahead(&mut self) -> Result<Vec<Record>> {
        if self.lanes.is_empty() {
            self.lanes_from = self.taken;
            let lane = |first: usize| {
                let groups: Vec<Group> = self.groups[self.taken..].iter().skip(first).step_by(self.readers).copied().collect();
                let mut reader = GroupReader::new(&self.reader.cache, &self.reader.projection.hidden_layers);
                Prefetch::new(groups.into_iter().map(move |group| reader.read(group)))
            };
            self.lanes = (0..self.readers).map(lane).collect();
        }
        let turn = (self.taken - self.lanes_from) % self.readers;
        self.lanes[turn].next().unwrap_or_else(|| Err(Error::invalid("row group", "one for each turn", "none")))
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
            self.lanes = Vec::new();
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
