//! What an isolate thread does: make a blank isolate, wait for a function, load it, serve its calls until the instance
//! is lost, has been idle for long, or the function is closed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::call::{Answer, Begun, deliver};
use super::function::{Fetched, Report, Workload};
use super::instance::{Instance, Next, Status};
use super::isolate::{Isolate, ScriptError};
use super::ops::OpHost;
use super::thread_id::name_current_thread;
use crate::engine::{Limit, LimitHit, LoadError};
use crate::host_services::HostServices;
use crate::invocation::{ErrorKind, InvokeError, Reply};
use crate::logs::LogLine;

/// Room that code near the heap limit gets to end in.
const HEAP_HEADROOM_BYTES: usize = 32 << 20;

/// How long an answer may wait for others to be given together with it.
const ANSWERS_WAIT: Duration = Duration::from_micros(50);

/// A function for a blank isolate.
pub(super) struct Assignment {
    pub(super) workload: Arc<Workload>,
    pub(super) report: Option<Report>,
}

/// The body of an isolate thread; it ends without a function when the pool is dropped.
pub(super) fn run(heap_bytes: usize, assignment: oneshot::Receiver<Assignment>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "an isolate thread has no runtime"),
    };
    runtime.block_on(async {
        let isolate = Isolate::new(heap_bytes);
        let Ok(Assignment { workload, report }) = assignment.await else {
            return;
        };
        let mut isolate = match isolate {
            Ok(isolate) => isolate,
            Err(error) => return refuse(&workload, report, LoadError::Engine(error.to_string())),
        };
        name_current_thread(&workload.spec.id);
        let instance = Arc::new(Instance::new(isolate.handle()));
        let engine = Arc::clone(workload.engine());
        let resident = engine.residents.enter(&instance);
        workload.instance_loading(&instance);
        let link = Rc::new(Link {
            workload,
            instance,
            waiting: Cell::new(0),
            answers: RefCell::default(),
            idle_since: Cell::new(None),
        });
        watch_heap(&mut isolate, &link, heap_bytes);
        match link.load(&mut isolate).await {
            Ok(()) => {
                link.workload.instance_ready(&link.instance);
                if let Some(report) = report {
                    _ = report.send(Ok(()));
                }
                link.serve_until_done(&mut isolate).await;
            }
            Err(error) => {
                refuse(&link.workload, report, error);
                engine.refill();
            }
        }
        // The isolate first: dropping it may take a while, during which the instance still counts.
        drop(isolate);
        link.workload.instance_ended(&link.instance);
        drop(resident);
    });
}

pub(super) fn refuse(workload: &Workload, report: Option<Report>, error: LoadError) {
    workload.instance_failed(&error);
    if let Some(report) = report {
        _ = report.send(Err(error));
    }
}

/// The first time the heap is nearly full, its code is terminated and gets room to end in; code that uses that up, too,
/// cannot be ended, and its thread stays here for ever.
fn watch_heap(isolate: &mut Isolate, link: &Link, limit: usize) {
    let workload = Arc::clone(&link.workload);
    let instance = Arc::clone(&link.instance);
    isolate.on_heap_limit(move |current, _initial| {
        if instance.status() != Status::Terminated {
            let hit = LimitHit {
                limit: Limit::HeapBytes,
                allowed: limit as u64,
                measured: current as u64,
            };
            workload.out_of_memory(&instance, hit);
            return current + HEAP_HEADROOM_BYTES;
        }
        instance.condemn();
        workload.report_condemned();
        loop {
            thread::park();
        }
    });
}

/// Between an isolate and its function: what ops act on.
struct Link {
    workload: Arc<Workload>,
    instance: Arc<Instance>,
    /// `waitUntil` promises not settled yet.
    waiting: Cell<u32>,
    /// An empty list with room, to be exchanged for the one with answers.
    answers: RefCell<Vec<Answer>>,
    /// Since when it has had nothing to do.
    idle_since: Cell<Option<Instant>>,
}

impl OpHost for Link {
    fn services(&self) -> &Arc<dyn HostServices> {
        // A host call may block this thread for long.
        self.deliver();
        &self.workload.host.services
    }
    fn log(&self, line: LogLine) {
        self.workload.host.logs.log(line);
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
        isolate.assign(host, &self.workload.spec)?;
        let source = &self.workload.source;
        let script = self.run(deadline, true, || isolate.load_script(source));
        match script.map_err(|Lost| self.load_limit())? {
            Ok(()) => Ok(()),
            Err(ScriptError::Failed(error)) => Err(error),
            Err(ScriptError::Terminated) => Err(self.load_limit()),
            Err(ScriptError::IsModule) => {
                let id = isolate.load_module(source).await?;
                let evaluation = self.run(deadline, true, || isolate.evaluate_module(id, source));
                let evaluation = pin!(evaluation.map_err(|Lost| self.load_limit())?);
                let evaluated = self.finish_evaluation(isolate, evaluation, deadline);
                tokio::time::timeout_at(deadline.into(), evaluated)
                    .await
                    .map_err(|_| LoadError::Timeout(wall_time))??;
                isolate.take_default_export(id)
            }
        }
    }

