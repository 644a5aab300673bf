//! A child process that is ended and reaped when its handle is dropped.
//!
//! A thread of its own starts it, reads its log to the end and reaps it. The thread lives as long as the process, because
//! the kernel's "kill it when its parent dies" means the thread that started it, not the program.

use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end in good order before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    // None when it is about to be reaped, after which the ID may be another's.
    running: Arc<Mutex<Option<Pid>>>,
    // In a mutex only because a receiver is not Sync.
    ended: Mutex<mpsc::Receiver<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a process; each line of its standard error goes to the closure, which is dropped when there are no more.
    pub(super) fn start(mut command: Command, on_line: impl FnMut(String) + Send + 'static) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // Ctrl-C in a terminal is for us; the process ends when we say so.
        command.process_group(0);
        die_with_this_program(&mut command);

        let running = Arc::new(Mutex::new(None));
        let (started, is_started) = mpsc::sync_channel(1);
        let (ending, ended) = mpsc::channel();
        let keeper = {
            let running = running.clone();
            thread::Builder::new().name("child-process".to_owned()).spawn(move || {
                keep(command, on_line, &started, &running);
                drop(ending);
            })?
        };
        let pid = is_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
        Ok(Self {
            pid,
            running,
            ended: Mutex::new(ended),
            keeper: Some(keeper),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.running.lock() {
            // Fails only if the process has ended.
            _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        if self.ended.get_mut().recv_timeout(GRACE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(pid = self.pid, "process killed, as it does not end");
            self.signal(Signal::KILL);
        }
        if let Some(keeper) = self.keeper.take() {
            // Fails only if the thread panicked, and then the process dies with it.
            _ = keeper.join();
        }
    }
}

/// The life of a process, from start to end.
fn keep(
    mut command: Command,
    mut on_line: impl FnMut(String),
    started: &mpsc::SyncSender<io::Result<u32>>,
    running: &Mutex<Option<Pid>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            _ = started.send(Err(error));
            return;
        }
    };
    *running.lock() = Pid::from_raw(child.id().cast_signed());
    _ = started.send(Ok(child.id()));
    let log = child
        .stderr
        .take()
        .into_iter()
        .flat_map(|log| BufReader::new(log).split(b'\n'));
    for line in log.map_while(Result::ok) {
        on_line(String::from_utf8_lossy(&line).into_owned());
    }
    *running.lock() = None;
    // The log ends with the process. If not, nobody would see any more what it does.
    _ = child.kill();
    match child.wait() {
        Ok(status) => tracing::debug!(pid = child.id(), %status, "process ended"),
        Err(error) => tracing::warn!(pid = child.id(), %error, "process not reaped"),
    }
}

#[cfg(target_os = "linux")]
fn die_with_this_program(command: &mut Command) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before we asked.
        match getppid() {
            Some(pid) if pid == parent => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    #[allow(unsafe_code, reason = "only `pre_exec` reaches the child before it is the server")]
    // SAFETY: between fork and exec only async-signal-safe functions may run, and no memory may be allocated. These are
    // the system calls prctl and getppid, and neither of the two errors allocates.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_this_program(_command: &mut Command) {}
