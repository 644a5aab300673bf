//! What an isolate thread does: make a blank isolate, wait for a function, load it, serve its calls until the instance
//! is lost, has been idle for long, or the function is closed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::sleep;

use super::buffers::MemoryOwner;
use super::call::{Answer, Begun, deliver};
use super::function::{Fetched, Workload};
use super::heap::IsolateParams;
use super::instance::{Instance, Load, Next, Report, Status};
use super::isolate::{Isolate, LoadFailure, Loaded};
use super::ops::OpHost;
use super::pool::Turn;
use super::residents::Place;
use super::soft_limits::SoftLimitEvents;
use super::thread_id::name_current_thread;
use super::trim;
use crate::engine::{Limit, LimitHit, Limits, LoadError};
use crate::host_services::HostServices;
use crate::invocation::{ErrorKind, InvokeError, Reply};
use crate::logs::LogLine;

/// How long answers may gather, to be given together, while calls follow each other closely. Writing many at a time is
/// cheaper for everyone on their way, and the answers of a function that takes longer than this wait for nothing.
const ANSWERS_WAIT: Duration = Duration::from_micros(200);

/// Batches of calls after which an isolate with nothing pending is polled all the same, for the tasks that V8 has left to
/// be run on its thread.
const MAX_UNPOLLED: u32 = 32;

/// How long an instance has been idle when its garbage is collected.
const TIDY_AFTER: Duration = Duration::from_secs(2);

/// A function for a blank isolate.
pub(super) struct Assignment {
    pub(super) workload: Arc<Workload>,
    pub(super) report: Option<Report>,
    /// Its room among the instances that may be awake.
    pub(super) place: Place,
}

/// The body of an isolate thread; it ends without a function when the pool is dropped.
#[allow(unsafe_code, reason = "only here it is known that nothing of an isolate is left")]
pub(super) fn run(params: IsolateParams, turn: Option<Turn>, mut assignment: oneshot::Receiver<Assignment>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "an isolate thread has no runtime"),
    };
    let mut remains = None;
    runtime.block_on(async {
        let mut isolate = Isolate::new(params);
        let assignment = match assignment.try_recv() {
            // Who waits already would only wait for longer; the pool is refilled when they have been served.
            Ok(assignment) => {
                drop(turn);
                assignment
            }
            Err(TryRecvError::Closed) => return,
            Err(TryRecvError::Empty) => {
                isolate = isolate.and_then(Isolate::warmed_up);
                if let Some(turn) = turn {
                    turn.pass();
                }
                let Ok(assignment) = assignment.await else { return };
                assignment
            }
        };
        let Assignment {
            workload,
            report,
            place: _place,
        } = assignment;
        let mut isolate = match isolate {
            Ok(isolate) => isolate,
            Err(error) => return workload.load_failed(Load::new(report), LoadError::Engine(error.to_string())),
        };
        name_current_thread(&workload.spec.id);
        let instance = Arc::new(Instance::new(isolate.handle(), report));
        let engine = Arc::clone(workload.engine());
        let resident = engine.residents.enter(&instance);
        workload.instance_loading(&instance);
        let link = Rc::new(Link {
            workload,
            instance,
            waiting: Cell::new(0),
            waiting_until: Cell::new(None),
            answers: RefCell::default(),
            idle_since: Cell::new(None),
            unpolled: Cell::new(0),
            soft_limits: RefCell::default(),
        });
        match link.load(&mut isolate).await {
            Ok(()) => {
                if let Some(load) = link.instance.end_load() {
                    link.instance.set_last_used(engine.milliseconds(Instant::now()));
                    link.workload.instance_ready(&link.instance);
                    load.report(Ok(()));
                }
                link.serve_until_done(&mut isolate).await;
                if matches!(link.instance.status(), Status::Live | Status::Retired) {
                    isolate.keep_code(&link.workload.source, link.workload.code_cache());
                }
            }
            Err(error) => {
                if let Some(load) = link.instance.end_load() {
                    link.workload.load_failed(load, error);
                }
                engine.refill();
            }
        }
        remains = isolate.remains();
        // The isolate first: dropping it may take a while, during which the instance still counts.
        drop(isolate);
        link.workload.logs.flush();
        link.workload.instance_ended(&link.instance);
        drop(resident);
    });
    drop(runtime);
    if let Some(remains) = remains {
        // SAFETY: nothing is left of the isolate and of the tasks beside it.
        unsafe { remains.free() };
    }
    trim::soon();
}

