//! Steady load on the victims, and what became of each call.

use std::sync::Arc;
use std::time::Duration;

use nex_runtime::engine::Function;
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// A victim and the name it answers with.
#[derive(Debug, Clone)]
pub struct Victim {
    pub name: String,
    pub function: Arc<dyn Function>,
}

impl Victim {
    pub fn trigger(number: usize) -> Trigger {
        Trigger {
            subject: "victims".into(),
            payload: number.to_string().into(),
            ..Trigger::default()
        }
    }

    /// What it must answer: see `victim.mjs`.
    pub fn answer(&self, number: usize) -> String {
        let text: String = number.to_string().chars().rev().collect();
        format!("{} {text}", self.name)
    }
}

/// Time between two calls, of whichever victim: all together get 1,000 a second.
const INTERVAL: Duration = Duration::from_millis(1);

/// Calls the victims in turn at fixed times, however long the answers take, until it is dropped.
#[derive(Debug)]
pub struct Load {
    window: Arc<Mutex<Arc<Window>>>,
    task: JoinHandle<()>,
}

impl Load {
    pub fn start(victims: Vec<Victim>) -> Self {
        let window = Arc::new(Mutex::new(Arc::default()));
        let current = Arc::clone(&window);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for (number, victim) in victims.iter().cycle().enumerate() {
                let due = tick.tick().await;
                let check = Check::send(&current, due, victim.answer(number));
                victim.function.invoke(Victim::trigger(number), Box::new(check));
            }
        });
        Self { window, task }
    }

    /// Begins a new window and returns the one that ends with it.
    pub fn next_window(&self) -> Arc<Window> {
        std::mem::take(&mut *self.window.lock())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The calls of one stretch of time.
#[derive(Debug, Default)]
pub struct Window {
    calls: Mutex<Calls>,
    answered: Notify,
}

/// What became of them.
#[derive(Debug, Default, Clone)]
pub struct Calls {
    sent: usize,
    answered: usize,
    /// Times from when a call was due to its answer, sorted once the window is closed.
    latencies: Vec<Duration>,
    /// Right answers came from the right function; these did not, or were no replies.
    pub wrong: Vec<String>,
    pub errors: Vec<InvokeError>,
    pub dropped: usize,
}

impl Window {
    /// Waits until every call has been answered.
    ///
    /// # Errors
    /// How many have not, after so long.
    pub async fn close(&self, patience: Duration) -> Result<Calls, String> {
        let all = async {
            loop {
                let answered = self.answered.notified();
                {
                    let mut calls = self.calls.lock();
                    if calls.answered == calls.sent {
                        calls.latencies.sort_unstable();
                        return calls.clone();
                    }
                }
                answered.await;
            }
        };
        let closed = tokio::time::timeout(patience, all).await;
        closed.map_err(|_| {
            let calls = self.calls.lock();
            let lost = calls.sent - calls.answered;
            format!(
                "{lost} of {} calls of victims were not answered within {patience:?}",
                calls.sent
            )
        })
    }

    fn answer(&self, note: impl FnOnce(&mut Calls)) {
        let mut calls = self.calls.lock();
        calls.answered += 1;
        note(&mut calls);
        if calls.answered == calls.sent {
            self.answered.notify_one();
        }
    }
}

impl Calls {
    pub fn count(&self) -> usize {
        self.sent
    }

    /// The latency that so many percent of the calls do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = self.latencies.len().saturating_sub(1) * percent / 100;
        self.latencies.get(rank).copied().unwrap_or_default()
    }

    /// What is not as it must be: anything but right answers, save `not_ready` where the process died.
    pub fn complaint(&self, died: bool) -> Option<String> {
        let allowed = |error: &&InvokeError| !(died && error.kind == ErrorKind::NotReady);
        let error = self.errors.iter().find(allowed);
        if self.dropped > 0 {
            Some(format!("{} calls of victims were dropped", self.dropped))
        } else if let Some(wrong) = self.wrong.first() {
            Some(format!("{} wrong replies of victims; {wrong}", self.wrong.len()))
        } else {
            error.map(|error| {
                let kind = error.kind;
                format!("{} error replies of victims; {kind}: {error}", self.errors.len())
            })
        }
    }
}

/// Checks the answer to one call.
#[derive(Debug)]
struct Check {
    window: Arc<Window>,
    due: Instant,
    expected: String,
    answered: bool,
}

impl Check {
    fn send(current: &Mutex<Arc<Window>>, due: Instant, expected: String) -> Self {
        // Under the lock, so that no window is closed between being chosen and being told.
        let current = current.lock();
        current.calls.lock().sent += 1;
        Self {
            window: Arc::clone(&current),
            due,
            expected,
            answered: false,
        }
    }
}

impl ReplySink for Check {
    fn stream(&mut self, _reply: Reply) {
        self.window.calls.lock().wrong.push("a streamed reply".into());
    }

    fn finish(mut self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        self.answered = true;
        let latency = self.due.elapsed();
        let expected = std::mem::take(&mut self.expected);
        self.window.answer(|calls| {
            calls.latencies.push(latency);
            match outcome {
                Ok(reply) if reply.body == expected => {}
                Ok(reply) => calls.wrong.push(format!("{:?} instead of {expected:?}", reply.body)),
                Err(error) => calls.errors.push(error),
            }
        });
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if !self.answered {
            self.window.answer(|calls| calls.dropped += 1);
        }
    }
}
