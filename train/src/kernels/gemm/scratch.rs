//! Buffers that a thread keeps for the panels of its products.

use std::cell::Cell;

/// One cache line, so that the vectors of a panel do not straddle two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read and written as a slice of words")] [u32; LINE]);

const LINE: usize = 16;

thread_local! {
    static KEPT: [Cell<Vec<Line>>; 2] = const { [const { Cell::new(Vec::new()) }; 2] };
}

/// Runs a closure with `words` words of whatever was there before. A thread has two such buffers, `WHICH` of them being 0 or 1; where one is
/// in use already (the thread may take up other work while it waits for its own) the closure gets a new one.
pub(super) fn with_scratch<const WHICH: usize, R>(words: usize, run: impl FnOnce(&mut [u32]) -> R) -> R {
    KEPT.with(|kept| {
        let mut lines = kept[WHICH].take();
        if lines.len() * LINE < words {
            lines.resize(words.div_ceil(LINE), Line([0; LINE]));
        }
        // SAFETY: a line is 16 words without padding.
        let all = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u32>(), lines.len() * LINE) };
        let result = run(&mut all[..words]);
        kept[WHICH].set(lines);
        result
    })
}
