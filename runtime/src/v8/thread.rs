//! What an isolate thread does: make a blank isolate, wait for a function, load it, serve its calls until the instance
//! is lost or the function is closed.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;

use super::buffers::MemoryOwner;
use super::function::{Begun, Report, Workload};
use super::heap::IsolateParams;
use super::instance::{Instance, Status};
use super::isolate::{Isolate, ScriptError};
use super::ops::OpHost;
use crate::engine::{EngineEvent, LimitHit, LoadError};
use crate::host_services::HostServices;
use crate::invocation::{ErrorKind, InvokeError, Reply};
use crate::logs::LogLine;

/// A function for a blank isolate.
pub(super) struct Assignment {
    pub(super) workload: Arc<Workload>,
    pub(super) report: Option<Report>,
}

/// The body of an isolate thread; it ends without a function when the pool is dropped.
pub(super) fn run(params: IsolateParams, assignment: oneshot::Receiver<Assignment>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "an isolate thread has no runtime"),
    };
    runtime.block_on(async {
        let isolate = Isolate::new(params);
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

/// What the memory of an isolate belongs to.
struct Owner {
    workload: Arc<Workload>,
    instance: Arc<Instance>,
}

impl MemoryOwner for Owner {
    fn limit_hit(&self, hit: LimitHit) {
        self.workload.host.events.event(EngineEvent::LimitHit(hit));
    }
    fn out_of_memory(&self, hit: LimitHit) {
        if matches!(self.instance.status(), Status::Live | Status::Retired) {
            self.workload.out_of_memory(&self.instance, hit);
        }
    }
    fn beyond_rescue(&self, reason: &str) {
        tracing::error!(function = %self.workload.spec.name, "{reason}");
        self.workload.give_up(&self.instance, reason);
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
        let owner = Arc::new(Owner {
            workload: Arc::clone(&self.workload),
            instance: Arc::clone(&self.instance),
        });
        isolate.assign(host, owner, &self.workload.spec)?;
        let source = &self.workload.source;
        match self.run(deadline, || isolate.load_script(source)).map_err(lost)? {
            Ok(()) => Ok(()),
            Err(ScriptError::Failed(error)) => Err(error),
            Err(ScriptError::Terminated) => Err(lost(Lost)),
            Err(ScriptError::IsModule) => {
                let id = isolate.load_module(source).await?;
                let evaluation = pin!(
                    self.run(deadline, || isolate.evaluate_module(id, source))
                        .map_err(lost)?
                );
                let evaluated = self.finish_evaluation(isolate, evaluation, deadline);
                tokio::time::timeout_at(deadline.into(), evaluated)
                    .await
                    .map_err(|_| lost(Lost))??;
                isolate.take_default_export(id)
            }
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
            let polled = match self.run(deadline, || isolate.poll(cx)) {
                Ok(polled) => polled,
                Err(Lost) => return Poll::Ready(Err(LoadError::Timeout(self.workload.wall_time()))),
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
                return Ok(Poll::Ready(()));
            }
            // A promise settled by the poll may have made room for a call that waits.
            if !self.workload.has_call_for(&self.instance) {
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
