//! Documents in a random order, with bounded memory.
//!
//! Each document has a random number that follows from the seed and its place in the corpus alone, and the order is that of these numbers: a
//! uniform draw among all orders, the same on every machine and whatever the memory. The documents are written once to a file without a name,
//! sorted roughly into buckets by their numbers; reading a bucket back, its documents are put in order in memory. So memory holds one bucket,
//! and the disk the texts of the corpus once.
//!
//! Where only the first documents of the order are wanted, those that cannot be among them are not written.

use super::document::{Document, Gold, Place, Text};
use super::reading::Reading;
use super::{Corpus, CorpusFile};
use logitcache::error::{Error, Result};
use logitcache::seed::{Purpose, RandomStream};
use serde::{Deserialize, Serialize};
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What a bucket should take in memory, roughly: the files' size on disk is known, what they decompress to is not.
const BUCKET_BYTES: u64 = 8 << 20;
/// More of them would take more memory for their ends than they save.
const LARGEST_BUCKETS: u64 = 4096;
/// A bucket's end that is kept in memory until it is worth a write.
const BLOCK_BYTES: usize = 16 << 10;

/// A document as it is written.
#[derive(Serialize, Deserialize)]
struct Stored {
    number: u64,
    id: u64,
    file: usize,
    place: Place,
    text: Text,
    pair: Option<String>,
    gold: Gold,
}

/// A corpus sorted into buckets.
#[derive(Debug)]
pub(super) struct Shuffled {
    /// Where it lies, for messages; on Unix its name is gone already.
    path: PathBuf,
    file: Mutex<File>,
    /// (offset, length) of the blocks of each bucket, in the order written.
    buckets: Vec<Vec<(u64, usize)>>,
    /// Documents written.
    documents: u64,
    malformed: u64,
}

impl Shuffled {
    /// Reads the corpus once; `None` where `stops` says so before its end. `wanted` is how many documents of the order will be asked for, at
    /// most.
    ///
    /// # Errors
    /// Those of the corpus, and of a `scratch` directory that cannot be written.
    pub(super) fn write(corpus: &Corpus, seed: u64, wanted: Option<u64>, scratch: &Path, stops: &dyn Fn() -> bool) -> Result<Option<Self>> {
        let buckets = (corpus.bytes() / BUCKET_BYTES).clamp(1, LARGEST_BUCKETS) as usize;
        let mut writer = Writer::create(scratch, buckets)?;
        let mut first = First { wanted, largest: BinaryHeap::new() };
        let mut reading = Reading::of(corpus);
        let mut documents = 0;
        while let Some(document) = reading.next()? {
            documents += 1;
            if stops() {
                return Ok(None);
            }
            let number = RandomStream::new(seed, Purpose::Documents, &[document.id]).at(0);
            if first.may_hold(number) {
                writer.write(number, &document, corpus.files())?;
            }
        }
        writer.finish(documents, reading.malformed()).map(Some)
    }

    /// Documents of the corpus.
    pub(super) fn documents(&self) -> u64 {
        self.documents
    }

    /// Malformed records skipped.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    fn bucket(&self, bucket: usize) -> Result<Vec<Stored>> {
        let mut bytes = Vec::new();
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (offset, length) in &self.buckets[bucket] {
            file.seek(SeekFrom::Start(*offset)).map_err(Error::io("seek in", &self.path))?;
            let read = (&*file).take(*length as u64).read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
            if read < *length {
                return Err(Error::io("read", &self.path)(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        drop(file);
        let stored = serde_json::Deserializer::from_slice(&bytes).into_iter::<Stored>().collect::<std::result::Result<Vec<_>, _>>();
        let mut stored = stored.map_err(Error::library("read back", &self.path))?;
        stored.sort_unstable_by_key(|document| (document.number, document.id));
        Ok(stored)
    }
}

/// The documents in their random order.
pub(super) struct ShuffledDocuments {
    shuffled: Arc<Shuffled>,
    files: Arc<[CorpusFile]>,
    next_bucket: usize,
    bucket: std::vec::IntoIter<Stored>,
}

impl ShuffledDocuments {
    pub(super) fn of(shuffled: &Arc<Shuffled>, corpus: &Corpus) -> Self {
        Self { shuffled: Arc::clone(shuffled), files: Arc::clone(&corpus.files), next_bucket: 0, bucket: Vec::new().into_iter() }
    }

    /// Documents of the corpus.
    pub(super) fn documents(&self) -> u64 {
        self.shuffled.documents()
    }

    /// Malformed records skipped.
    pub(super) fn malformed(&self) -> u64 {
        self.shuffled.malformed()
    }

    /// The next document.
    ///
    /// # Errors
    /// A scratch file that cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(Stored { id, file, place, text, pair, gold, .. }) = self.bucket.next() {
                return Ok(Some(Document { id, file: Arc::clone(&self.files[file].path), place, text, pair, gold }));
            }
            if self.next_bucket == self.shuffled.buckets.len() {
                return Ok(None);
            }
            self.bucket = self.shuffled.bucket(self.next_bucket)?.into_iter();
            self.next_bucket += 1;
        }
    }
}

