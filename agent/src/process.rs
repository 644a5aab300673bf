//! The agent as a process: arguments, logs, signals, panics and exit codes around a session.
//!
//! The process ends when its link does, so it never outlives its node, and ends by `_exit`: threads may be busy in code
//! that cannot be stopped, and no destructor may run beside them.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use nex_runtime::engine::Engine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::confine::{self, ConfineOptions, Layer};
use crate::crash;
use crate::guest::handover;
use crate::link::{LinkError, descriptor};
use crate::session::{self, SessionEnd};

/// Where the link is, and what the process may do beside.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Connect to the node at this Unix socket; without it the link is standard input, a connected socket.
    #[arg(long, value_name = "PATH")]
    pub link_path: Option<PathBuf>,
    /// Layers of confinement.
    #[command(flatten)]
    pub confinement: ConfineOptions,
    /// Standard input is a socket to nex-init, which sends the link's descriptor when the virtual machine is to work
    #[arg(long, conflicts_with = "link_path")]
    pub wait_for_link: bool,
}

/// Exit code of an agent that panicked.
pub const PANIC_EXIT_CODE: i32 = 101;

/// Why the process ended; the numbers are those of `sysexits.h`, the panic's is Rust's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Ok = 0,
    /// The engine did not start.
    Engine = 70,
    /// The process could not be confined.
    Confinement = 71,
    /// There is no link, or it failed.
    Link = 74,
    /// The node does not keep to the protocol, or to another version of it.
    Protocol = 76,
    Panic = PANIC_EXIT_CODE as isize,
}

/// Runs the agent until its link ends, then ends the process.
///
/// Call it in `main` before any other thread exists: `engine` is called on this thread first of all, because V8 wants
/// to be set up before the threads that will use it. With the layer of namespaces, `main` runs twice: what comes before
/// this call must bear that.
pub fn run<E: std::fmt::Display>(options: &Options, engine: impl FnOnce() -> Result<Arc<dyn Engine>, E>) -> ! {
    start_logs();
    confine(options);
    exit_on_panic();
    if let Err(error) = crash::report_signals() {
        tracing::warn!(%error, "if this process crashes, it will not say of what");
    }
    let exit = match engine() {
        Ok(engine) => serve(options, engine),
        Err(error) => {
            tracing::error!("the engine did not start: {error}");
            Exit::Engine
        }
    };
    tracing::debug!(?exit, "exit");
    exit_now(exit);
}

/// Returns in the process that is to serve, with all its layers on.
fn confine(options: &Options) {
    if options.confinement.probe_confinement {
        let printed = serde_json::to_writer(io::stdout(), &confine::probe(&options.confinement))
            .map_err(io::Error::from)
            .and_then(|()| io::stdout().write_all(b"\n"));
        if let Err(error) = printed {
            tracing::error!("{error}");
        }
        exit_now(Exit::Ok);
    }
    let without_paths = [Layer::Namespaces, Layer::Landlock, Layer::Seccomp];
    if options.link_path.is_some()
        && let Some(layer) = without_paths.into_iter().find(|layer| options.confinement.has(*layer))
    {
        tracing::error!(
            "--link-path: with --confine={layer} no socket can be connected to; give the link as standard input"
        );
        exit_now(Exit::Confinement);
    }
    match confine::enter(&options.confinement) {
        Ok(None) => {}
        Ok(Some(ended)) => confine::end_like(ended),
        Err(error) => {
            tracing::error!("not confined: {error}");
            exit_now(Exit::Confinement);
        }
    }
}

/// Logs go to standard error without time or colour: the node reads them there and logs them as its own.
fn start_logs() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,nex=info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time()
        .try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logs were set up before");
    }
}

/// A panic anywhere ends the process: the node replaces agents, and half an agent is worse than none.
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "{panic}");
        crash::report(" (panic)");
        exit_now(Exit::Panic);
    }));
}

fn serve(options: &Options, engine: Arc<dyn Engine>) -> Exit {
    // One thread serves the link; functions have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no runtime: {error}");
            return Exit::Link;
        }
    };
    let served = ignore_signals_on(&runtime)
        .and_then(|()| connect(options, &engine, &runtime))
        .map_err(LinkError::from)
        .and_then(|(reader, writer)| runtime.block_on(session::serve(reader, writer, engine)));
    match served {
        Ok(SessionEnd::Closed | SessionEnd::Drained) => Exit::Ok,
        Err(LinkError::Io(error)) => {
            tracing::error!("{error}");
            Exit::Link
        }
        Err(error) => {
            tracing::error!("{error}");
            Exit::Protocol
        }
    }
}

/// Ctrl-C in a terminal and a service manager's stop reach the whole process group. They are the node's to act on: it
/// drains its agents, and its end ends them.
fn ignore_signals_on(runtime: &Runtime) -> io::Result<()> {
    let _runtime = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        // The handler stays in place although nobody listens to it.
        drop(signal(kind)?);
    }
    Ok(())
}

/// The halves of the link.
type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

fn connect(options: &Options, engine: &Arc<dyn Engine>, runtime: &Runtime) -> io::Result<Halves> {
    if options.wait_for_link {
        let mut init = inherited_link()?;
        // What there is by now is in each copy of this machine.
        runtime.block_on(engine.ready());
        let link = handover::wait_for_link(&mut init)?;
        let _runtime = runtime.enter();
        let (reader, writer) = descriptor::split(link)?;
        return Ok((Box::new(reader), Box::new(writer)));
    }
    let link = match &options.link_path {
        Some(path) => StdUnixStream::connect(path)?,
        None => inherited_link()?,
    };
    link.set_nonblocking(true)?;
    let _runtime = runtime.enter();
    let (reader, writer) = UnixStream::from_std(link)?.into_split();
    Ok((Box::new(reader), Box::new(writer)))
}

/// Takes the socket out of standard input, so that no child process inherits it.
fn inherited_link() -> io::Result<StdUnixStream> {
    let stdin = io::stdin();
    if rustix::net::sockopt::socket_type(&stdin).is_err() {
        return Err(io::Error::other(
            "standard input is not a link: nex-agent is started by a nex node",
        ));
    }
    let link: OwnedFd = stdin.as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(link.into())
}

/// Ends the process at once: no destructors, no `atexit` handlers.
fn exit_now(exit: Exit) -> ! {
    confine::exit(exit as i32)
}
