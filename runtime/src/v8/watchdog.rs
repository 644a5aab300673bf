//! One thread that looks after deadlines: a busy isolate thread cannot look after its own.
//!
//! It ticks only while some function is busy, or was a moment ago. A function announces itself when it becomes busy after
//! a longer pause, so that most calls cost no system call.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Time between two looks: the precision of every limit.
const TICK: Duration = Duration::from_millis(2);

/// Looks at a function that is not busy before it is forgotten: its next call would have to wake this thread.
const IDLE_LOOKS: u32 = 16;

/// Something with deadlines.
pub(super) trait Watched: Send + Sync {
    /// Acts on deadlines that have passed. Returns whether any are still to come.
    fn check(self: Arc<Self>, now: Instant) -> bool;

    /// Is to announce itself again from now on, unless it has deadlines after all. Returns whether it has.
    fn forget(self: Arc<Self>, now: Instant) -> bool;
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
        let mut busy: Vec<Entry> = Vec::new();
        loop {
            {
                let mut state = self.state.lock();
                while busy.is_empty() && state.busy.is_empty() && !state.stopped {
                    self.news.wait(&mut state);
                }
                if state.stopped {
                    return;
                }
                busy.extend(state.busy.drain(..).map(Entry::new));
            }
            let now = Instant::now();
            busy.retain_mut(|entry| entry.look(now));
            if !busy.is_empty() {
                thread::sleep(TICK);
            }
        }
    }
}

/// Something that is watched, and for how many looks it has not been busy.
struct Entry {
    watched: Weak<dyn Watched>,
    idle_looks: u32,
}

impl Entry {
    fn new(watched: Weak<dyn Watched>) -> Self {
        Self { watched, idle_looks: 0 }
    }

    /// Looks at it. Returns whether it is still to be watched.
    fn look(&mut self, now: Instant) -> bool {
        let Some(watched) = self.watched.upgrade() else {
            return false;
        };
        if Arc::clone(&watched).check(now) {
            self.idle_looks = 0;
            return true;
        }
        self.idle_looks += 1;
        self.idle_looks < IDLE_LOOKS || watched.forget(now)
    }
}
