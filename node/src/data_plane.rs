//! The thread that carries messages: between NATS and triggers, and between the node and its agents.
//!
//! A call passes through several tasks on its way from a socket to a function and back. On one thread that costs no
//! wake-up and no queue between threads, which is most of what a call costs; on a work-stealing runtime each hop may end on
//! another processor. Everything that takes its time (deploys, host services, artefacts) stays off this thread.
//!
//! After it has handed a single call to an idle agent, the thread stays awake for a moment: most functions answer in less
//! time than it takes to fall asleep and be woken. It looks for answers and messages all that time, and stops doing so
//! for functions that do not answer that fast, or on a machine whose processors have better things to do. Calls that
//! follow each other closely keep it awake by themselves.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::task::yield_now;

/// How long the thread stays awake for an answer: about twice what a call takes through an agent and back.
const LINGER: Duration = Duration::from_micros(80);

/// Waits in vain, in a row, after which the next 2 to the power of that many are not tried.
const MAX_MISSES: u32 = 10;

static HANDED_OVER: Notify = Notify::const_new();
/// Counts answers, those that leave together once.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Where to spawn what carries messages.
///
/// # Panics
/// Outside a tokio runtime, if in addition the system has refused the thread.
pub(crate) fn handle() -> Handle {
    static HANDLE: OnceLock<Option<Handle>> = OnceLock::new();
    let own = HANDLE.get_or_init(|| {
        start()
            .inspect_err(|error| tracing::warn!(%error, "messages are carried by the common runtime"))
            .ok()
    });
    own.clone().unwrap_or_else(Handle::current)
}

/// Runs a future there. What it spawns, such as a connection's own task, stays there.
pub(crate) async fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    match handle().spawn(future).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A call has been handed over, whose answer may come soon.
pub(crate) fn handed_over() {
    HANDED_OVER.notify_one();
}

/// Something has come that is sent to NATS.
pub(crate) fn answered() {
    ANSWERS.fetch_add(1, Ordering::Relaxed);
}

/// Starts the thread, which stays for as long as the process.
fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("data-plane".into())
        .spawn(move || runtime.block_on(linger()))?;
    Ok(handle)
}

/// Keeps the thread awake for the answers of calls.
async fn linger() {
    let mut patience = Patience::default();
    loop {
        HANDED_OVER.notified().await;
        if !patience.pays() {
            continue;
        }
        let before = ANSWERS.load(Ordering::Relaxed);
        let until = Instant::now() + LINGER;
        let answered = loop {
            // Other tasks run, and sockets are looked at, without waiting for any.
            yield_now().await;
            if ANSWERS.load(Ordering::Relaxed) != before {
                break true;
            }
            if Instant::now() >= until {
                break false;
            }
        };
        patience.note(answered);
    }
}

/// Whether staying awake has paid lately.
#[derive(Debug, Default)]
struct Patience {
    misses: u32,
    skip: u32,
}

impl Patience {
    fn pays(&mut self) -> bool {
        match self.skip.checked_sub(1) {
            Some(left) => {
                self.skip = left;
                false
            }
            None => true,
        }
    }

    fn note(&mut self, answered: bool) {
        if answered {
            self.misses = 0;
        } else {
            self.misses = (self.misses + 1).min(MAX_MISSES);
            self.skip = (1 << self.misses) - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many calls, those that are waited for.
    fn waits(patience: &mut Patience, calls: u32, answered: bool) -> u32 {
        let mut waits = 0;
        for _ in 0..calls {
            if patience.pays() {
                waits += 1;
                patience.note(answered);
            }
        }
        waits
    }

    #[test]
    fn slow_functions_are_soon_waited_for_no_longer_and_fast_ones_again() {
        let mut patience = Patience::default();
        assert_eq!(waits(&mut patience, 100, true), 100);
        let slow = waits(&mut patience, 100_000, false);
        assert!((100..150).contains(&slow), "{slow} waits in vain");
        let fast = waits(&mut patience, 100_000, true);
        assert!(fast > 98_000, "{fast} waits");
    }
}
