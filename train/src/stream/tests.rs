//! The order of rows, what is held out, damage, and streams that go on from a position.

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
    let row = |id| Placed { record: Record { sequence_id: id, input_ids: vec![0; 100], ..Record::default() }, place: [0, 0] };
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
    let popped: BTreeSet<u64> = std::iter::from_fn(|| buffer.pop()).map(|row| row.record.sequence_id).collect();
    assert_eq!((popped.len(), buffer.tokens), (10, 0));
}

#[test]
fn an_unreadable_shard_ends_the_stream_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory, 1);
    let streams = [1, 3].map(|readers| RowStream::new(&cache, &[], Selection::All, Order::Stored).unwrap().read_ahead(readers));
    std::fs::remove_file(cache.directory().join("logits-00001.parquet")).unwrap();
    for stream in streams {
        let rows: Vec<bool> = stream.map(|row| row.is_ok()).collect();
        assert_eq!(rows.iter().filter(|ok| !**ok).count(), 1, "one error");
        assert_eq!((rows.len(), rows[rows.len() - 1]), (26, false), "and nothing after it");
    }
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
    for readers in [1, 5] {
        let stream = RowStream::new(&cache, &[], Selection::All, Order::Stored).unwrap().read_ahead(readers);
        let rows: Vec<Result<Record>> = stream.collect();
        assert_eq!(rows.len(), 76, "the rows of three sound shards, then the error");
        let error = rows.into_iter().last().unwrap().unwrap_err().to_string();
        assert!(error.contains("logits-00003.parquet: sha256"), "{error}");
    }
}

#[test]
fn a_stream_goes_on_from_any_position_whether_the_last_row_was_used_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory, 2);
    let (selection, order) = (Selection::NotHeldOut(0.2), Order::Shuffled { seed: 3, epoch: 1 });
    let mut stream = RowStream::new(&cache, &[2], selection, order).unwrap();
    let (mut rows, mut positions) = (Vec::new(), vec![(0, stream.position(false))]);
    while let Some(row) = stream.next() {
        rows.push(row.unwrap());
        positions.extend([(rows.len(), stream.position(false)), (rows.len() - 1, stream.position(true))]);
    }
    for (given, position) in positions {
        let text = serde_json::to_string(&position).unwrap();
        let position: StreamPosition = serde_json::from_str(&text).unwrap();
        for readers in [1, 2, 7] {
            let stream = RowStream::after(&cache, &[2], selection, order, &position).unwrap().read_ahead(readers);
            let rest: Vec<Record> = stream.map(|row| row.unwrap()).collect();
            assert!(rest == rows[given..], "after {given} of {} rows, {readers} readers", rows.len());
        }
    }
    for broken in [
        StreamPosition { groups: 9999, ..StreamPosition::default() },
        StreamPosition { groups: 1, buffered: vec![[0, 9999]], ..StreamPosition::default() },
        StreamPosition { groups: 1, buffered: vec![[0, 1], [0, 1]], ..StreamPosition::default() },
        StreamPosition { groups: 1, given_back: Some([1, 0]), ..StreamPosition::default() },
    ] {
        let error = RowStream::after(&cache, &[], Selection::All, order, &broken).err().unwrap();
        assert!(error.to_string().contains("position in the data"), "{error}");
    }
}

#[test]
fn what_is_done_is_not_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let shape = SmallCache { shards_per_pass: 60, rows_per_shard: 100, hidden_layers: vec![], ..SmallCache::default() };
    let path = shape.write(directory.path(), "cache");
    let order = Order::Shuffled { seed: 0, epoch: 0 };
    let mut stream = RowStream::new(&Cache::open(&path).unwrap(), &[], Selection::All, order).unwrap();
    // Few rows are left, so that there are shards of which none waits in the buffer.
    let given = stream.by_ref().take(5900).count();
    let (groups, position) = (stream.groups.clone(), stream.position(false));
    let rest: Vec<Record> = stream.map(|row| row.unwrap()).collect();
    assert_eq!(given + rest.len(), 6000);
    // Another process opens the cache and reads the footers; then what it needs no more is gone.
    let cache = Cache::open(&path).unwrap();
    cache.row_groups().unwrap();
    let still_needed = |number: usize| number >= position.groups as usize || position.buffered.iter().any(|row| row[0] as usize == number);
    let done: BTreeSet<usize> =
        (0..60).filter(|shard| !groups.iter().enumerate().any(|(i, group)| group.0 == *shard && still_needed(i))).collect();
    assert!(done.len() >= 5, "{done:?}");
    done.iter().for_each(|shard| std::fs::remove_file(path.join(format!("logits-{shard:05}.parquet"))).unwrap());
    let again = RowStream::after(&cache, &[], Selection::All, order, &position).unwrap();
    assert!(again.map(|row| row.unwrap()).eq(rest));
}

#[test]
fn a_shard_that_changed_is_found_when_a_stream_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory, 1);
    let order = Order::Shuffled { seed: 0, epoch: 0 };
    let mut stream = RowStream::new(&cache, &[], Selection::All, order).unwrap();
    stream.next().unwrap().unwrap();
    let position = stream.position(false);
    let path = cache.directory().join("logits-00002.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error =
        RowStream::after(&Cache::open(cache.directory()).unwrap(), &[], Selection::All, order, &position).err().unwrap().to_string();
    assert!(error.contains("logits-00002.parquet: sha256"), "{error}");
}

#[test]
fn the_counts_of_rows_are_those_of_their_records() {
    let directory = tempfile::tempdir().unwrap();
    for task in [logitcache::target::Task::MaskedLm, logitcache::target::Task::SentenceEmbedding] {
        let cache = Cache::open(&SmallCache::of(task).write(directory.path(), &task.to_string())).unwrap();
        let mut records = RowStream::new(&cache, &[], Selection::All, Order::Stored).unwrap().map(|row| row.unwrap());
        for count in (0..cache.shards()).flat_map(|shard| cache.row_counts(shard).unwrap()) {
            let record = records.next().unwrap();
            let labelled = record.labels.iter().filter(|label| **label != logitcache::cache::record::IGNORED_LABEL).count();
            assert_eq!((count.document_id, count.tokens, count.labelled), (record.document_id, record.input_ids.len(), labelled));
        }
        assert!(records.next().is_none());
    }
}
