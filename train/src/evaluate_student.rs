//! Measuring a student that is there on a cache.

use crate::cli::EvaluateArguments;
use logitcache::error::{Error, Result};

/// `train evaluate`: returns what a person is told.
///
/// # Errors
/// [`Error::Usage`]: this build cannot do it yet.
pub fn run(arguments: &EvaluateArguments) -> Result<String> {
    let found = format!("evaluate of {}", arguments.student.display());
    Err(Error::usage("train evaluate", "a build that has this subcommand", found, "use a newer build"))
}
