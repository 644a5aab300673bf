//! Folders that are replaced as a whole: what is under the name is always complete, be it the old or the new, and two
//! processes that make the same one do so one after the other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

/// Holds a lock file until dropped. The system releases it as well when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. The file is made, with the folders above it, and stays.
    pub(crate) fn acquire(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A folder in the making. Dropped before it is committed, it leaves nothing behind; what a process that was killed left
/// is removed by the next one.
#[derive(Debug)]
pub(crate) struct Replacement {
    target: PathBuf,
    partial: PathBuf,
    _lock: Lock,
}

impl Replacement {
    /// Makes an empty folder that will take the place of `target`.
    pub(crate) fn begin(target: &Path) -> io::Result<Self> {
        let target = std::path::absolute(target)?;
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let beside = |ending: &str| target.with_file_name(format!(".{}.{ending}", name.to_string_lossy()));
        let lock = Lock::acquire(&beside("lock"))?;
        let partial = beside("partial");
        remove(&partial)?;
        fs::create_dir(&partial)?;
        Ok(Self {
            target,
            partial,
            _lock: lock,
        })
    }

    /// The folder to fill.
    pub(crate) fn folder(&self) -> &Path {
        &self.partial
    }

    /// Puts it under its name. What was there is removed, after it was exchanged with the new one at once.
    pub(crate) fn commit(self) -> io::Result<()> {
        match renameat_with(CWD, &self.partial, CWD, &self.target, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => fs::rename(&self.partial, &self.target),
            // A file system that cannot exchange: there is no name for a moment.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                remove(&self.target)?;
                fs::rename(&self.partial, &self.target)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.partial) {
            tracing::warn!("{}: {error}", self.partial.display());
        }
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn a_folder_is_replaced_when_it_is_complete_and_not_before() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("deep/image");
        let content = || fs::read_to_string(target.join("file")).ok();
        for text in ["one", "two"] {
            let before = content();
            let dropped = Replacement::begin(&target).unwrap();
            fs::write(dropped.folder().join("file"), "half").unwrap();
            assert_eq!(content(), before);
            drop(dropped);
            assert_eq!(content(), before);

            let replacement = Replacement::begin(&target).unwrap();
            assert!(!replacement.folder().join("file").exists());
            fs::write(replacement.folder().join("file"), text).unwrap();
            replacement.commit().unwrap();
            assert_eq!(content().as_deref(), Some(text));
        }
        let left: Vec<_> = fs::read_dir(target.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
