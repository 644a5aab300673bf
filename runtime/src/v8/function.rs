//! A loaded function: its queue of calls, the instance that takes them, and what happens when an instance is lost.
//!
//! Locks are taken in the order queue, instance; sinks and event handlers are called outside of both.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Shared;
use super::instance::{Answer, Instance, Status, wall_timeout};
use super::loader::SourceFile;
use super::watchdog::Watched;
use crate::engine::{EngineEvent, Function, FunctionHost, FunctionSpec, LimitHit, LoadError};
use crate::invocation::{ErrorKind, InvokeError, Reply, ReplySink, Trigger};
use crate::logs::{LogLevel, LogLine};

/// The handle that [`V8Engine`](super::V8Engine) gives out; dropping it ends the function once its calls have ended.
pub(super) struct V8Function(pub(super) Arc<Workload>);

impl Function for V8Function {
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>) {
        self.0.invoke(trigger, replies);
    }
}

impl Drop for V8Function {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for V8Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V8Function")
            .field("id", &self.0.spec.id)
            .field("name", &self.0.spec.name)
            .finish_non_exhaustive()
    }
}

pub(super) struct Workload {
    pub(super) spec: FunctionSpec,
    pub(super) source: SourceFile,
    pub(super) host: FunctionHost,
    engine: Arc<Shared>,
    queue: Mutex<Queue>,
    /// The watchdog has it on its list.
    watched: AtomicBool,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    slot: Slot,
    /// Every instance whose thread has not ended, the one in the slot included.
    instances: Vec<Arc<Instance>>,
    /// Names invocations, uniquely among all instances.
    last_key: u32,
    closed: bool,
}

/// The instance that takes calls.
#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Starting,
    Live(Arc<Instance>),
}

/// A call that waits, or is about to begin.
struct Call {
    trigger: Trigger,
    replies: Box<dyn ReplySink>,
    deadline: Instant,
}

/// A call as the isolate thread gets it.
pub(super) struct Begun {
    pub(super) key: u32,
    pub(super) trigger: Trigger,
    pub(super) deadline: Instant,
}

/// Tells the loader of a function how its first start went.
pub(super) type Report = oneshot::Sender<Result<(), LoadError>>;

impl Workload {
    pub(super) fn new(spec: FunctionSpec, host: FunctionHost, engine: Arc<Shared>) -> Result<Self, LoadError> {
        let source = SourceFile::of(&spec)?;
        Ok(Self {
            spec,
            source,
            host,
            engine,
            queue: Mutex::default(),
            watched: AtomicBool::new(false),
        })
    }

    pub(super) fn wall_time(&self) -> Duration {
        self.spec.limits.wall_time
    }

    /// Starts the first instance.
    pub(super) fn start(self: &Arc<Self>, report: Report) {
        self.queue.lock().slot = Slot::Starting;
        self.start_instance(Some(report));
    }

    fn start_instance(self: &Arc<Self>, report: Option<Report>) {
        self.engine.assign(Arc::clone(self), report);
    }

    fn invoke(self: &Arc<Self>, trigger: Trigger, replies: Box<dyn ReplySink>) {
        let deadline = Instant::now() + self.wall_time();
        let mut queue = self.queue.lock();
        let depth = self.spec.limits.queue_depth as usize;
        if queue.calls.len() >= depth {
            drop(queue);
            let message = format!("{depth} calls are waiting for this function already");
            return replies.finish(Err(InvokeError::new(ErrorKind::Overloaded, message)));
        }
        let was_empty = queue.calls.is_empty();
        queue.calls.push_back(Call {
            trigger,
            replies,
            deadline,
        });
        self.watch();
        match &queue.slot {
            Slot::Live(instance) if was_empty => {
                let instance = Arc::clone(instance);
                drop(queue);
                instance.waker.wake();
            }
            Slot::Empty => {
                queue.slot = Slot::Starting;
                drop(queue);
                self.start_instance(None);
            }
            Slot::Live(_) | Slot::Starting => {}
        }
    }