/// Between an isolate and its function: what ops act on.
struct Link {
    workload: Arc<Workload>,
    instance: Arc<Instance>,
    /// `waitUntil` promises not settled yet.
    waiting: Cell<u32>,
    /// When they are no longer waited for: when the last call must have ended.
    waiting_until: Cell<Option<Instant>>,
    /// An empty list with room, to be exchanged for the one with answers.
    answers: RefCell<Vec<Answer>>,
    /// Since when it has had nothing to do.
    idle_since: Cell<Option<Instant>>,
    /// Batches of calls since the isolate was last polled.
    unpolled: Cell<u32>,
    soft_limits: RefCell<SoftLimitEvents>,
}

impl OpHost for Link {
    fn services(&self) -> &Arc<dyn HostServices> {
        // A host call may block this thread for long.
        self.deliver();
        &self.workload.host.services
    }
    fn limits(&self) -> &Limits {
        &self.workload.spec.limits
    }
    fn limit_hit(&self, hit: LimitHit) {
        let hit = self.soft_limits.borrow_mut().due(hit);
        if let Some(hit) = hit {
            self.workload.report_hit(hit);
        }
    }
    fn log_open(&self) -> bool {
        let allowed = u64::from(self.limits().log_lines);
        match self.workload.logs.open() {
            Ok(()) => true,
            Err(dropped) => {
                self.limit_hit(LimitHit {
                    limit: Limit::LogLines,
                    allowed,
                    measured: allowed + dropped,
                });
                false
            }
        }
    }
    fn log(&self, line: LogLine) {
        self.workload.logs.write(line);
    }
    fn deadline(&self) -> Instant {
        self.instance.entry_deadline()
    }
    fn stream(&self, id: u32, reply: Reply) {
        self.instance.stream(id, reply);
    }
    fn finish(&self, id: u32, outcome: Result<Reply, InvokeError>) {
        self.workload.finish(&self.instance, id, outcome);
    }
    fn wait_until(&self, begun: bool) {
        let waiting = self.waiting.get();
        self.waiting
            .set(if begun { waiting + 1 } else { waiting.saturating_sub(1) });
    }
}

/// What the memory of an isolate belongs to.
struct Owner {
    workload: Arc<Workload>,
    instance: Arc<Instance>,
}

impl MemoryOwner for Owner {
    fn limit_hit(&self, hit: LimitHit) {
        self.workload.report_hit(hit);
    }
    fn out_of_memory(&self, hit: LimitHit) {
        if matches!(self.instance.status(), Status::Live | Status::Retired) {
            self.workload.out_of_memory(&self.instance, hit);
        }
    }
    fn beyond_rescue(&self, reason: &str) {
        self.workload.give_up(&self.instance, reason);
    }
}

/// The instance was terminated: its isolate must not run again.
struct Lost;

/// Whether an instance has anything left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// It waits for calls, host calls or timers.
    Waiting,
    /// It waits for calls only.
    Idle,
    /// It is to end.
    Done,
}

impl Link {
    /// Runs JavaScript under the watchdog's eyes.
    fn run<T>(&self, deadline: Instant, startup: bool, code: impl FnOnce() -> T) -> Result<T, Lost> {
        self.workload.enter(&self.instance, deadline, startup);
        let value = code();
        if self.instance.leave() { Ok(value) } else { Err(Lost) }
    }

