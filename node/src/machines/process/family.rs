//! The processes of one machine as the host sees them. With namespaces there are three: the launcher, which the node
//! started, the PID 1 below it, and the agent below that.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long the processes below a dead launcher may take to go, which the kernel sees to.
const PATIENCE: Duration = Duration::from_secs(5);

/// The processes below the one that the node started.
#[derive(Debug, Default)]
pub(super) struct Family {
    agent: OnceLock<u32>,
    /// PID 1, which goes last.
    init: OnceLock<OwnedFd>,
}

impl Family {
    /// Looks for them, below the process that was started.
    pub(super) fn find(&self, started: u32, nested: bool) {
        if !nested {
            _ = self.agent.set(started);
            return;
        }
        let Some(init) = only_child(started) else { return };
        let handle = i32::try_from(init).ok().and_then(Pid::from_raw);
        if let Some(Ok(handle)) = handle.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            _ = self.init.set(handle);
        }
        if let Some(agent) = only_child(init) {
            _ = self.agent.set(agent);
        }
    }

    /// The agent, if it was found.
    pub(super) fn agent(&self) -> Option<u32> {
        self.agent.get().copied()
    }

    /// Blocks until they are gone, once the process that was started is.
    pub(super) fn wait_until_gone(&self) {
        let Some(init) = self.init.get() else { return };
        let patience = Timespec::try_from(PATIENCE).ok();
        let mut polled = [PollFd::new(init, PollFlags::IN)];
        match rustix::event::poll(&mut polled, patience.as_ref()) {
            Ok(0) => tracing::warn!("an agent outlives its launcher"),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "wait for an agent's PID 1"),
        }
    }
}

/// The first child of any thread of a process.
fn only_child(parent: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let from_list = tasks.flatten().find_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).ok()?;
        children.split_ascii_whitespace().next()?.parse().ok()
    });
    // Not every kernel keeps that list.
    from_list.or_else(|| search_child(parent))
}

fn search_child(parent: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // The name, in parentheses, may itself contain anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let its_parent: u32 = fields.split_ascii_whitespace().nth(1)?.parse().ok()?;
        (its_parent == parent).then_some(pid)
    })
}
