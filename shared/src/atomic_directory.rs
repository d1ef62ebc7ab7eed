//! Durable directories: no directory is ever seen half-written, or half-removed, under its final name.
//!
//! As [`crate::atomic_file`], for several files that belong together: write all beside, fsync each and the directory, rename, fsync the parent.

use crate::atomic_file::{partial_path, sync_directory};
use crate::error::{Error, Result};
use std::fs;
use std::path::Path;

/// Publishes the files that `write` puts into the directory it is given under `path`, all or none of them. `write` syncs what it writes, as
/// [`crate::atomic_file::write_atomically`] does.
///
/// Until then they are in `.NAME.partial` beside it, which a failed write removes and a crash may leave for [`remove_leftovers`].
///
/// # Errors
/// Whatever `write` returns, and [`Error::Io`] where the system refuses or `path` exists.
pub fn write_directory_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = partial_path(path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    remove(&partial)?;
    let published = fs::create_dir(&partial)
        .map_err(Error::io("create", &partial))
        .and_then(|()| write(&partial))
        .and_then(|()| sync_directory(&partial))
        .and_then(|()| fs::rename(&partial, path).map_err(Error::io("rename", &partial)));
    if let Err(error) = published {
        // The first error is the one to report; a leftover is harmless.
        let _ = remove(&partial);
        return Err(error);
    }
    sync_directory(parent)
}

/// Removes a published directory; one that is cut off leaves a name that [`remove_leftovers`] knows.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_directory_atomically(path: &Path) -> Result<()> {
    let partial = partial_path(path)?;
    remove(&partial)?;
    fs::rename(path, &partial).map_err(Error::io("rename", path))?;
    remove(&partial)
}

/// Removes what writes and removals that were cut off have left in `directory`.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_leftovers(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".partial") && entry.path().is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_seen_before_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new/directory");
        write_directory_atomically(&path, |partial| {
            fs::write(partial.join("file"), "content").unwrap();
            assert!(!path.exists());
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"content");
        assert_eq!(names(path.parent().unwrap()), ["directory"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let failure = write_directory_atomically(&parent.path().join("directory"), |partial| {
            fs::write(partial.join("file"), "content").unwrap();
            Err(Error::invalid("field", "this", "that"))
        });
        assert!(failure.unwrap_err().to_string().contains("expected this"));
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    fn a_crash_left_behind_is_replaced_or_removed() {
        let parent = tempfile::tempdir().unwrap();
        for name in [".one.partial", ".two.partial"] {
            fs::create_dir(parent.path().join(name)).unwrap();
            fs::write(parent.path().join(name).join("stale"), "").unwrap();
        }
        write_directory_atomically(&parent.path().join("one"), |_| Ok(())).unwrap();
        assert_eq!(names(&parent.path().join("one")), Vec::<String>::new());
        remove_leftovers(parent.path()).unwrap();
        assert_eq!(names(parent.path()), ["one"]);
        remove_directory_atomically(&parent.path().join("one")).unwrap();
        assert!(names(parent.path()).is_empty());
    }
}