    fn poll(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Result<Poll<Result<(), InvokeError>>, Lost> {
        let deadline = Instant::now() + self.workload.limits().wall_time;
        self.run(deadline, false, || isolate.poll(cx))
    }

    /// Gives the answers that have gathered to their callers.
    fn deliver(&self) {
        let mut answers = self.instance.take_answers(self.answers.take());
        deliver(&mut answers);
        self.answers.replace(answers);
    }

    // ---- loading ----

    async fn load(self: &Rc<Self>, isolate: &mut Isolate) -> Result<(), LoadError> {
        let wall_time = self.workload.limits().wall_time;
        let deadline = Instant::now() + wall_time;
        let host: Rc<dyn OpHost> = Rc::<Self>::clone(self);
        let owner = Arc::new(Owner {
            workload: Arc::clone(&self.workload),
            instance: Arc::clone(&self.instance),
        });
        isolate.assign(host, owner, &self.workload.spec)?;
        let (source, cache) = (&self.workload.source, self.workload.code_cache());
        let begun = self.run(deadline, true, || isolate.load(source, cache));
        match begun.unwrap_or(Err(LoadFailure::Terminated)) {
            Ok(Loaded::Ready) => Ok(()),
            Ok(Loaded::Awaiting) => {
                let ended = self.finish_top_level(isolate, deadline);
                let in_time = tokio::time::timeout_at(deadline.into(), ended).await;
                in_time.unwrap_or_else(|_| {
                    let measured = wall_time + deadline.elapsed();
                    self.workload
                        .report_hit(LimitHit::time(Limit::WallTime, wall_time, measured));
                    Err(LoadError::Timeout(wall_time))
                })
            }
            Err(failure) => Err(self.load_error(failure)),
        }
    }

    fn load_error(&self, failure: LoadFailure) -> LoadError {
        match failure {
            LoadFailure::Error(error) => error,
            LoadFailure::Terminated => self.instance.load_error(self.workload.limits()),
        }
    }

    /// Polls the isolate until the module's top level has ended.
    async fn finish_top_level(&self, isolate: &mut Isolate, deadline: Instant) -> Result<(), LoadError> {
        poll_fn(|cx| {
            let polled = self.run(deadline, true, || {
                let polled = isolate.poll(cx);
                (isolate.top_level(&self.workload.source), polled)
            });
            match polled {
                Err(Lost) => Poll::Ready(Err(self.load_error(LoadFailure::Terminated))),
                Ok((Poll::Ready(result), _)) => Poll::Ready(result.map_err(|failure| self.load_error(failure))),
                Ok((Poll::Pending, Poll::Pending)) => Poll::Pending,
                Ok((Poll::Pending, Poll::Ready(Ok(())))) => Poll::Ready(Err(isolate.stalled(&self.workload.source))),
                Ok((Poll::Pending, Poll::Ready(Err(error)))) => {
                    Poll::Ready(Err(LoadError::Threw(error.stack.unwrap_or(error.message))))
                }
            }
        })
        .await
    }

    // ---- serving ----

    async fn serve_until_done(&self, isolate: &mut Isolate) {
        let linger = self.workload.limits().hibernate_after;
        let mut nap = pin!(sleep(linger.min(TIDY_AFTER)));
        let mut tidied = None;
        let mut first = true;
        poll_fn(|cx| {
            self.instance.waker.register(cx.waker());
            let served = self.serve(isolate, cx).unwrap_or(Served::Done);
            self.deliver();
            if std::mem::take(&mut first) {
                // Not before: whoever waited for this instance should not have to share the processor.
                self.workload.engine().refill();
            }
            if served != Served::Done && isolate.has_served() {
                // After the answers, so that nobody waits for it who has called already.
                isolate.keep_code(&self.workload.source, self.workload.code_cache());
            }
            match served {
                Served::Done => return Poll::Ready(()),
                Served::Waiting => {
                    self.instance.set_last_used(u64::MAX);
                    if self.instance.in_flight() == 0
                        && let Some(until) = self.waiting_until.get()
                    {
                        nap.as_mut().reset(until.into());
                        if nap.as_mut().poll(cx).is_ready() {
                            cx.waker().wake_by_ref();
                        }
                    }
                    return Poll::Pending;
                }
                Served::Idle => {}
            }
            let since = self.idle_since.get().unwrap_or_else(Instant::now);
            self.idle_since.set(Some(since));
            self.instance.set_last_used(self.workload.engine().milliseconds(since));
            if tidied != Some(since) && since.elapsed() >= TIDY_AFTER {
                tidied = Some(since);
                isolate.tidy();
            }
            if self.instance.is_evicted() || since.elapsed() >= linger {
                // Unless a call has come meanwhile, which wakes this thread.
                return match self.workload.hibernate(&self.instance) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                };
            }
            let due = since
                + if tidied == Some(since) {
                    linger
                } else {
                    linger.min(TIDY_AFTER)
                };
            // Not for every call: a timer that is early comes round again.
            if nap.deadline() > due.into() || nap.as_mut().poll(cx).is_ready() {
                nap.as_mut().reset(due.into());
                _ = nap.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await;
    }

    /// Runs everything that can run.
    fn serve(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Result<Served, Lost> {
        loop {
            for key in self.instance.take_timed_out() {
                let deadline = Instant::now() + self.workload.limits().wall_time;
                self.run(deadline, false, || isolate.abort(key, "the invocation's time is up"))?;
            }
            let (served, full) = self.serve_calls(isolate)?;
            if served && !full && !isolate.has_pending() && self.unpolled.get() < MAX_UNPOLLED {
                // What a poll costs, most calls need not pay.
                self.unpolled.set(self.unpolled.get() + 1);
                return Ok(self.rest(true));
            }
            self.unpolled.set(0);
            let quiet = match self.poll(isolate, cx)? {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    self.workload.log_error(&error);
                    continue;
                }
            };
            if quiet {
                self.fail_stalled();
                isolate.forget_awaited();
            }
            let in_flight = self.instance.in_flight();
            if full && in_flight < self.workload.limits().concurrency.max(1) as usize {
                // A promise settled by the poll has made room for a call that waits.
                continue;
            }
            return Ok(self.rest(quiet));
        }
    }

    /// What an instance that has nothing to run waits for. `quiet`: nothing is pending in its isolate.
    fn rest(&self, quiet: bool) -> Served {
        let waits =
            !quiet && self.waiting.get() > 0 && self.waiting_until.get().is_some_and(|until| Instant::now() < until);
        let idle = self.instance.in_flight() == 0 && !waits;
        match idle {
            true if self.workload.is_done_with(&self.instance) => Served::Done,
            true => Served::Idle,
            false => Served::Waiting,
        }
    }

    /// Begins all calls that wait, as many as may be in flight. Returns whether there were any, and whether more wait than
    /// may be.
    fn serve_calls(&self, isolate: &mut Isolate) -> Result<(bool, bool), Lost> {
        let mut since = Instant::now();
        let mut served = false;
        loop {
            match self.instance.begin_next() {
                Next::Call(Begun { key, trigger, deadline }) => {
                    served = true;
                    self.idle_since.set(None);
                    self.instance.set_last_used(u64::MAX);
                    self.waiting_until.set(self.waiting_until.get().max(Some(deadline)));
                    isolate.call(key, deadline, &trigger);
                    let now = Instant::now();
                    if now.duration_since(since) > ANSWERS_WAIT {
                        self.deliver();
                        since = now;
                    }
                }
                Next::Nothing => match self.workload.fetch(&self.instance) {
                    Fetched::Calls => {}
                    Fetched::Parked => return Ok((served, false)),
                    Fetched::Full => return Ok((served, true)),
                },
                Next::Lost => return Err(Lost),
            }
        }
    }

    /// Nothing is pending in the isolate, so promises that have not settled never will: better to say so at once than
    /// to let callers wait for the time limit.
    fn fail_stalled(&self) {
        let text =
            "the function's promise can never settle: no host call, timer or promise is left that could settle it";
        self.instance.finish_all(&InvokeError::new(ErrorKind::Exception, text));
    }
}
