//! Clears away the machines of a node that was killed.
//!
//! A jailed process changes its user, and with that the kernel forgets that it was to die with its node. Who still lives
//! is known by its root, which is the machine's folder.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Time a killed process has to be gone.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Ends every machine that is in this folder, and removes what is left of it; `also` does so elsewhere. Blocks.
pub(super) fn sweep(machines: &Path, also: impl Fn(&str) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(machines)? {
        let entry = entry?;
        let folder = entry.path();
        if let Ok(root) = fs::metadata(folder.join("root")) {
            end_those_in((root.dev(), root.ino()))?;
        }
        also(&entry.file_name().to_string_lossy())?;
        fs::remove_dir_all(&folder)?;
        tracing::info!(folder = %folder.display(), "removed what was left of a machine");
    }
    Ok(())
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
