//! Work on several threads whose results are wanted in order.

use crate::error::Result;
use std::collections::VecDeque;
use std::panic::resume_unwind;

/// Makes 0, 1, ... `count` - 1 on `threads` threads and hands the results to `take` on this one, in that order. At most `threads` are being made
/// or wait for their turn, beside the one in the hands of `take`; one thread is this thread, and 0 counts as 1.
///
/// # Errors
/// The first of `make` or `take` in order. Nothing is handed over after it, and what is under way by then is finished and dropped.
pub(super) fn in_order<T: Send>(
    threads: usize,
    count: usize,
    make: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    if threads.min(count) <= 1 {
        return (0..count).try_for_each(|number| take(make(number)?));
    }
    std::thread::scope(|scope| {
        let make = &make;
        let begin = |number| scope.spawn(move || make(number));
        let mut to_come = 0..count;
        let mut under_way: VecDeque<_> = to_come.by_ref().take(threads).map(begin).collect();
        while let Some(oldest) = under_way.pop_front() {
            let made = oldest.join().unwrap_or_else(|panic| resume_unwind(panic));
            let taken = made.and_then(|made| {
                under_way.extend(to_come.next().map(begin));
                take(made)
            });
            if taken.is_err() {
                // Joined, so that none of theirs stands before the first error.
                under_way.into_iter().for_each(|later| drop(later.join()));
                return taken;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn the_order_is_kept_and_no_more_are_under_way_than_there_are_threads() {
        for (threads, count) in [(0, 5), (1, 5), (2, 5), (3, 20), (8, 5), (4, 0), (4, 1)] {
            let (begun, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let (taken, mut all) = (AtomicUsize::new(0), Vec::new());
            let make = |number: usize| {
                let under_way = begun.fetch_add(1, Ordering::SeqCst) + 1 - taken.load(Ordering::SeqCst);
                most.fetch_max(under_way, Ordering::SeqCst);
                // The earlier, the longer it takes.
                std::thread::sleep(Duration::from_millis(2 * (count - number) as u64));
                Ok(number)
            };
            let take = |number| {
                all.push(number);
                taken.fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            in_order(threads, count, make, take).unwrap();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
            // One more where a thread is given its next before the result is counted as taken.
            let (most, allowed) = (most.into_inner(), if threads > 1 { threads + 1 } else { 1 });
            assert!(most <= allowed, "{most} of {count} under way on {threads} threads");
        }
    }

    #[test]
    fn the_first_error_in_order_ends_it() {
        for threads in [1, 2, 4] {
            let mut all = Vec::new();
            let make = |number: usize| {
                if number == 3 {
                    // By then the later one has failed as well.
                    std::thread::sleep(Duration::from_millis(20));
                }
                if number >= 3 { Err(Error::invalid("number", "below 3", number.to_string())) } else { Ok(number) }
            };
            let take = |number| {
                all.push(number);
                Ok(())
            };
            let message = in_order(threads, 9, make, take).unwrap_err().to_string();
            assert!(message.contains("found 3"), "{message}");
            assert_eq!(all, [0, 1, 2]);
            let refused = in_order(threads, 9, Ok, |number| Err(Error::invalid("number", "none", number.to_string())));
            assert!(refused.unwrap_err().to_string().contains("found 0"));
        }
    }

    #[test]
    fn a_panic_after_the_first_error_is_not() {
        let make = |number: usize| match number {
            0 => Err(Error::invalid("number", "above 0", "0")),
            _ => panic!("number {number}"),
        };
        let refused: Result<()> = in_order(3, 4, make, |()| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("found 0"));
    }

    #[test]
    fn a_panic_is_passed_on() {
        let make = |number: usize| if number == 1 { panic!("number 1") } else { Ok(number) };
        let panic = std::panic::catch_unwind(|| in_order(2, 4, make, |_| Ok(()))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"number 1"));
    }
}
