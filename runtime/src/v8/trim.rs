//! Gives memory of isolates that have ended back to the system. `malloc` keeps what is freed for whoever comes next: 500
//! isolates that were awake at once would leave some 400 MiB resident.
//!
//! Trimming takes a while and holds up whoever allocates meanwhile, so one thread of the process does it, a moment after
//! isolates have ended, and is idle most of the time however many end.

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::runners;

/// How long no isolate must have ended; those that are dropped together are trimmed together.
const QUIET: Duration = Duration::from_millis(250);
/// The longest wait for that.
const PATIENCE: Duration = Duration::from_secs(2);
/// Trimming is followed by so many times as long without.
const PAUSE_FACTOR: u32 = 50;

/// An isolate has ended: trims before long. Returns at once.
pub(super) fn soon() {
    static REQUESTS: OnceLock<Option<SyncSender<()>>> = OnceLock::new();
    if let Some(requests) = REQUESTS.get_or_init(start) {
        match requests.try_send(()) {
            // Full: it knows already.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

fn start() -> Option<SyncSender<()>> {
    let (sender, requests) = sync_channel(1);
    let run = move || {
        while requests.recv().is_ok() {
            let asked = Instant::now();
            while asked.elapsed() < PATIENCE {
                match requests.recv_timeout(QUIET) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            let begun = Instant::now();
            runners::forget();
            trim();
            let took = begun.elapsed();
            tracing::trace!(?took, "trimmed memory");
            thread::sleep(took * PAUSE_FACTOR);
        }
    };
    match thread::Builder::new().name("trim".into()).spawn(run) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "memory of ended isolates will not be given back");
            None
        }
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "a function of the C library")]
fn trim() {
    // SAFETY: malloc_trim has no preconditions; it locks each arena for itself.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
