//! The flow of shards over lanes that answer at once or late, refuse, or panic.

use super::*;
use crate::batch::BatchPlan;
use crate::masking::Masked;
use crate::pipeline::question::Question;
use crate::teacher::TeacherBatch;
use crate::window::Sequence;
use std::panic::catch_unwind;

/// A shard of `batches` batches of two sequences each.
fn shard(index: u32, batches: usize) -> Arc<ShardWork> {
    let question = |id: usize| Question {
        sequence: Sequence { sequence_id: id as u64, ..Sequence::default() },
        masked: Masked { input_ids: vec![id as u32; 3], labels: Vec::new() },
        positions: Vec::new(),
    };
    let batch = |number: usize| (BatchPlan { rows: vec![2 * number + 1, 2 * number], length: 3 }, TeacherBatch::default());
    Arc::new(ShardWork {
        index,
        pass: 0,
        questions: (0..2 * batches).map(question).collect(),
        batches: (0..batches).map(batch).collect(),
        share: [0.0, 1.0],
    })
}

/// What an honest lane makes of a batch.
fn records(work: &ShardWork, batch: usize) -> Vec<Record> {
    let record =
        |row: &usize| Record { sequence_id: *row as u64, input_ids: work.questions[*row].masked.input_ids.clone(), ..Record::default() };
    work.batches[batch].0.rows.iter().map(record).collect()
}

/// What came of a run.
#[derive(Debug, Default)]
struct Seen {
    published: Vec<u32>,
    tokens: u64,
    /// (shard, batch) of every batch that was asked about, sorted.
    asked: Vec<(u32, usize)>,
    error: Option<String>,
}

/// Runs shards of `sizes` batches on `lanes` lanes that answer as `answer` says; `next` may fail at the shard `fails`, and nobody publishes after `takes` shards.
fn run(lanes: usize, sizes: &[usize], fails: Option<usize>, takes: usize, answer: impl Fn(u32, usize) -> Result<()> + Sync) -> Seen {
    let asked = Mutex::new(Vec::new());
    let worker = |_| {
        |work: &ShardWork, batch: usize, time: &mut Duration| {
            *time += Duration::from_secs(1);
            asked.lock().unwrap().push((work.index, batch));
            answer(work.index, batch).map(|()| records(work, batch))
        }
    };
    let (mut seen, mut following, mut late) = (Seen::default(), 0, false);
    let mut teacher_time = Duration::ZERO;
    let next = |wait: bool| {
        // Every other time nothing is there yet.
        late = !late;
        if late {
            assert!(!wait || following <= sizes.len());
            return Ok(Next::NotYet);
        }
        following += 1;
        if fails == Some(following - 1) {
            return Err(Error::invalid("the corpus", "a shard", "none"));
        }
        Ok(sizes.get(following - 1).map_or(Next::End, |size| Next::Shard(shard(following as u32 - 1, *size))))
    };
    let tell = |work: &ShardWork, sequences: u64, tokens: u64| {
        assert!(sequences == 2 && !work.batches.is_empty());
        seen.tokens += tokens;
    };
    let publish = |made: ShardAnswer, spent: Duration| {
        let ids: Vec<u64> = made.records.iter().map(|record| record.sequence_id).collect();
        assert_eq!(ids, (0..2 * sizes[made.index as usize] as u64).collect::<Vec<_>>(), "every row in its place");
        assert_eq!(made.padded_tokens, 6 * sizes[made.index as usize] as u64);
        assert!(spent.as_secs_f64() * lanes as f64 >= sizes[..=made.index as usize].iter().sum::<usize>() as f64 - 1e-6);
        if seen.published.len() == takes {
            return false;
        }
        seen.published.push(made.index);
        true
    };
    let result = side_by_side((0..lanes).map(worker).collect(), &mut teacher_time, next, tell, publish);
    seen.error = result.err().map(|error| error.to_string());
    seen.asked = asked.into_inner().unwrap();
    seen.asked.sort_unstable();
    seen
}

const SIZES: [usize; 6] = [5, 1, 1, 7, 2, 1];

#[test]
fn every_batch_is_asked_once_and_shards_come_whole_and_in_order() {
    for lanes in [1, 2, 3, 8, 40] {
        // Every third batch takes longer than the others.
        let slow = |_, batch: usize| {
            std::thread::sleep(Duration::from_micros(if batch.is_multiple_of(3) { 900 } else { 0 }));
            Ok(())
        };
        let seen = run(lanes, &SIZES, None, usize::MAX, slow);
        let all: Vec<(u32, usize)> = (0..6).flat_map(|shard| (0..SIZES[shard as usize]).map(move |batch| (shard, batch))).collect();
        assert_eq!((seen.published, seen.asked, seen.error), ((0..6).collect(), all, None), "{lanes} lanes");
        assert_eq!(seen.tokens, 6 * SIZES.iter().sum::<usize>() as u64, "{lanes} lanes");
    }
    assert_eq!(run(2, &[], None, usize::MAX, |_, _| Ok(())).published, [0; 0]);
}

#[test]
fn the_error_is_that_of_the_earliest_batch_and_shards_before_it_are_published() {
    let refuse = |shard: u32, batch: usize| Err(Error::invalid("a batch", "another", format!("{shard}.{batch}")));
    for lanes in [1, 2, 3, 8] {
        for _ in 0..20 {
            // The later one is refused first.
            let answer = |shard, batch| match (shard, batch) {
                (3, 1) => {
                    std::thread::sleep(Duration::from_millis(1));
                    refuse(3, 1)
                }
                (3, 2) | (4, _) => refuse(shard, batch),
                _ => Ok(()),
            };
            let seen = run(lanes, &SIZES, None, usize::MAX, answer);
            assert_eq!(seen.published, [0, 1, 2], "{lanes} lanes");
            assert!(seen.error.as_ref().unwrap().contains("3.1"), "{lanes} lanes: {seen:?}");
            // One of the second shard, while the first is not whole.
            let answer = |shard, batch| match shard {
                0 if batch == 4 => {
                    std::thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                1 => refuse(1, 0),
                _ => Ok(()),
            };
            let seen = run(lanes, &SIZES, None, usize::MAX, answer);
            assert_eq!((&seen.published[..], seen.error.unwrap().contains("1.0")), (&[0][..], true), "{lanes} lanes");
        }
    }
}

#[test]
fn what_ends_the_shards_ends_after_those_that_are_begun() {
    for lanes in [1, 2, 8] {
        for fails in 0..6 {
            let seen = run(lanes, &SIZES, Some(fails), usize::MAX, |_, _| Ok(()));
            assert_eq!(seen.published, (0..fails as u32).collect::<Vec<_>>(), "{lanes} lanes");
            assert!(seen.error.unwrap().contains("the corpus"));
        }
        let seen = run(lanes, &SIZES, None, 2, |_, _| Ok(()));
        assert_eq!((seen.published, seen.error), (vec![0, 1], None), "{lanes} lanes: whoever publishes has an error of his own");
    }
}

#[test]
fn a_panic_of_a_lane_is_passed_on() {
    for lanes in [1, 2, 8] {
        for at in [(0, 0), (2, 0), (3, 6), (5, 0)] {
            let answer = |shard, batch| if (shard, batch) == at { panic!("lane {shard}.{batch}") } else { Ok(()) };
            let panic = catch_unwind(|| run(lanes, &SIZES, None, usize::MAX, answer)).unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert_eq!(*text, format!("lane {}.{}", at.0, at.1), "{lanes} lanes");
        }
    }
}
