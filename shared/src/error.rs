//! The errors both programs speak.
//!
//! A message says what was looked at, what was expected there, what was found, and what to do about it. The programs print the chain of
//! causes and leave with [`Error::exit_code`].

use std::path::{Path, PathBuf};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Anything that stops a run, with the place named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag, or a combination of flags, that cannot be run. Exit code 2.
    #[error("{flag}: expected {expected}, found {found}; {remedy}")]
    Usage {
        /// The flag as typed, for example `--top-k`.
        flag: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
        /// What to type instead.
        remedy: String,
    },

    /// A file whose content is not what it should be. Exit code 1.
    #[error("{}: {field}: expected {expected}, found {found}; {remedy}", path.display())]
    Data {
        /// The file or directory.
        path: PathBuf,
        /// The column, key, tensor, line or row concerned.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do about it.
        remedy: String,
    },

    /// The operating system refused a file operation. Exit code 1.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The verb of the message: `read`, `create`, `rename`, ...
        action: &'static str,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },

    /// A library refused a file or a value; its error is the source. Exit code 1.
    #[error("cannot {action} {}", path.display())]
    Library {
        /// The file concerned.
        path: PathBuf,
        /// What was being done: `decode row group 3 of`, `parse`, ...
        action: String,
        /// The library's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A value in memory that breaks its type's promise, before it has a file. Exit code 1.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// The field of the value.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What it holds.
        found: String,
    },

    /// The user asked the run to stop; what is complete is on disk. Exit code 128 + signal.
    #[error("stopped by {}: {advice}", if *signal == 15 { "SIGTERM" } else { "Ctrl-C" })]
    Interrupted {
        /// The signal's number: 2 or 15.
        signal: i32,
        /// How to continue.
        advice: String,
    },
}

impl Error {
    /// A refused flag. `remedy` says what to type instead.
    pub fn usage(flag: impl Into<String>, expected: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { flag: flag.into(), expected: expected.into(), found: found.into(), remedy: remedy.into() }
    }

    /// A refused file content. `field` names the column, key, tensor or line.
    pub fn data(
        path: impl AsRef<Path>,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Data {
            path: path.as_ref().to_owned(),
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    /// For `map_err`: a failed file operation, with the path that the system's message lacks.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), action, source }
    }

    /// For `map_err`: a library's refusal, with the path concerned.
    pub fn library<E>(action: impl Into<String>, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Library { path: path.as_ref().to_owned(), action: action.into(), source: source.into() }
    }

    /// A value that breaks its type's promise.
    pub fn invalid(field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), expected: expected.into(), found: found.into() }
    }

    /// The process's exit code: 2 for usage, 128 + signal for an interruption, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Interrupted { signal, .. } => 128 + *signal as u8,
            _ => 1,
        }
    }
}
