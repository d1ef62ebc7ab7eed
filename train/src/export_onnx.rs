//! Writing a student as an ONNX graph.

use crate::cli::ExportArguments;
use logitcache::error::{Error, Result};

/// `train export`: returns what a person is told.
///
/// # Errors
/// [`Error::Usage`]: this build cannot do it yet.
pub fn run(arguments: &ExportArguments) -> Result<String> {
    let found = format!("export of {}", arguments.student.display());
    Err(Error::usage("train export", "a build that has this subcommand", found, "use a newer build"))
}