/// Tells which numbers can be among the smallest ones, of those seen so far.
struct First {
    wanted: Option<u64>,
    /// The smallest numbers seen, as many as are wanted; the largest of them on top.
    largest: BinaryHeap<u64>,
}

impl First {
    fn may_hold(&mut self, number: u64) -> bool {
        let Some(wanted) = self.wanted else { return true };
        if (self.largest.len() as u64) < wanted {
            self.largest.push(number);
            return true;
        }
        match self.largest.peek_mut() {
            // A number that equals the largest may be either's, so it is kept.
            Some(mut largest) if number <= *largest => {
                *largest = number;
                true
            }
            _ => false,
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    end: u64,
    ends: Vec<Vec<u8>>,
    buckets: Vec<Vec<(u64, usize)>>,
    /// The file of the document before, since the next one is most often of the same.
    last_file: usize,
}

impl Writer {
    fn create(scratch: &Path, buckets: usize) -> Result<Self> {
        std::fs::create_dir_all(scratch).map_err(Error::io("create", scratch))?;
        let path = scratch.join(format!(".shuffled-corpus-{}.partial", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        // The open file lives as long as it is held, and a run that is killed leaves nothing behind.
        #[cfg(unix)]
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        Ok(Self { path, file, end: 0, ends: vec![Vec::new(); buckets], buckets: vec![Vec::new(); buckets], last_file: 0 })
    }

    fn write(&mut self, number: u64, document: &Document, files: &[CorpusFile]) -> Result<()> {
        while !Arc::ptr_eq(&files[self.last_file].path, &document.file) {
            self.last_file += 1;
        }
        let Document { id, place, text, pair, gold, .. } = document.clone();
        let stored = Stored { number, id, file: self.last_file, place, text, pair, gold };
        let bucket = ((u128::from(number) * self.ends.len() as u128) >> 64) as usize;
        let end = &mut self.ends[bucket];
        serde_json::to_writer(&mut *end, &stored).map_err(Error::library("write", &self.path))?;
        if end.len() >= BLOCK_BYTES { self.write_block(bucket) } else { Ok(()) }
    }

    fn write_block(&mut self, bucket: usize) -> Result<()> {
        let block = std::mem::take(&mut self.ends[bucket]);
        self.file.write_all(&block).map_err(Error::io("write", &self.path))?;
        self.buckets[bucket].push((self.end, block.len()));
        self.end += block.len() as u64;
        Ok(())
    }

    fn finish(mut self, documents: u64, malformed: u64) -> Result<Shuffled> {
        for bucket in 0..self.ends.len() {
            self.write_block(bucket)?;
        }
        Ok(Shuffled { path: self.path, file: Mutex::new(self.file), buckets: self.buckets, documents, malformed })
    }
}

#[cfg(not(unix))]
impl Drop for Shuffled {
    fn drop(&mut self) {
        // Nobody is left to be told of a file that cannot be removed; its name says what it is.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_smallest_numbers_are_always_kept(numbers in prop::collection::vec(0_u64..40, 0..60), wanted in 0_u64..12) {
            let mut first = First { wanted: Some(wanted), largest: BinaryHeap::new() };
            let mut kept: Vec<u64> = numbers.iter().copied().filter(|number| first.may_hold(*number)).collect();
            let mut sorted = numbers;
            sorted.sort_unstable();
            kept.sort_unstable();
            let wanted = sorted.len().min(wanted as usize);
            prop_assert_eq!(&kept[..wanted], &sorted[..wanted]);
        }
    }
}
