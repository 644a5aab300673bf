//! One instance of a function as other threads see it: the calls it was given, those it has begun, whether JavaScript is
//! running in it and until when. The isolate itself stays on its thread.
//!
//! Everything a caller waits for is kept here and not on the isolate's thread, because that thread may never come back:
//! the watchdog can answer every call and hand back every call not begun.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deno_core::v8::IsolateHandle;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::call::{Answer, Begun, Call, Replies};
use super::thread_id::ThreadId;
use crate::engine::{Limit, LimitHit, Limits, LoadError};
use crate::invocation::{InvokeError, Reply};

/// How long a terminated thread may take to leave V8. Those that can be stopped need less than a millisecond.
const GRACE: Duration = Duration::from_millis(250);

/// Tells the loader of a function how its first start went.
pub(super) type Report = oneshot::Sender<Result<(), LoadError>>;

/// The start of an instance; whoever takes it says how it ended.
pub(super) struct Load {
    /// Nobody waits for that of a further instance.
    report: Option<Report>,
}

impl Load {
    pub(super) fn new(report: Option<Report>) -> Self {
        Self { report }
    }

    pub(super) fn report(self, outcome: Result<(), LoadError>) {
        if let Some(report) = self.report {
            // A loader that has gone away needs no report.
            _ = report.send(outcome);
        }
    }
}

pub(super) struct Instance {
    isolate: IsolateHandle,
    thread: ThreadId,
    /// Wakes the isolate's thread.
    pub(super) waker: AtomicWaker,
    /// Its isolate should be given up as soon as it is idle.
    evicted: AtomicBool,
    /// Milliseconds from the start of the engine to its last call; of an instance at work, the future.
    last_used: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    status: Status,
    /// Until its top level has run.
    load: Option<Load>,
    /// Given to the thread and not begun.
    ready: VecDeque<(u32, Call)>,
    /// The invocation whose first run of JavaScript is going on.
    current: Option<(u32, InFlight)>,
    /// Invocations that wait for a promise.
    awaiting: HashMap<u32, InFlight>,
    /// Answers that wait to be given, together.
    answers: Vec<Answer>,
    /// The answer of an invocation that was ended while it streamed a reply.
    owed: Option<Outcome>,
    entry: Option<Entry>,
    /// Counts entries and invocations, so that the watchdog sees whether they are those of its last look.
    entries: u64,
    begun: u64,
    /// Invocations answered by the watchdog while they awaited; the thread aborts their signals.
    timed_out: Vec<u32>,
    /// The limit for which its code was terminated.
    hit: Option<LimitHit>,
    seen: Seen,
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
    /// `None` while a reply is being streamed.
    replies: Option<Replies>,
    deadline: Instant,
    /// Processor time that is certainly its own, beside the entry that is going on.
    processor_time: Duration,
}

/// JavaScript is running.
struct Entry {
    deadline: Instant,
    /// Loading, not serving.
    startup: bool,
    terminated: Option<Instant>,
}

type Outcome = Result<Reply, InvokeError>;

/// What the watchdog saw when it last looked.
#[derive(Default)]
struct Seen {
    entry: u64,
    begun: u64,
    /// Processor time of the thread when it first saw the entry that is going on, and at its last look.
    entry_from: Duration,
    processor_time: Duration,
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
    /// It has not loaded, and never will.
    pub(super) load_failed: Option<(Load, LoadError)>,
    /// Something has yet to end.
    pub(super) busy: bool,
    /// JavaScript is running.
    pub(super) running: bool,
    /// It is at work and has no time for more, or has as many calls in flight as it may. Not so one whose thread is only
    /// waiting for a processor.
    pub(super) occupied: bool,
    /// Calls that it does not get round to.
    pub(super) returned: VecDeque<(u32, Call)>,
}

/// What an isolate's thread is to do next.
pub(super) enum Next {
    /// Begin this call.
    Call(Begun),
    /// Ask the function for more.
    Nothing,
    /// End: the isolate must not run again.
    Lost,
}

