//! One instance of a function as other threads see it: its invocations in flight, and whether JavaScript is running in
//! it and until when. The isolate itself stays on its thread.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use deno_core::v8::IsolateHandle;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::thread_priority::ThreadId;
use crate::engine::{Limit, LimitHit};
use crate::invocation::{ErrorKind, InvokeError, Reply, ReplySink};

/// How long a terminated thread may take to leave V8. Those that can be stopped need less than a millisecond.
const GRACE: Duration = Duration::from_millis(250);

/// An answer on its way to a caller; given outside of all locks.
pub(super) type Answer = (Box<dyn ReplySink>, Result<Reply, InvokeError>);

pub(super) struct Instance {
    isolate: IsolateHandle,
    thread: ThreadId,
    /// Wakes the isolate's thread.
    pub(super) waker: AtomicWaker,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    status: Status,
    in_flight: HashMap<u32, InFlight>,
    entry: Option<Entry>,
    /// Invocations answered by the watchdog while they awaited; the thread aborts their signals.
    timed_out: Vec<u32>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Takes calls.
    #[default]
    Live,
    /// Takes no more calls, and ends when those in flight have ended.
    Retired,
    /// Its code was terminated; ends as soon as its thread leaves V8.
    Terminated,
    /// Its code cannot be stopped.
    Condemned,
}

struct InFlight {
    replies: Box<dyn ReplySink>,
    deadline: Instant,
}

/// JavaScript is running.
struct Entry {
    deadline: Instant,
    terminated: Option<Instant>,
}

/// What became of an instance in one look of the watchdog.
#[derive(Default)]
pub(super) struct Verdict {
    /// It no longer takes calls.
    pub(super) lost: bool,
    /// A limit was hit.
    pub(super) limit: Option<LimitHit>,
    /// It was condemned just now.
    pub(super) condemned: bool,
    /// Something has yet to end.
    pub(super) busy: bool,
}

impl Instance {
    /// For the calling thread and its isolate.
    pub(super) fn new(isolate: IsolateHandle) -> Self {
        Self {
            isolate,
            thread: ThreadId::current(),
            waker: AtomicWaker::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.state.lock().status
    }

    /// Invocations begun and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.state.lock().in_flight.len()
    }

    /// Begins the invocation named `key`.
    pub(super) fn begin(&self, key: u32, replies: Box<dyn ReplySink>, deadline: Instant) {
        self.state.lock().in_flight.insert(key, InFlight { replies, deadline });
    }

    /// Ends an invocation; `None` when it was answered before.
    pub(super) fn end(&self, key: u32) -> Option<Box<dyn ReplySink>> {
        self.state.lock().in_flight.remove(&key).map(|call| call.replies)
    }

    /// Streams a reply, unless the invocation was answered before.
    pub(super) fn stream(&self, key: u32, reply: Reply) {
        if let Some(call) = self.state.lock().in_flight.get_mut(&key) {
            call.replies.stream(reply);
        }
    }

    /// Ends all invocations in flight.
    pub(super) fn end_all(&self) -> Vec<Box<dyn ReplySink>> {
        mem::take(&mut self.state.lock().in_flight)
            .into_values()
            .map(|call| call.replies)
            .collect()
    }

    pub(super) fn take_timed_out(&self) -> Vec<u32> {
        mem::take(&mut self.state.lock().timed_out)
    }

    /// JavaScript is about to run, until `deadline` at most.
    pub(super) fn enter(&self, deadline: Instant) {
        self.state.lock().entry = Some(Entry {
            deadline,
            terminated: None,
        });
    }

    /// JavaScript has ended. `false` when it was terminated: the isolate must not run again.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state.lock();
        state.entry = None;
        !matches!(state.status, Status::Terminated | Status::Condemned)
    }

    /// When the running JavaScript must have ended.
    pub(super) fn entry_deadline(&self) -> Instant {
        self.state
            .lock()
            .entry
            .as_ref()
            .map_or_else(Instant::now, |entry| entry.deadline)
    }

    /// Terminates the running code. All callers in flight are to be answered with `error`.
    pub(super) fn terminate(&self, error: &InvokeError) -> Vec<Answer> {
        self.stop(&mut self.state.lock(), error)
    }

    fn stop(&self, state: &mut State, error: &InvokeError) -> Vec<Answer> {
        state.status = Status::Terminated;
        if let Some(entry) = &mut state.entry {
            entry.terminated = Some(Instant::now());
        }
        self.isolate.terminate_execution();
        mem::take(&mut state.in_flight)
            .into_values()
            .map(|call| (call.replies, Err(error.clone())))
            .collect()
    }

    /// Gives up on the running code: it gets the processor only when nobody else wants it.
    pub(super) fn condemn(&self) {
        self.state.lock().status = Status::Condemned;
        self.thread.set_idle_priority();
    }

    /// Enforces deadlines.
    pub(super) fn check(&self, now: Instant, wall_time: Duration, answers: &mut Vec<Answer>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut state = self.state.lock();
        let expired: Vec<u32> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.deadline <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            let Some(call) = state.in_flight.remove(&key) else {
                continue;
            };
            let (hit, error) = wall_timeout(wall_time, now.saturating_duration_since(call.deadline));
            verdict.limit = Some(hit);
            answers.push((call.replies, Err(error)));
            state.timed_out.push(key);
            if state.status == Status::Live {
                state.status = Status::Retired;
                verdict.lost = true;
            }
            self.waker.wake();
        }
        let (overdue, stuck) = match &state.entry {
            Some(Entry {
                terminated: None,
                deadline,
            }) => (*deadline <= now, false),
            Some(Entry {
                terminated: Some(since),
                ..
            }) => (false, now.saturating_duration_since(*since) >= GRACE),
            None => (false, false),
        };
        if overdue {
            verdict.lost |= state.status == Status::Live;
            verdict
                .limit
                .get_or_insert_with(|| wall_timeout(wall_time, Duration::ZERO).0);
            let error = InvokeError::new(
                ErrorKind::WallTimeout,
                "another invocation of this function ran over its time in the same instance, which was discarded",
            );
            answers.extend(self.stop(&mut state, &error));
        }
        if stuck && state.status != Status::Condemned {
            state.status = Status::Condemned;
            verdict.condemned = true;
            self.thread.set_idle_priority();
        }
        verdict.busy = !state.in_flight.is_empty() || state.entry.is_some() && state.status != Status::Condemned;
        verdict
    }
}

/// The error of an invocation that took longer than it may.
pub(super) fn wall_timeout(limit: Duration, over: Duration) -> (LimitHit, InvokeError) {
    let hit = LimitHit::time(Limit::WallTime, limit, limit + over);
    (hit, InvokeError::new(ErrorKind::WallTimeout, hit.to_string()))
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
