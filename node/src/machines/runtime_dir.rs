//! The folder in which a node keeps what its machines need while they run: sockets, mostly. Each node has one of its own,
//! which it holds locked for as long as it lives.
//!
//! Whoever starts a node sweeps up after those that were killed: a folder whose lock can be taken has no owner. Processes
//! that outlived their node (the kernel kills most with it) are known by that folder in their arguments.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::{MachineError, firecracker};

const PREFIX: &str = "node-";
const LOCK: &str = "lock";

/// A node's own folder. Dropping it removes it.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    /// Locked until it is closed, by whatever end.
    _lock: File,
}

impl RuntimeDir {
    /// Sweeps up after dead nodes and makes a folder for this one in `base`, which is made if it is not there. Names in it
    /// are short, because the path of a Unix socket may have 107 bytes.
    ///
    /// # Errors
    /// [`MachineError::File`]
    pub fn claim(base: &Path) -> Result<Self, MachineError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| MachineError::File { path, source }
        };
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(base).map_err(file(base))?;
        sweep(base).map_err(file(base))?;
        // Locked before it has the name by which others look for it.
        let made = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(base)
            .map_err(file(base))?;
        let lock = File::create(made.path().join(LOCK)).map_err(file(made.path()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| file(made.path())(error.into()))?;
        let name = made
            .path()
            .file_name()
            .map(|name| name.to_string_lossy().replace(".new-", ""));
        let path = base.join(format!("{PREFIX}{}-{}", std::process::id(), name.unwrap_or_default()));
        fs::rename(made.path(), &path).map_err(file(&path))?;
        _ = made.keep();
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "runtime folder not removed");
        }
    }
}

/// Removes the folders that have no owner any more, and kills the processes that belong to them.
fn sweep(base: &Path) -> io::Result<()> {
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !ours || !is_orphaned(&path) {
            continue;
        }
        let killed = kill_processes_of(&path)?;
        // Those in a jail have forgotten their node, and show no folder in their arguments.
        if let Err(error) = firecracker::sweep(&path) {
            tracing::warn!(path = %path.display(), %error, "machines of a node that was killed are left");
            continue;
        }
        tracing::warn!(path = %path.display(), killed, "swept up after a node that was killed");
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "not removed");
        }
    }
    Ok(())
}

/// Whether nobody holds the lock. A folder that cannot be looked into is somebody else's.
fn is_orphaned(path: &Path) -> bool {
    match File::open(path.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Kills whatever names the folder, or something in it, in its arguments.
fn kill_processes_of(folder: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| pid.as_raw_nonzero().get().cast_unsigned() != std::process::id()) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if names(&arguments, folder) && kill_process(pid, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    Ok(killed)
}

fn names(arguments: &[u8], folder: &Path) -> bool {
    let wanted = folder.as_os_str().as_encoded_bytes();
    arguments.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Waits for what another process does.
    fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(met) = condition() {
                return met;
            }
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            sleep(Duration::from_millis(1));
        }
    }

    /// A process that does nothing, once the kernel shows its arguments: after `spawn` it does so only a moment later.
    fn idle(arguments: &[&Path]) -> Child {
        let mut command = Command::new("sh");
        command
            .args(["-c", "read _", "sh"])
            .args(arguments)
            .stdin(Stdio::piped());
        let child = command.spawn().unwrap();
        let shown = format!("/proc/{}/cmdline", child.id());
        until("arguments shown", || {
            let shown = fs::read(&shown).unwrap();
            shown.starts_with(b"sh\0-c\0").then_some(())
        });
        child
    }

    #[test]
    fn what_a_dead_node_left_is_swept_up_and_what_a_living_one_has_stays() {
        let base = tempfile::tempdir().unwrap();
        let living = RuntimeDir::claim(base.path()).unwrap();
        fs::write(living.path().join("socket"), "").unwrap();

        let dead = base.path().join("node-1-dead");
        fs::create_dir_all(dead.join("machine")).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let mut left = idle(&[&dead.join("machine")]);
        let mut other = idle(&[]);

        let next = RuntimeDir::claim(base.path()).unwrap();
        assert!(!dead.exists());
        let status = until("it is killed", || left.try_wait().unwrap());
        assert_eq!(status.signal(), Some(9), "{status}");
        assert!(other.try_wait().unwrap().is_none(), "it is no concern of the node's");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(living.path().join("socket").exists());

        let path = next.path().to_owned();
        drop((living, next));
        assert!(!path.exists());
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RuntimeDir::claim(&file.path().join("run")).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