impl Instance {
    /// For the calling thread and its isolate.
    pub(super) fn new(isolate: IsolateHandle, report: Option<Report>) -> Self {
        let state = State {
            load: Some(Load::new(report)),
            ..State::default()
        };
        Self {
            isolate,
            thread: ThreadId::current(),
            waker: AtomicWaker::new(),
            evicted: AtomicBool::new(false),
            last_used: AtomicU64::new(u64::MAX),
            state: Mutex::new(state),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.state.lock().status
    }

    /// Invocations begun and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.state.lock().in_flight()
    }

    /// Gives calls to the thread, which is asking for them.
    pub(super) fn give(&self, calls: impl Iterator<Item = (u32, Call)>) {
        self.state.lock().ready.extend(calls);
    }

    /// Takes back what was given and not begun.
    pub(super) fn take_back(&self) -> VecDeque<(u32, Call)> {
        mem::take(&mut self.state.lock().ready)
    }

    /// Ends the entry that was going on, if one was, and begins the next call.
    pub(super) fn begin_next(&self) -> Next {
        let mut state = self.state.lock();
        state.leave();
        if state.is_lost() {
            return Next::Lost;
        }
        if state.status != Status::Live {
            return Next::Nothing;
        }
        let Some((key, call)) = state.ready.pop_front() else {
            return Next::Nothing;
        };
        let Call {
            trigger,
            replies,
            deadline,
        } = call;
        let in_flight = InFlight {
            replies: Some(replies),
            deadline,
            processor_time: Duration::ZERO,
        };
        state.current = Some((key, in_flight));
        state.begun += 1;
        state.enter(deadline, false);
        Next::Call(Begun { key, trigger, deadline })
    }

    /// JavaScript is about to run, until `deadline` at most.
    pub(super) fn enter(&self, deadline: Instant, startup: bool) {
        self.state.lock().enter(deadline, startup);
    }

