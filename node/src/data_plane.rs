//! The thread that carries messages: between NATS and triggers, and between the node and its agents.
//!
//! A call passes through several tasks on its way from a socket to a function and back. On one thread that costs no
//! wake-up and no queue between threads, which is most of what a call costs; on a work-stealing runtime each hop may end on
//! another processor. Everything that takes its time (deploys, host services, artefacts) stays off this thread.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::thread;

use tokio::runtime::{Builder, Handle};

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

/// Starts the thread, which stays for as long as the process.
fn start() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("data-plane".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}
