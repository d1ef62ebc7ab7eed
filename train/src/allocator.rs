//! How long mimalloc, the program's allocator, keeps the pages of freed buffers.

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};
use std::ffi::c_long;

/// mimalloc's `mi_option_purge_delay` (the same number in versions 2 and 3 of mimalloc.h), in milliseconds.
const PURGE_DELAY: mi_option_t = 15;

/// Longer than any step leaves its own buffers unused; what only the start of the program needed goes back to the system after it.
const PURGE_DELAY_MILLISECONDS: c_long = 10_000;

/// Keeps them for ten seconds instead of one or less: a step's buffers are those of the step before, and the system clears no page twice. A
/// variable `MIMALLOC_PURGE_DELAY` of the environment goes before.
pub fn keep_freed_pages() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number that the allocator reads; no memory is touched.
        unsafe { mi_option_set(PURGE_DELAY, PURGE_DELAY_MILLISECONDS) };
    }
}

/// The delay in force.
pub fn purge_delay_milliseconds() -> c_long {
    // SAFETY: reads a number.
    unsafe { mi_option_get(PURGE_DELAY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the option is not among those that the bindings name: another default would mean another option.
    #[test]
    fn the_option_is_the_purge_delay() {
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert!([10, 1000].contains(&purge_delay_milliseconds()), "{}", purge_delay_milliseconds());
            keep_freed_pages();
            assert_eq!(purge_delay_milliseconds(), PURGE_DELAY_MILLISECONDS);
        }
    }
}
