//! Where a shuffled stream stands, and streams that go on from there: only the row groups whose rows wait in the buffer are read again.

use super::{Group, Order, Placed, RowStream, Selection};
use logitcache::cache::reader::Cache;
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The number of a row's group in the epoch's order, and its own among all rows of the group as they are stored.
pub type RowPlace = [u32; 2];

/// A moment between two rows of a shuffled epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Row groups that have been read.
    pub groups: u64,
    /// Random numbers that have been drawn.
    pub draws: u64,
    /// Rows that were read and not yet given, in the buffer's order.
    pub buffered: Vec<RowPlace>,
    /// A row that was given and not used: it comes first.
    pub given_back: Option<RowPlace>,
}

impl RowStream {
    /// Where the stream stands; with `give_back`, before the row that it gave last. Of a stream in stored order, its beginning.
    pub fn position(&self, give_back: bool) -> StreamPosition {
        let Some(buffer) = &self.shuffled else { return StreamPosition::default() };
        StreamPosition {
            groups: self.taken as u64,
            draws: buffer.draws.drawn(),
            buffered: buffer.rows.iter().map(|row| row.place).collect(),
            given_back: self.last.filter(|_| give_back),
        }
    }

    /// [`RowStream::new`], without the rows before `position`, which is one of a stream of the same cache, selection and order.
    ///
    /// # Errors
    /// A shard that cannot be read; [`Error::Invalid`] for a position that no such stream has had.
    pub fn after(cache: &Cache, hidden_layers: &[u32], selection: Selection, order: Order, position: &StreamPosition) -> Result<Self> {
        let mut stream = Self::new(cache, hidden_layers, selection, order)?;
        let waiting = || position.buffered.iter().chain(&position.given_back);
        let known = usize::try_from(position.groups).ok().filter(|groups| *groups <= stream.groups.len());
        let Some(taken) = known.filter(|taken| waiting().all(|[group, _]| (*group as usize) < *taken)) else {
            let expected = format!("one within the {} row groups of an epoch", stream.groups.len());
            return Err(Error::invalid("position in the data", expected, format!("one after {} row groups", position.groups)));
        };
        let mut records = stream.records(waiting())?;
        let mut placed = |place: &RowPlace| {
            let record = records.remove(place).filter(|record| selection.holds(record.document_id));
            let record = record.ok_or_else(|| Error::invalid("position in the data", "rows of the epoch, each once", format!("{place:?}")));
            record.map(|record| Placed { record, place: *place })
        };
        let buffered: Vec<Placed> = position.buffered.iter().map(&mut placed).collect::<Result<_>>()?;
        stream.given_back = position.given_back.as_ref().map(placed).transpose()?;
        stream.taken = taken;
        if let Some(buffer) = &mut stream.shuffled {
            buffered.into_iter().for_each(|row| buffer.push(row));
            buffer.draws.go_to(position.draws);
        }
        Ok(stream)
    }

    /// The rows at `places`, several shards at a time.
    fn records<'p>(&self, places: impl Iterator<Item = &'p RowPlace>) -> Result<HashMap<RowPlace, Record>> {
        let mut by_group: BTreeMap<(Group, u32), Vec<u32>> = BTreeMap::new();
        places.for_each(|[number, row]| by_group.entry((self.groups[*number as usize], *number)).or_default().push(*row));
        let by_group: Vec<((Group, u32), Vec<u32>)> = by_group.into_iter().collect();
        let shards: Vec<_> = by_group.chunk_by(|a, b| a.0.0.0 == b.0.0.0).collect();
        let (cache, projection) = (&self.reader.cache, &self.reader.projection);
        let read = |groups: &&[((Group, u32), Vec<u32>)]| -> Result<Vec<(RowPlace, Record)>> {
            let shard = cache.shard(groups[0].0.0.0)?;
            let mut found = Vec::new();
            for (((_, group), number), rows) in groups.iter() {
                let mut records = shard.read(*group, projection)?;
                let taken = rows.iter().filter_map(|row| Some(([*number, *row], std::mem::take(records.get_mut(*row as usize)?))));
                found.extend(taken);
            }
            Ok(found)
        };
        let found: Vec<Result<Vec<_>>> = shards.par_iter().map(read).collect();
        // In the order of the shards, so that the same damage gives the same error.
        Ok(found.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}
