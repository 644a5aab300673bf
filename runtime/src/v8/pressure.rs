//! Lets functions hibernate before their time while the process has more memory than it should.

use std::fs;
use std::io;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use super::Shared;

/// Time between two looks at the memory; also the time that isolates given up have to return theirs.
const PERIOD: Duration = Duration::from_millis(250);

/// The part of all awake instances that is given up at a time: one in so many, and one at least.
const SHARE: usize = 10;

/// Watches the resident memory of this process on a thread that ends with the engine.
pub(super) fn watch(engine: Weak<Shared>, high_bytes: u64) -> io::Result<()> {
    let run = move || {
        while let Some(engine) = engine.upgrade() {
            if resident_bytes().is_some_and(|bytes| bytes > high_bytes) {
                let residents = &engine.residents;
                residents.evict((residents.len() / SHARE).max(1));
            }
            drop(engine);
            thread::sleep(PERIOD);
        }
    };
    thread::Builder::new().name("memory".into()).spawn(run).map(drop)
}

/// Resident memory of this process; `None` where the system does not tell.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    // SAFETY: sysconf has no preconditions.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page_bytes).ok()?)
}
