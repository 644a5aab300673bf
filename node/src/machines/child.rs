//! A child process that several parties look after: one waits for it, another kills it, a third asks how it is.
//!
//! The kernel kills it when the node ends, however that happens. It does so at the end of the thread that started it,
//! not of the process, hence one thread that starts them all and lives as long as the node.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::MachineStats;

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct MachineProcess {
    pid: u32,
    ended: watch::Receiver<Option<ExitStatus>>,
    killed: CancellationToken,
    stdout: Mutex<Option<ChildStdout>>,
    stderr: Mutex<Option<ChildStderr>>,
}

impl MachineProcess {
    /// Starts it, in a process group of its own so that a Ctrl-C in the terminal is the node's alone. `clean_up` runs when
    /// the process is gone and before anybody is told so.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn spawn(mut command: Command, clean_up: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        let mut child = spawner().spawn(command).await?;
        let pid = child.id().unwrap_or_default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (tell, ended) = watch::channel(None);
        let killed = CancellationToken::new();
        tokio::spawn(watch_over(child, killed.clone(), tell, clean_up));
        Ok(Self {
            pid,
            ended,
            killed,
            stdout: Mutex::new(stdout),
            stderr: Mutex::new(stderr),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn kill(&self) {
        self.killed.cancel();
    }

    /// Kills it when it is cancelled; for those who do not keep it alive.
    pub(crate) fn kill_switch(&self) -> CancellationToken {
        self.killed.clone()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// How it ended, once it has and is cleaned up after.
    pub(crate) async fn wait(&self) -> ExitStatus {
        self.ending().await
    }

    /// As [`wait`](Self::wait), for those who do not keep it alive.
    pub(crate) fn ending(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(status) => status.unwrap_or_default(),
                // The runtime is going down, and the process with it.
                Err(_) => ExitStatus::default(),
            }
        }
    }

    pub(crate) fn take_stdout(&self) -> Option<ChildStdout> {
        self.stdout.lock().take()
    }

    pub(crate) fn take_stderr(&self) -> Option<ChildStderr> {
        self.stderr.lock().take()
    }
}

impl Drop for MachineProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn watch_over(
    mut child: Child,
    killed: CancellationToken,
    tell: watch::Sender<Option<ExitStatus>>,
    clean_up: impl FnOnce() + Send + 'static,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = killed.cancelled() => {
            if let Err(error) = child.start_kill() {
                tracing::debug!(pid = child.id(), %error, "kill");
            }
            child.wait().await
        }
    };
    let status = status.unwrap_or_else(|error| {
        tracing::warn!(%error, "the end of a machine's process is unknown");
        ExitStatus::default()
    });
    if let Err(error) = tokio::task::spawn_blocking(clean_up).await {
        tracing::warn!(%error, "clean-up after a machine");
    }
    tell.send_replace(Some(status));
}

#[allow(unsafe_code, reason = "std has no safe way to do something between fork and exec")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe functions may be called; prctl and getppid are system calls.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before that.
            let alive =
                rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent);
            if alive {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
}

/// Has the kernel end this process, and those it starts, before the node and others when the host is out of memory.
#[allow(unsafe_code, reason = "std has no safe way to do something between fork and exec")]
pub(crate) fn die_before_others(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; these are system calls.
    unsafe {
        command.pre_exec(|| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            // Where there is no such file, the kernel chooses as it likes.
            if let Ok(score) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
                _ = rustix::io::write(score, OOM_SCORE);
            }
            Ok(())
        });
    }
}

/// What is added to a machine's score by which the kernel chooses; 1,000 stands for all memory of the host.
const OOM_SCORE: &[u8] = b"500";

/// The thread that starts the processes.
struct Spawner(mpsc::Sender<Job>);

type Job = (Command, tokio::runtime::Handle, oneshot::Sender<io::Result<Child>>);

impl Spawner {
    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the thread that starts processes is gone");
        let (reply, result) = oneshot::channel();
        self.0
            .send((command, tokio::runtime::Handle::current(), reply))
            .map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

fn spawner() -> &'static Spawner {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for (mut command, runtime, reply) in inbox {
                // tokio registers the child with the reactor of the caller's runtime.
                let _runtime = runtime.enter();
                _ = reply.send(command.spawn());
            }
        });
        if let Err(error) = thread {
            tracing::error!(%error, "no thread to start processes with");
        }
        Spawner(jobs)
    })
}

/// What a process takes, from `/proc`.
pub(crate) fn stats_of(pid: u32) -> MachineStats {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |key: &str| {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_suffix("kB")?.trim().parse::<u64>().ok())
            .unwrap_or_default()
    };
    MachineStats {
        resident_bytes: kib("Rss:") << 10,
        proportional_bytes: kib("Pss:") << 10,
        cpu_time: cpu_time_of(pid).unwrap_or_default(),
        guest_available_bytes: None,
    }
}

fn cpu_time_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_micros(ticks * 1_000_000 / per_second))
}

/// Leaves descriptors open in the child, under their own numbers. They are closed on this side when the command is dropped.
#[allow(unsafe_code, reason = "std has no safe way to do something between fork and exec")]
pub(crate) fn pass_on(command: &mut Command, descriptors: Vec<OwnedFd>) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; fcntl is a system call.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &descriptors {
                rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// A command with nothing of the node's own: no environment, standard streams closed or piped.
pub(crate) fn bare_command(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
