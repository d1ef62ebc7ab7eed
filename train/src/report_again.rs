//! The report of a student that is there, written anew.

use crate::cli::ReportArguments;
use logitcache::error::{Error, Result};

/// `train report`: returns what a person is told.
///
/// # Errors
/// [`Error::Usage`]: this build cannot do it yet.
pub fn run(arguments: &ReportArguments) -> Result<String> {
    let found = format!("report of {}", arguments.student.display());
    Err(Error::usage("train report", "a build that has this subcommand", found, "use a newer build"))
}
