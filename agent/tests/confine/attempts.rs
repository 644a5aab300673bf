//! Starts the program that tries to break out, and has it try.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::escape_probe::{self, escape_probe};
pub(crate) use crate::escape_probe::{Outcome, within};
use crate::link::Link;

pub(crate) const ALL: &str = "namespaces,landlock,seccomp,rlimits";

pub(crate) struct Prisoner {
    pub(crate) child: Child,
    pub(crate) link: Link,
}

/// The program with these layers; none of them if the text is empty.
pub(crate) fn command(layers: &str) -> Command {
    let mut command = Command::new(escape_probe());
    command.env_clear();
    if !layers.is_empty() {
        command.arg(format!("--confine={layers}"));
    }
    command
}

impl Prisoner {
    pub(crate) async fn start(layers: &str) -> Self {
        Self::start_command(command(layers)).await
    }

    pub(crate) async fn start_command(mut command: Command) -> Self {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // With the command goes our copy of the agent's end.
        drop(command);
        ours.set_nonblocking(true).unwrap();
        let mut link = Link::new(UnixStream::from_std(ours).unwrap());
        if let Err(instead) = escape_probe::settle(&mut link).await {
            let output = child.wait_with_output().await.unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            panic!("{instead}, {}: {stderr}", output.status);
        }
        Self { child, link }
    }

    pub(crate) async fn attempt(&mut self, probe: &str) -> Outcome {
        match escape_probe::attempt(&mut self.link, probe).await {
            Some(outcome) => outcome,
            None => Outcome::Died(within(self.child.wait()).await.unwrap()),
        }
    }

    /// What it sees, by an attempt that is none.
    pub(crate) async fn show(&mut self, probe: &str) -> String {
        match self.attempt(probe).await {
            Outcome::Succeeded(detail) => detail,
            other => panic!("{probe}: {other:?}"),
        }
    }

    /// The PID 1 above the agent and the agent, as the host sees them.
    pub(crate) fn family(&self) -> (u32, u32) {
        let init = only_child(self.child.id().unwrap());
        (init, only_child(init))
    }

    pub(crate) async fn end(mut self) -> ExitStatus {
        self.link.outbox.close();
        drop(self.link);
        within(self.child.wait()).await.unwrap()
    }

    /// How it ended, and what it said last.
    pub(crate) async fn last_words(mut self) -> (ExitStatus, String) {
        let mut words = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        within(stderr.read_to_string(&mut words)).await.unwrap();
        (within(self.child.wait()).await.unwrap(), words)
    }
}

/// One attempt of an agent of its own.
pub(crate) async fn attempt(layers: &str, probe: &str) -> Outcome {
    Prisoner::start(layers).await.attempt(probe).await
}

fn only_child(parent: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// Waits until a process is gone, zombies included.
pub(crate) async fn gone(pid: u32) {
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "process {pid} stays");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