    /// Puts the function on the watchdog's list, after something with a deadline has been noted where
    /// [`check`](Watched::check) looks for it.
    fn watch(self: &Arc<Self>) {
        if !self.watched.swap(true, Ordering::SeqCst) {
            let watched: Weak<Self> = Arc::downgrade(self);
            self.engine.watchdog.watch(watched);
        }
    }

    /// JavaScript is about to run in an instance.
    pub(super) fn enter(self: &Arc<Self>, instance: &Instance, deadline: Instant) {
        instance.enter(deadline);
        self.watch();
    }

    /// Takes no more calls; instances end when the queue and the calls in flight are done.
    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        for instance in &queue.instances {
            instance.waker.wake();
        }
    }

    /// An isolate thread has taken the function on and is about to run its top level.
    pub(super) fn instance_starting(&self, instance: &Arc<Instance>) {
        self.queue.lock().instances.push(Arc::clone(instance));
    }

    /// The instance takes calls from now on.
    pub(super) fn instance_ready(&self, instance: &Arc<Instance>) {
        let mut queue = self.queue.lock();
        if instance.status() == Status::Live {
            queue.slot = Slot::Live(Arc::clone(instance));
        }
    }

    /// No instance could be started. Whoever waits is told; the next call tries again.
    pub(super) fn instance_failed(&self, error: &LoadError) {
        let calls = {
            let mut queue = self.queue.lock();
            queue.slot = Slot::Empty;
            std::mem::take(&mut queue.calls)
        };
        let error = InvokeError::new(
            ErrorKind::NotReady,
            format!("the function could not be started: {error}"),
        );
        for call in calls {
            call.replies.finish(Err(error.clone()));
        }
    }

    /// The thread of an instance is about to end, for whatever reason.
    pub(super) fn instance_ended(self: &Arc<Self>, instance: &Arc<Instance>) {
        let restart = {
            let mut queue = self.queue.lock();
            queue.instances.retain(|other| !Arc::ptr_eq(other, instance));
            self.vacate(&mut queue, instance)
        };
        for replies in instance.end_all() {
            replies.finish(Err(InvokeError::new(
                ErrorKind::NotReady,
                "the function's instance has ended",
            )));
        }
        if restart {
            self.start_instance(None);
        }
    }

    /// Takes a lost instance out of the slot. Returns whether another must be started because calls wait.
    fn vacate(&self, queue: &mut Queue, instance: &Arc<Instance>) -> bool {
        if !matches!(&queue.slot, Slot::Live(current) if Arc::ptr_eq(current, instance)) {
            return false;
        }
        let restart = !queue.closed || !queue.calls.is_empty();
        queue.slot = if restart { Slot::Starting } else { Slot::Empty };
        restart
    }

    /// The next call for an instance, begun; `None` when there is none or the instance may take no more.
    pub(super) fn take(&self, instance: &Arc<Instance>) -> Option<Begun> {
        let mut queue = self.queue.lock();
        if !self.may_take(&queue, instance) {
            return None;
        }
        let Call {
            trigger,
            replies,
            deadline,
        } = queue.calls.pop_front()?;
        queue.last_key = queue.last_key.wrapping_add(1);
        let key = queue.last_key;
        instance.begin(key, replies, deadline);
        Some(Begun { key, trigger, deadline })
    }

    /// Whether [`take`](Self::take) would give a call.
    pub(super) fn has_call_for(&self, instance: &Arc<Instance>) -> bool {
        let queue = self.queue.lock();
        !queue.calls.is_empty() && self.may_take(&queue, instance)
    }

    fn may_take(&self, queue: &Queue, instance: &Arc<Instance>) -> bool {
        matches!(&queue.slot, Slot::Live(current) if Arc::ptr_eq(current, instance))
            && instance.in_flight() < self.spec.limits.concurrency.max(1) as usize
    }

    /// Whether an instance without calls in flight should end.
    pub(super) fn is_done_with(&self, instance: &Instance) -> bool {
        let queue = self.queue.lock();
        instance.status() != Status::Live || queue.closed && queue.calls.is_empty()
    }

    /// Ends an invocation with its outcome.
    pub(super) fn finish(&self, instance: &Instance, key: u32, outcome: Result<Reply, InvokeError>) {
        let Some(replies) = instance.end(key) else { return };
        let limit = self.spec.limits.reply_bytes as usize;
        replies.finish(match outcome {
            Ok(reply) if reply.body.len() > limit => {
                let message = format!("the reply has {} bytes, the limit is {limit}", reply.body.len());
                Err(InvokeError::new(ErrorKind::PayloadTooLarge, message))
            }
            outcome => outcome,
        });
    }

    /// An error that belongs to no call, with its stack, as a log line of the function. Those of calls go to the callers'
    /// sinks, and whoever owns those logs them.
    pub(super) fn log_error(&self, error: &InvokeError) {
        let text = error.stack.as_ref().unwrap_or(&error.message);
        self.host.logs.log(LogLine {
            level: LogLevel::Error,
            text: format!("Uncaught {text}"),
        });
    }

    /// A memory limit was hit: ends the instance and answers its callers. Called on the isolate's thread, inside V8.
    pub(super) fn out_of_memory(self: &Arc<Self>, instance: &Arc<Instance>, hit: LimitHit) {
        let error = InvokeError::new(ErrorKind::Memory, hit.to_string());
        let answers = instance.terminate(&error);
        let restart = self.vacate(&mut self.queue.lock(), instance);
        Self::deliver(answers);
        self.host.events.event(EngineEvent::LimitHit(hit));
        if restart {
            self.start_instance(None);
        }
    }

    /// The code of an instance can neither go on nor be ended: answers its callers and condemns the process. Called on the
    /// isolate's thread, inside V8, which it never leaves.
    pub(super) fn give_up(self: &Arc<Self>, instance: &Arc<Instance>, reason: &str) {
        let answers = instance.terminate(&InvokeError::new(ErrorKind::Memory, reason));
        let restart = self.vacate(&mut self.queue.lock(), instance);
        instance.condemn();
        Self::deliver(answers);
        self.report_condemned();
        if restart {
            self.start_instance(None);
        }
    }

    /// The code of an instance cannot be stopped.
    pub(super) fn report_condemned(&self) {
        let message = format!(
            "code of function {} does not stop; its process must be replaced",
            self.spec.name
        );
        tracing::warn!(function = %self.spec.name, id = %self.spec.id, "{message}");
        self.host.events.event(EngineEvent::Condemned { message });
    }

    fn deliver(answers: Vec<Answer>) {
        for (replies, outcome) in answers {
            replies.finish(outcome);
        }
    }
}

