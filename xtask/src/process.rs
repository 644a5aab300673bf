//! Child processes that never outlive us: steps that run to their end, and servers that run until dropped. A signal
//! (Ctrl-C, SIGTERM, or the terminal closing) only raises a flag; whoever waits looks at it, ends its child and fails, and
//! what is started elsewhere ends by being dropped on the way out.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks at its child and at the flag.
const POLL: Duration = Duration::from_millis(20);

/// How long a child may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(8);

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The two calls of the C library that std has no name for; a crate for them would be most of xtask's compile time.
mod c {
    #![allow(unsafe_code, reason = "signal(2) and kill(2) have no safe name in std")]

    unsafe extern "C" {
        fn signal(signal: i32, handler: extern "C" fn(i32)) -> usize;
        fn kill(process: i32, signal: i32) -> i32;
    }

    extern "C" fn raise_flag(_signal: i32) {
        super::INTERRUPTED.store(true, super::Ordering::SeqCst);
    }

    pub(super) fn catch(number: i32) {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { signal(number, raise_flag) };
    }

    /// Sends a signal to a process, or to a whole group if `process` is negative; a process that is gone is no error.
    pub(super) fn send(process: i32, number: i32) {
        // SAFETY: kill(2) touches no memory of ours.
        unsafe { kill(process, number) };
    }
}

/// From now on, the signals that ask us to end raise a flag instead of ending us on the spot.
pub(crate) fn catch_signals() {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        c::catch(signal);
    }
}

/// Fails once a signal has asked us to end.
pub(crate) fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for a while, or until a signal asks us to end, and tells whether one has.
pub(crate) fn interrupted_within(time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end && check_interrupted().is_ok() {
        thread::sleep(POLL);
    }
    check_interrupted().is_err()
}

/// Runs a command to its end, its output passing through, and tells what it is and how long it took.
///
/// # Errors
/// When it cannot be started, fails, or a signal asks us to end (the command is then ended first).
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what}");
    let started = Instant::now();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default()
        .display()
        .to_string();
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if check_interrupted().is_err() {
            end(&mut child);
            bail!("interrupted while {what}");
        }
        thread::sleep(POLL);
    };
    if !status.success() {
        check_interrupted()?;
        bail!("`{program}` failed while {what} ({status})");
    }
    eprintln!("xtask: {what}: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Asks a child to end and, after [`GRACE`], makes it.
fn end(child: &mut Child) -> Option<ExitStatus> {
    let id = i32::try_from(child.id()).ok()?;
    c::send(id, SIGTERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        thread::sleep(POLL);
    }
    c::send(id, SIGKILL);
    child.wait().ok()
}

/// A server in the background, in a process group of its own (so that Ctrl-C reaches it only through us, in the right
/// order), with its output in a file. Dropping it ends it and whatever it has started.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command`; its standard output and error go to `log`.
    ///
    /// # Errors
    /// When the file cannot be created or the command not started.
    pub(crate) fn start(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name,
            child,
            log: log.to_path_buf(),
        })
    }

    /// Fails, with the end of its log, if the server is no longer running.
    ///
    /// # Errors
    /// As said, and when a signal asks us to end.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        check_interrupted()?;
        if let Some(status) = self.child.try_wait()? {
            return Err(self.explain(&anyhow!("{} has ended ({status})", self.name)));
        }
        Ok(())
    }

    /// Asks `probe` again and again until it gives an answer.
    ///
    /// # Errors
    /// When `probe` fails, the server ends, a signal asks us to end, or the time is over.
    pub(crate) fn wait_until<T>(&mut self, time: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + time;
        loop {
            self.check_running()?;
            if let Some(answer) = probe()? {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                return Err(self.explain(&anyhow!("{} is not ready after {} s", self.name, time.as_secs())));
            }
            thread::sleep(POLL);
        }
    }

    /// The error with the last lines of the server's log, which often tell its cause.
    pub(crate) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        anyhow!("{error:#}\nThe log of {} ends with:\n{tail}", self.name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            end(&mut self.child);
        }
        // Whatever it has started and left behind.
        if let Ok(group) = i32::try_from(self.child.id()) {
            c::send(-group, SIGKILL);
        }
    }
}
