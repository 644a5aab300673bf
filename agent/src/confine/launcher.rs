//! The launcher: starts PID 1 of the new namespaces, tells the kernel which ids are which, and waits. It stays outside,
//! holds nothing of the agent's, and ends as the agent does, so that whoever started it sees what it would see of an agent
//! that was not confined.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::failure::{Message, exit};
use super::inside::{self, Outside, Pipes};
use super::plan::{INNER_ID, Plan};
use super::{ConfineError, Ended, Layer};

const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Signals to a whole process group, which are the node's to act on.
const GROUP_SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Runs the plan and waits until all that came of it is gone.
pub(super) fn launch(plan: Plan) -> Result<Ended, ConfineError> {
    let error = |step: &str, source: io::Error| ConfineError::step(Layer::Namespaces, step, source);
    if plan.as_root {
        // The kernel lets nobody do that inside.
        rustix::thread::set_thread_groups(&[]).map_err(|source| error("leave all groups", source.into()))?;
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|source| error("make a pipe", source.into()));
    let (go, tell_go) = pipe()?;
    let (messages, tell) = pipe()?;
    ignore_group_signals();
    let outside = Outside { tell_go, messages };
    let pipes = Pipes { go, tell, outside };
    let init = clone_into_namespaces(&plan, &pipes).map_err(|source| error("make namespaces", source))?;
    // With the inner ends gone, the end of those inside shows.
    let Outside { tell_go, messages } = pipes.outside;
    drop((pipes.go, pipes.tell));
    // Nobody but the agent holds its link: its end is the end of the link.
    let null = std::fs::File::open("/dev/null").map_err(|source| error("open /dev/null", source))?;
    rustix::stdio::dup2_stdin(&null).map_err(|source| error("let go of the link", source.into()))?;
    let outcome = see_through(&plan, init, &tell_go, &messages);
    if outcome.is_err() {
        _ = kill_process(init, Signal::KILL);
    }
    // It is gone when all in its namespaces is.
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(init), WaitOptions::empty()));
    waited.map_err(|source| error("wait for the agent", source.into()))?;
    outcome
}

fn see_through(plan: &Plan, init: Pid, tell_go: &OwnedFd, messages: &OwnedFd) -> Result<Ended, ConfineError> {
    let error = |step: &str, source| ConfineError::step(Layer::Namespaces, step, source);
    map_ids(plan, init).map_err(|source| error("map user and group", source))?;
    rustix::io::write(tell_go, &[1]).map_err(|source| error("start the agent", source.into()))?;
    match Message::receive(messages).map_err(|source| error("wait for the agent", source))? {
        Some(Message::Failed(failure)) => {
            let path = failure.file.and_then(|file| plan.path(file));
            Err(failure.describe(path).into())
        }
        Some(Message::Ended(status)) => Ok(ended(status)),
        // PID 1 was killed, and the agent with it.
        None => Ok(Ended::Signal(libc::SIGKILL)),
    }
}

/// Starts the first process of the new namespaces, as a copy of this one.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn clone_into_namespaces(plan: &Plan, pipes: &Pipes) -> io::Result<Pid> {
    let flags = libc::c_long::from(NAMESPACES | libc::SIGCHLD);
    let zero: libc::c_long = 0;
    // SAFETY: without CLONE_VM this is a fork: the child has memory of its own. It makes system calls only, until it
    // executes another program or exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, zero, zero, zero, zero) };
    match i32::try_from(pid).ok() {
        Some(0) => inside::first_process(plan, pipes),
        Some(pid) if pid > 0 => Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map_ids(plan: &Plan, init: Pid) -> io::Result<()> {
    let folder = format!("/proc/{}", init.as_raw_nonzero());
    let (uid, gid) = plan.outer;
    std::fs::write(format!("{folder}/setgroups"), "deny")?;
    std::fs::write(format!("{folder}/uid_map"), format!("{INNER_ID} {uid} 1"))?;
    std::fs::write(format!("{folder}/gid_map"), format!("{INNER_ID} {gid} 1"))
}

fn ended(status: i32) -> Ended {
    if libc::WIFEXITED(status) {
        Ended::Code(libc::WEXITSTATUS(status))
    } else {
        Ended::Signal(libc::WTERMSIG(status))
    }
}

#[allow(unsafe_code, reason = "std has no signal handlers")]
fn ignore_group_signals() {
    for signal in GROUP_SIGNALS {
        // SAFETY: no handler is installed, and no memory touched.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Makes those signals what they were, for the agent.
#[allow(unsafe_code, reason = "std has no signal handlers")]
pub(super) fn restore_group_signals() {
    for signal in GROUP_SIGNALS {
        // SAFETY: as above.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ends this process by a signal.
#[allow(unsafe_code, reason = "std has no signal handlers")]
pub(super) fn die_of(signal: i32) -> ! {
    // The agent's memory is what a core would be wanted of, not the launcher's.
    _ = rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    );
    // SAFETY: no handler is installed; signals to this process touch no memory.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
    // Not every signal ends a process. Those do not end an agent either.
    exit(128 + signal)
}

/// Whether the launcher is gone: its end of a pipe is closed.
pub(super) fn is_gone(pipe: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(&pipe, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Nothing else comes through this pipe any more.
    !matches!(poll(&mut polled, Some(&now)), Ok(0))
}
