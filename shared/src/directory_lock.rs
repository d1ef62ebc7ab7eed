//! One writer per directory: a lock that the system drops with the process, however it ends.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;

/// The lock's file within the directory. It stays behind, empty, and means nothing while no process holds its lock.
pub const LOCK_FILE: &str = ".lock";

/// A directory that no other run writes while the value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes `directory`, which must exist. `flag` is the one that named it.
    ///
    /// # Errors
    /// [`Error::Usage`] where another run holds it, [`Error::Io`] where the file cannot be made.
    pub fn take(directory: &Path, flag: &str) -> Result<Self> {
        let path = directory.join(LOCK_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let found = format!("another run at work in {}", directory.display());
                Err(Error::usage(flag, "a directory that no other run is writing", found, "wait for it, or name another directory"))
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path(), "--out").unwrap();
        let error = DirectoryLock::take(directory.path(), "--out").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("another run"), "{error}");
        drop(first);
        assert!(DirectoryLock::take(directory.path(), "--out").is_ok(), "the lock ends with its run");
    }
}