    /// JavaScript has ended. `false` when it was terminated: the isolate must not run again.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state.lock();
        state.leave();
        !state.is_lost()
    }

    /// When the running JavaScript must have ended; if it was terminated, the time of that.
    pub(super) fn entry_deadline(&self) -> Instant {
        let state = self.state.lock();
        let entry = state.entry.as_ref();
        entry.map_or_else(Instant::now, |entry| entry.terminated.unwrap_or(entry.deadline))
    }

    /// Ends an invocation; its answer joins those that wait to be given. Nothing happens when it was answered before.
    pub(super) fn finish(&self, key: u32, outcome: Outcome) {
        let mut state = self.state.lock();
        if let Some(call) = state.end(key) {
            state.answer(call, outcome);
        }
    }

    /// Streams a reply, unless the invocation was answered before. Called on the isolate's thread.
    pub(super) fn stream(&self, key: u32, reply: Reply) {
        let replies = self.state.lock().find(key).and_then(|call| call.replies.take());
        let Some(mut replies) = replies else { return };
        // It may wait for room, and the watchdog must not wait with it.
        replies.stream(reply);
        let mut state = self.state.lock();
        if let Some(outcome) = state.owed.take() {
            state.answers.push((replies, outcome));
        } else if let Some(call) = state.find(key) {
            call.replies = Some(replies);
        }
    }

    /// Ends all invocations in flight in the same way.
    pub(super) fn finish_all(&self, error: &InvokeError) {
        self.state.lock().answer_all(error);
    }

    /// The answers that wait to be given; in exchange for an empty list.
    pub(super) fn take_answers(&self, list: Vec<Answer>) -> Vec<Answer> {
        mem::replace(&mut self.state.lock().answers, list)
    }

    pub(super) fn take_timed_out(&self) -> Vec<u32> {
        mem::take(&mut self.state.lock().timed_out)
    }

    /// Terminates the running code, because of a limit if one is given. All callers in flight are to be answered with
    /// `error`.
    pub(super) fn terminate(&self, error: &InvokeError, hit: Option<LimitHit>) -> Vec<Answer> {
        let mut state = self.state.lock();
        state.hit = state.hit.or(hit);
        self.stop(&mut state, error);
        mem::take(&mut state.answers)
    }

    fn stop(&self, state: &mut State, error: &InvokeError) {
        if state.status != Status::Condemned {
            state.status = Status::Terminated;
        }
        if let Some(entry) = &mut state.entry {
            entry.terminated = Some(Instant::now());
        }
        self.isolate.terminate_execution();
        state.answer_all(error);
    }

    /// Gives up on the running code: it gets the processor only when nobody else wants it. `false`: that was done before.
    pub(super) fn condemn(&self) -> bool {
        let status = mem::replace(&mut self.state.lock().status, Status::Condemned);
        if status == Status::Condemned {
            return false;
        }
        self.thread.set_idle_priority();
        true
    }

    /// Its start, which has ended one way or another; once.
    pub(super) fn end_load(&self) -> Option<Load> {
        self.state.lock().load.take()
    }

    /// Why its top level was terminated.
    pub(super) fn load_error(&self, limits: &Limits) -> LoadError {
        self.state.lock().load_error(limits)
    }

    /// Asks the thread to give its isolate up as soon as it is idle.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Notes when it became idle, or `u64::MAX` that it is at work.
    pub(super) fn set_last_used(&self, milliseconds: u64) {
        self.last_used.store(milliseconds, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Enforces limits of time.
    pub(super) fn check(&self, now: Instant, limits: &Limits, answers: &mut Vec<Answer>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut state = self.state.lock();
        let state = &mut *state;
        let used = state.account(self.thread.processor_time());
        for key in state.expired(now, limits) {
            let Some(call) = state.end(key) else { continue };
            let hit = call.hit(now, limits);
            verdict.limit = Some(hit);
            state.answer(call, Err(error(hit)));
            state.timed_out.push(key);
            if state.status == Status::Live {
                state.status = Status::Retired;
                verdict.lost = true;
            }
            self.waker.wake();
        }
        match &state.entry {
            Some(Entry {
                terminated: None,
                deadline,
                startup,
            }) => {
                let allowed = if *startup {
                    limits.startup_cpu_time
                } else {
                    limits.cpu_time
                };
                let hit = if used.entry > allowed {
                    let limit = if *startup {
                        Limit::StartupCpuTime
                    } else {
                        Limit::CpuTime
                    };
                    Some(LimitHit::time(limit, allowed, used.entry))
                } else {
                    let over = now.checked_duration_since(*deadline);
                    over.map(|over| LimitHit::time(Limit::WallTime, limits.wall_time, limits.wall_time + over))
                };
                if let Some(hit) = hit {
                    verdict.lost |= state.status == Status::Live;
                    verdict.limit = Some(hit);
                    state.hit = Some(hit);
                    if let Some(call) = state.take_culprit() {
                        state.answer(call, Err(error(hit)));
                    }
                    self.stop(state, &discarded(hit));
                }
            }
            Some(Entry {
                terminated: Some(since),
                ..
            }) if state.status != Status::Condemned => {
                if now.saturating_duration_since(*since) >= GRACE {
                    state.status = Status::Condemned;
                    verdict.condemned = true;
                    let load = state.load.take();
                    verdict.load_failed = load.map(|load| (load, state.load_error(limits)));
                    self.thread.set_idle_priority();
                } else {
                    // A termination ends one run of JavaScript, and the host may just have begun another.
                    self.isolate.terminate_execution();
                }
            }
            Some(_) | None => {}
        }
        verdict.running = state.entry.is_some();
        verdict.occupied = verdict.running || used.began || state.in_flight() >= limits.concurrency.max(1) as usize;
        answers.append(&mut state.answers);
        if verdict.lost || used.entry_is_old {
            // It will not get round to these soon, or ever.
            verdict.returned = mem::take(&mut state.ready);
        }
        verdict.busy = state.in_flight() > 0
            || !state.ready.is_empty()
            || !state.answers.is_empty()
            || state.entry.is_some() && state.status != Status::Condemned;
        verdict
    }
}

/// What [`State::account`] found.
struct Used {
    /// Processor time of the entry that is going on.
    entry: Duration,
    /// It was going on at the watchdog's last look.
    entry_is_old: bool,
    /// It has begun calls since.
    began: bool,
}

impl State {
    fn in_flight(&self) -> usize {
        self.awaiting.len() + usize::from(self.current.is_some())
    }

    fn load_error(&self, limits: &Limits) -> LoadError {
        match self.hit {
            Some(hit) if hit.limit != Limit::WallTime => LoadError::Limit(hit),
            _ => LoadError::Timeout(limits.wall_time),
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self.status, Status::Terminated | Status::Condemned)
    }

    fn enter(&mut self, deadline: Instant, startup: bool) {
        self.entries += 1;
        self.entry = Some(Entry {
            deadline,
            startup,
            terminated: None,
        });
    }

    fn leave(&mut self) {
        self.entry = None;
        if let Some((key, call)) = self.current.take() {
            self.awaiting.insert(key, call);
        }
    }

    fn find(&mut self, key: u32) -> Option<&mut InFlight> {
        match &mut self.current {
            Some((current, call)) if *current == key => Some(call),
            _ => self.awaiting.get_mut(&key),
        }
    }

    fn end(&mut self, key: u32) -> Option<InFlight> {
        let current = self.current.take_if(|(current, _)| *current == key);
        current.map(|(_, call)| call).or_else(|| self.awaiting.remove(&key))
    }

    /// The invocation that is certainly to blame for the entry that is going on.
    fn take_culprit(&mut self) -> Option<InFlight> {
        let current = self.current.take().map(|(_, call)| call);
        current.or_else(|| {
            let key = *self.awaiting.keys().next().filter(|_| self.awaiting.len() == 1)?;
            self.awaiting.remove(&key)
        })
    }

    fn answer(&mut self, call: InFlight, outcome: Outcome) {
        match call.replies {
            Some(replies) => self.answers.push((replies, outcome)),
            None => self.owed = Some(outcome),
        }
    }

    fn answer_all(&mut self, error: &InvokeError) {
        let current = self.current.take().map(|(_, call)| call);
        let awaiting = mem::take(&mut self.awaiting).into_values();
        for call in current.into_iter().chain(awaiting) {
            self.answer(call, Err(error.clone()));
        }
    }

    /// Charges the processor time since the last look to the invocation that certainly used it, if there is one: it was
    /// alone all the time. What many share cannot be told apart, and is left to the limits of a single entry and of wall
    /// time.
    fn account(&mut self, processor_time: Option<Duration>) -> Used {
        let processor_time = processor_time.unwrap_or(self.seen.processor_time);
        let entry_is_old = self.entry.is_some() && self.seen.entry == self.entries;
        if !entry_is_old {
            self.seen.entry_from = processor_time;
        }
        let began = self.seen.begun != self.begun;
        let alone = !began && self.in_flight() == 1;
        let delta = processor_time.saturating_sub(self.seen.processor_time);
        if alone
            && let Some(call) = self
                .awaiting
                .values_mut()
                .chain(self.current.as_mut().map(|(_, call)| call))
                .next()
        {
            call.processor_time += delta;
        }
        self.seen.entry = self.entries;
        self.seen.begun = self.begun;
        self.seen.processor_time = processor_time;
        Used {
            entry: processor_time.saturating_sub(self.seen.entry_from),
            entry_is_old,
            began,
        }
    }

    /// Invocations in flight that have used up a limit, except the one whose entry is going on: that is to be terminated.
    fn expired(&self, now: Instant, limits: &Limits) -> Vec<u32> {
        let expired = |call: &InFlight| call.deadline <= now || call.processor_time > limits.cpu_time;
        let awaiting = self.awaiting.iter().filter(|(_, call)| expired(call));
        awaiting.map(|(key, _)| *key).collect()
    }
}

impl InFlight {
    /// The limit it has used up.
    fn hit(&self, now: Instant, limits: &Limits) -> LimitHit {
        if self.processor_time > limits.cpu_time {
            LimitHit::time(Limit::CpuTime, limits.cpu_time, self.processor_time)
        } else {
            let over = now.saturating_duration_since(self.deadline);
            LimitHit::time(Limit::WallTime, limits.wall_time, limits.wall_time + over)
        }
    }
}

/// The error of the invocation that hit a limit.
pub(super) fn error(hit: LimitHit) -> InvokeError {
    InvokeError::new(hit.limit.error_kind(), hit.to_string())
}

/// The error of the other invocations in flight in an instance that was terminated.
fn discarded(hit: LimitHit) -> InvokeError {
    let message =
        format!("another invocation of this function hit a limit in the same instance, which was discarded: {hit}");
    InvokeError::new(hit.limit.error_kind(), message)
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
