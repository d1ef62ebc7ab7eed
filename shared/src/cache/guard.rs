//! Parquet decoding that a malformed file cannot bring down.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The Parquet crate's work on bytes from a file. Its decoders index past their ends on some malformed pages; a panic in there is the file's
/// fault and becomes its error.
pub fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("malformed pages ({})", text.unwrap_or("the decoder gave up")))
        }
    }
}
