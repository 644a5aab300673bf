//! The V8 platform of the process and the thread it belongs to.
//!
//! On processors with memory protection keys, V8 protects its code pages per thread: only threads that descend from the
//! one that initialised the platform may run isolates. Rather than ask every program and every test to initialise V8
//! first thing in `main`, one thread of ours does it and starts all isolate threads.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use deno_core::{JsRuntime, v8_set_flags};

use super::{fatal, pages, runners};

/// V8's flags beside deno_core's own.
const FLAGS: [&str; 2] = [
    // The loop unrolling of V8 15.0 drops stack checks: `for(;;)new Array(1000).fill(1)` could not be terminated.
    "--no-turboshaft-loop-unrolling",
    // Else pages of a dropped isolate go to task runners of parked isolates and stay resident.
    "--no-memory-pool-share-memory-on-teardown",
];

/// Environment variable with further flags, separated by spaces, which override ours: for tests and benchmarks that compare
/// flags. An agent's environment is its node's choice, never a function's.
const FLAGS_VARIABLE: &str = "NEX_V8_FLAGS";

type Job = Box<dyn FnOnce() + Send>;

struct Spawn {
    name: String,
    stack_bytes: usize,
    job: Job,
    started: Sender<io::Result<()>>,
}

/// Runs `job` on a new thread that may run an isolate, with `stack_bytes` of stack.
///
/// # Errors
/// When V8 refuses our flags or the system has no thread left.
pub(crate) fn spawn_isolate_thread(name: String, stack_bytes: usize, job: Job) -> io::Result<()> {
    static SPAWNER: OnceLock<Result<Sender<Spawn>, String>> = OnceLock::new();
    let gone = || io::Error::other("the V8 platform thread has ended");
    let spawner = SPAWNER
        .get_or_init(start_platform)
        .as_ref()
        .map_err(|error| io::Error::other(error.clone()))?;
    let (started, result) = mpsc::channel();
    spawner
        .send(Spawn {
            name,
            stack_bytes,
            job,
            started,
        })
        .map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn start_platform() -> Result<Sender<Spawn>, String> {
    let (sender, spawns) = mpsc::channel::<Spawn>();
    let (ready, initialised) = mpsc::channel();
    let run = move || {
        let further = std::env::var(FLAGS_VARIABLE).unwrap_or_default();
        let flags = std::iter::once("nex").chain(FLAGS).chain(further.split_whitespace());
        let flags = flags.map(str::to_owned).collect();
        let unknown: Vec<String> = v8_set_flags(flags).into_iter().skip(1).collect();
        if !unknown.is_empty() {
            _ = ready.send(Err(format!("this V8 does not know the flags {unknown:?}")));
            return;
        }
        JsRuntime::init_platform(None);
        fatal::install();
        if let Err(error) = pages::install() {
            _ = ready.send(Err(error));
            return;
        }
        runners::install();
        _ = ready.send(Ok(()));
        for Spawn {
            name,
            stack_bytes,
            job,
            started,
        } in spawns
        {
            let thread = thread::Builder::new().name(name).stack_size(stack_bytes).spawn(job);
            _ = started.send(thread.map(drop));
        }
    };
    thread::Builder::new()
        .name("v8-platform".into())
        .spawn(run)
        .map_err(|error| error.to_string())?;
    initialised
        .recv()
        .map_err(|_| "V8 could not be initialised".to_owned())??;
    Ok(sender)
}

/// Lets the kernel merge pages of this process that are alike.
///
/// # Errors
/// When the kernel cannot do that.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn merge_memory() -> io::Result<()> {
    /// `PR_SET_MEMORY_MERGE`, since Linux 6.4.
    const SET_MEMORY_MERGE: libc::c_int = 67;
    let on: libc::c_ulong = 1;
    let zero: libc::c_ulong = 0;
    // SAFETY: this operation takes integers only.
    match unsafe { libc::prctl(SET_MEMORY_MERGE, on, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
