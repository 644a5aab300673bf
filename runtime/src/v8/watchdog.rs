//! One thread that looks after deadlines: a busy isolate thread cannot look after its own.
//!
//! It ticks only while some function is busy. A function announces itself on the edge from idle to busy, so that a
//! call costs no system call.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Time between two looks: the precision of every limit.
const TICK: Duration = Duration::from_millis(2);

/// Something with deadlines.
pub(super) trait Watched: Send + Sync {
    /// Acts on deadlines that have passed. Returns whether any are still to come.
    fn check(self: Arc<Self>, now: Instant) -> bool;
}

/// Handle to the watchdog thread, which ends when the last handle is dropped.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    busy: Vec<Weak<dyn Watched>>,
    stopped: bool,
}

impl Watchdog {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread_shared = Arc::clone(&shared);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || thread_shared.run())?;
        Ok(Self { shared })
    }

    /// Watches until a check says that there is nothing left to watch.
    pub(super) fn watch(&self, watched: Weak<dyn Watched>) {
        self.shared.state.lock().busy.push(watched);
        self.shared.news.notify_one();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.news.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut busy: Vec<Weak<dyn Watched>> = Vec::new();
        loop {
            {
                let mut state = self.state.lock();
                while busy.is_empty() && state.busy.is_empty() && !state.stopped {
                    self.news.wait(&mut state);
                }
                if state.stopped {
                    return;
                }
                busy.append(&mut state.busy);
            }
            let now = Instant::now();
            busy.retain(|watched| watched.upgrade().is_some_and(|watched| watched.check(now)));
            if !busy.is_empty() {
                thread::sleep(TICK);
            }
        }
    }
}
