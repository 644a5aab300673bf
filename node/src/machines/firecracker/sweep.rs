//! Clears away the machines of a node that was killed.
//!
//! A jailed process changes its user, and with that the kernel forgets that it was to die with its node. Who still lives
//! is known by its root, which is the machine's folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Time a killed process has to be gone.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Beside a machine's root: the path of its control group, if it has one.
pub(super) const CGROUP: &str = "cgroup";

/// Ends every machine whose folder is in this runtime folder, and removes its control group. The folders stay. Blocks.
///
/// # Errors
/// What the system says; some machines may be left then.
pub(crate) fn sweep(runtime_dir: &Path) -> io::Result<()> {
    for kind in folders_in(runtime_dir)? {
        for machine in folders_in(&kind)? {
            if let Ok(root) = fs::metadata(machine.join("root")) {
                end_those_in((root.dev(), root.ino()))?;
            }
            if let Ok(group) = fs::read(machine.join(CGROUP)) {
                remove_cgroup(Path::new(OsStr::from_bytes(&group)))?;
            }
        }
    }
    Ok(())
}

fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    let folders = entries
        .iter()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(fs::DirEntry::path).collect())
}

/// Removes a machine's control group, if it is there.
pub(super) fn remove_cgroup(group: &Path) -> io::Result<()> {
    // Threads that the kernel has made for the guest may be in it for a moment longer than the process.
    for _ in 0..50 {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(10)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    fs::remove_dir(group)
}

/// Kills the processes whose root this is, and waits until they are gone.
fn end_those_in(root: (u64, u64)) -> io::Result<()> {
    let is_in = |pid: Pid| {
        let root_of = fs::metadata(format!("/proc/{}/root", pid.as_raw_nonzero()));
        root_of.is_ok_and(|found| (found.dev(), found.ino()) == root)
    };
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| is_in(*pid)) else {
            continue;
        };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // The number may have become another's before the descriptor was its own.
        if !is_in(pid) {
            continue;
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE))? == 0 {
            let pid = pid.as_raw_nonzero();
            return Err(io::Error::other(format!(
                "process {pid} of an earlier machine does not die"
            )));
        }
    }
    Ok(())
}
