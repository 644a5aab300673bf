//! What an isolate thread does: make a blank isolate, wait for a function, load it, serve its calls until the instance
//! is lost or the function is closed.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use super::function::{Begun, Report, Workload};
use super::instance::{Instance, Status};
use super::isolate::{Isolate, LoadFailure, Loaded};
use super::ops::OpHost;
use crate::engine::LoadError;
use crate::host_services::HostServices;
use crate::invocation::{ErrorKind, InvokeError, Reply};
use crate::logs::LogLine;

/// Room that code near the heap limit gets to end in.
const HEAP_HEADROOM_BYTES: usize = 32 << 20;

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
        let instance = Arc::new(Instance::new(isolate.handle()));
        workload.instance_starting(&instance);
        let link = Rc::new(Link {
            workload,
            instance,
            waiting: Cell::new(0),
        });
        watch_heap(&mut isolate, &link, heap_bytes);
        match link.load(&mut isolate).await {
            Ok(()) => {
                link.workload.instance_ready(&link.instance);
                if let Some(report) = report {
                    _ = report.send(Ok(()));
                }
                poll_fn(|cx| link.serve(&mut isolate, cx)).await;
            }
            Err(error) => refuse(&link.workload, report, error),
        }
        // The isolate first: dropping it may take a while, during which the instance still counts.
        drop(isolate);
        link.workload.instance_ended(&link.instance);
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
            workload.out_of_memory(&instance, limit);
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
}

impl OpHost for Link {
    fn services(&self) -> &Arc<dyn HostServices> {
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

impl Link {
    /// Runs JavaScript under the watchdog's eyes.
    fn run<T>(&self, deadline: Instant, code: impl FnOnce() -> T) -> Result<T, Lost> {
        self.workload.enter(&self.instance, deadline);
        let value = code();
        if self.instance.leave() { Ok(value) } else { Err(Lost) }
    }

    fn poll(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Result<Poll<Result<(), InvokeError>>, Lost> {
        self.run(Instant::now() + self.workload.wall_time(), || isolate.poll(cx))
    }

    async fn load(self: &Rc<Self>, isolate: &mut Isolate) -> Result<(), LoadError> {
        let deadline = Instant::now() + self.workload.wall_time();
        let lost = |_| LoadError::Timeout(self.workload.wall_time());
        let host: Rc<dyn OpHost> = Rc::<Self>::clone(self);
        isolate.assign(host, &self.workload.spec)?;
        let (source, cache) = (&self.workload.source, self.workload.code_cache());
        let begun = self.run(deadline, || isolate.load(source, cache)).map_err(lost)?;
        match begun.map_err(|failure| self.load_error(failure))? {
            Loaded::Ready => Ok(()),
            Loaded::Awaiting => {
                let ended = self.finish_evaluation(isolate, deadline);
                tokio::time::timeout_at(deadline.into(), ended)
                    .await
                    .map_err(|_| lost(Lost))?
            }
        }
    }

    fn load_error(&self, failure: LoadFailure) -> LoadError {
        match failure {
            LoadFailure::Error(error) => error,
            LoadFailure::Terminated => LoadError::Timeout(self.workload.wall_time()),
        }
    }

    /// Polls the isolate until the module's top level has ended.
    async fn finish_evaluation(&self, isolate: &mut Isolate, deadline: Instant) -> Result<(), LoadError> {
        let stalled = || {
            let text = "the module awaits a promise at its top level that nothing can settle";
            LoadError::Threw(text.into())
        };
        poll_fn(|cx| {
            let polled = self.run(deadline, || {
                let polled = isolate.poll(cx);
                (isolate.top_level(&self.workload.source), polled)
            });
            match polled {
                Err(Lost) => Poll::Ready(Err(LoadError::Timeout(self.workload.wall_time()))),
                Ok((Poll::Ready(result), _)) => Poll::Ready(result.map_err(|failure| self.load_error(failure))),
                Ok((Poll::Pending, Poll::Pending)) => Poll::Pending,
                Ok((Poll::Pending, Poll::Ready(Ok(())))) => Poll::Ready(Err(stalled())),
                Ok((Poll::Pending, Poll::Ready(Err(error)))) => {
                    Poll::Ready(Err(LoadError::Threw(error.stack.unwrap_or(error.message))))
                }
            }
        })
        .await
    }

    /// Runs everything that can run. `Ready` when the instance has ended.
    fn serve(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Poll<()> {
        self.instance.waker.register(cx.waker());
        match self.serve_batch(isolate, cx) {
            Ok(poll) => poll,
            Err(Lost) => Poll::Ready(()),
        }
    }

    fn serve_batch(&self, isolate: &mut Isolate, cx: &mut Context<'_>) -> Result<Poll<()>, Lost> {
        loop {
            for key in self.instance.take_timed_out() {
                let deadline = Instant::now() + self.workload.wall_time();
                self.run(deadline, || isolate.abort(key, "the invocation's time is up"))?;
            }
            while let Some(Begun { key, trigger, deadline }) = self.workload.take(&self.instance) {
                self.run(deadline, || isolate.call(key, deadline, &trigger))?;
            }
            let idle = match self.poll(isolate, cx)? {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    self.workload.log_error(&error);
                    continue;
                }
            };
            if idle {
                self.fail_stalled();
            }
            let drained = self.instance.in_flight() == 0 && (idle || self.waiting.get() == 0);
            if drained && self.workload.is_done_with(&self.instance) {
                isolate.keep_code(&self.workload.source, self.workload.code_cache());
                return Ok(Poll::Ready(()));
            }
            // A promise settled by the poll may have made room for a call that waits.
            if !self.workload.has_call_for(&self.instance) {
                if isolate.has_served() {
                    isolate.keep_code(&self.workload.source, self.workload.code_cache());
                }
                return Ok(Poll::Pending);
            }
        }
    }

    /// Nothing is pending in the isolate, so promises that have not settled never will: better to say so at once than
    /// to let callers wait for the time limit.
    fn fail_stalled(&self) {
        for replies in self.instance.end_all() {
            let error = InvokeError::new(
                ErrorKind::Exception,
                "the function's promise can never settle: no host call, timer or promise is left that could settle it",
            );
            replies.finish(Err(error));
        }
    }
}