    /// Why the top level was terminated.
    fn load_limit(&self) -> LoadError {
        match self.instance.hit() {
            Some(hit) if hit.limit != Limit::WallTime => LoadError::Limit(hit),
            _ => LoadError::Timeout(self.workload.limits().wall_time),
        }
    }

    /// Polls the isolate until the module's top level has ended.
    async fn finish_evaluation(
        &self,
        isolate: &mut Isolate,
        mut evaluation: Pin<&mut impl Future<Output = Result<(), LoadError>>>,
        deadline: Instant,
    ) -> Result<(), LoadError> {
        let stalled = || {
            let text = "the module awaits a promise at its top level that nothing can settle";
            LoadError::Threw(text.into())
        };
        poll_fn(|cx| {
            if let Poll::Ready(result) = evaluation.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            let polled = match self.run(deadline, true, || isolate.poll(cx)) {
                Ok(polled) => polled,
                Err(Lost) => return Poll::Ready(Err(self.load_limit())),
            };
            match (evaluation.as_mut().poll(cx), polled) {
                (Poll::Ready(result), _) => Poll::Ready(result),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                (Poll::Pending, Poll::Ready(Ok(()))) => Poll::Ready(Err(stalled())),
                (Poll::Pending, Poll::Ready(Err(error))) => {
                    Poll::Ready(Err(LoadError::Threw(error.stack.unwrap_or(error.message))))
                }
            }
        })
        .await
    }

    // ---- serving ----

    async fn serve_until_done(&self, isolate: &mut Isolate) {
        let linger = self.workload.limits().hibernate_after;
        let mut nap = pin!(sleep(linger));
        let mut first = true;
        poll_fn(|cx| {
            self.instance.waker.register(cx.waker());
            let served = self.serve(isolate, cx).unwrap_or(Served::Done);
            self.deliver();
            if std::mem::take(&mut first) {
                // Not before: whoever waited for this instance should not have to share the processor.
                self.workload.engine().refill();
            }
            match served {
                Served::Done => return Poll::Ready(()),
                Served::Waiting => {
                    self.instance.set_last_used(u64::MAX);
                    return Poll::Pending;
                }
                Served::Idle => {}
            }
            let since = self.idle_since.get().unwrap_or_else(Instant::now);
            self.idle_since.set(Some(since));
            self.instance.set_last_used(self.workload.engine().milliseconds(since));
            if self.may_sleep(since, linger, nap.as_mut(), cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Whether an instance that has been idle for so long hibernates now. If not, the timer wakes it when it is time.
    fn may_sleep(&self, since: Instant, linger: Duration, mut nap: Pin<&mut Sleep>, cx: &mut Context<'_>) -> bool {
        let until = since + linger;
        if self.instance.is_evicted() || Instant::now() >= until {
            return self.workload.hibernate(&self.instance);
        }
        if nap.as_mut().poll(cx).is_ready() {
            nap.as_mut().reset(until.into());
            _ = nap.as_mut().poll(cx);
        }
        false
    }

    /// Runs everything that can run.
    fn serve(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Result<Served, Lost> {
        loop {
            for key in self.instance.take_timed_out() {
                let deadline = Instant::now() + self.workload.limits().wall_time;
                self.run(deadline, false, || isolate.abort(key, "the invocation's time is up"))?;
            }
            let full = self.serve_calls(isolate)?;
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
            }
            let in_flight = self.instance.in_flight();
            if full && in_flight < self.workload.limits().concurrency.max(1) as usize {
                // A promise settled by the poll has made room for a call that waits.
                continue;
            }
            let idle = in_flight == 0 && (quiet || self.waiting.get() == 0);
            return Ok(match idle {
                true if self.workload.is_done_with(&self.instance) => Served::Done,
                true => Served::Idle,
                false => Served::Waiting,
            });
        }
    }

    /// Begins all calls that wait, as many as may be in flight. Returns whether more wait than may be.
    fn serve_calls(&self, isolate: &mut Isolate) -> Result<bool, Lost> {
        let mut since = None;
        loop {
            match self.instance.begin_next() {
                Next::Call(Begun { key, trigger, deadline }) => {
                    self.idle_since.set(None);
                    isolate.call(key, deadline, &trigger);
                    let now = Instant::now();
                    if now.duration_since(*since.get_or_insert(now)) > ANSWERS_WAIT {
                        self.deliver();
                        since = None;
                    }
                }
                Next::Nothing => match self.workload.fetch(&self.instance) {
                    Fetched::Calls => {}
                    Fetched::Parked => return Ok(false),
                    Fetched::Full => return Ok(true),
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
