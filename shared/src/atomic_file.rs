//! Durable writes: no file is ever seen half-written under its final name.
//!
//! Write beside, flush, fsync, rename, fsync the directory. A rename within a directory is atomic on POSIX file systems, but only the fsync
//! before it keeps a crash from leaving the new name over empty content, and only the fsync of the directory makes the name itself last.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 18;

/// Publishes what `write` writes under `path`, whole or not at all.
///
/// Until then the bytes are in `.NAME.partial` beside it, which a failed write removes and a crash may leave for the next write to replace.
/// Two writers of one path at a time are the caller's to prevent.
///
/// # Errors
/// Whatever `write` returns, and [`Error::Io`] where the system refuses; an existing file at `path` is then as it was.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let partial = partial_path(path)?;
    let published = write_partial(&partial, write).and_then(|()| fs::rename(&partial, path).map_err(Error::io("rename", &partial)));
    if let Err(error) = published {
        // The first error is the one to report; a leftover is harmless.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    sync_directory(parent(path))
}

/// [`write_atomically`] for content that is in memory.
///
/// # Errors
/// [`Error::Io`] where the system refuses.
pub fn write_bytes_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}

/// Refuses a file that could not be made: better missed before the work than after it. `example` is a name that would do.
///
/// # Errors
/// [`Error::Usage`] of `flag` for a directory, or a file in a directory that is not there.
pub fn check_place(flag: &str, path: &Path, example: &str) -> Result<()> {
    let folder = parent(path);
    let expected = "a file in a directory that is there";
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() && !path.is_dir() && path.file_name().is_some() => Ok(()),
        Ok(_) => Err(Error::usage(flag, expected, path.display().to_string(), format!("name a file, such as {example}"))),
        Err(error) => Err(Error::usage(flag, expected, format!("{}: {error}", folder.display()), "make the directory, or name another")),
    }
}

/// `.NAME.partial` beside `path`: where a file or a directory is until it is whole.
pub(crate) fn partial_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::invalid("path", "a name at the end", path.display().to_string()))?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    Ok(path.with_file_name(partial))
}

fn write_partial(partial: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, File::create(partial).map_err(Error::io("create", partial))?);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(|error| Error::io("write", partial)(error.into_error()))?;
    file.sync_all().map_err(Error::io("sync", partial))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in `directory` last.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    // Only Unix lets a directory be opened and synced; elsewhere the rename alone has to do.
    if cfg!(unix) {
        let opened = File::open(directory).map_err(Error::io("open", directory))?;
        opened.sync_all().map_err(Error::io("sync", directory))?;
    }
    Ok(())
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
    fn the_content_replaces_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_bytes_atomically(&path, b"one").unwrap();
        write_bytes_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn nothing_is_seen_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomically(&path, |file| {
            file.write_all(b"half").unwrap();
            file.flush().unwrap();
            assert!(!path.exists());
            assert_eq!(names(directory.path()), [".file.partial"]);
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"half");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_bytes_atomically(&path, b"old").unwrap();
        let failure = write_atomically(&path, |file| {
            file.write_all(b"new").unwrap();
            Err(Error::invalid("field", "this", "that"))
        });
        assert!(failure.unwrap_err().to_string().contains("expected this, found that"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn a_crash_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".file.partial"), b"longer than what follows").unwrap();
        write_bytes_atomically(&directory.path().join("file"), b"whole").unwrap();
        assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"whole");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let message = write_bytes_atomically(&directory.path().join("absent/file"), b"").unwrap_err().to_string();
        assert!(message.contains("cannot create") && message.contains("absent"), "{message}");
        assert!(write_bytes_atomically(Path::new(".."), b"").is_err());
    }
}