impl Watched for Workload {
    fn check(self: Arc<Self>, now: Instant) -> bool {
        // Before looking, so that whoever notes something after the look finds it out of the list and puts it back.
        self.watched.store(false, Ordering::SeqCst);
        let mut answers = Vec::new();
        let mut limit = None;
        let mut condemned = false;
        let mut restart = false;
        let busy = {
            let mut queue = self.queue.lock();
            while queue.calls.front().is_some_and(|call| call.deadline <= now) {
                let Some(call) = queue.calls.pop_front() else { break };
                let (_, mut error) = wall_timeout(self.wall_time(), now.saturating_duration_since(call.deadline));
                error.message.push_str(", before the function could begin with it");
                answers.push((call.replies, Err(error)));
            }
            let mut busy = false;
            for instance in queue.instances.clone() {
                let verdict = instance.check(now, self.wall_time(), &mut answers);
                busy |= verdict.busy;
                condemned |= verdict.condemned;
                limit = limit.or(verdict.limit);
                if verdict.lost {
                    restart |= self.vacate(&mut queue, &instance);
                }
            }
            busy || !queue.calls.is_empty()
        };
        Self::deliver(answers);
        if let Some(hit) = limit {
            self.host.events.event(EngineEvent::LimitHit(hit));
        }
        if condemned {
            self.report_condemned();
        }
        if restart {
            self.start_instance(None);
        }
        busy && !self.watched.swap(true, Ordering::SeqCst)
    }
}
