//! A loaded function: its queue of calls, the instances that take them, and when there are to be more or fewer of these.
//!
//! Instances fetch calls in batches; a call wakes an instance only when one is asleep. Locks are taken in the order queue,
//! instance; sinks and event handlers are called outside of both.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Shared;
use super::call::{Answer, Call, Replies, deliver};
use super::code_cache::CodeCache;
use super::instance::{Instance, Load, Report, Status, error};
use super::loader::SourceFile;
use super::soft_limits::SoftLimitEvents;
use super::watchdog::Watched;
use crate::engine::{
    EngineEvent, Function, FunctionHost, FunctionSpec, FunctionState, Invocation, Limit, LimitHit, Limits, LoadError,
};
use crate::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use crate::log_limit::LimitedLog;
use crate::logs::{LogLevel, LogLine, LogSink};

/// Calls an instance fetches at a time.
const BATCH: usize = 64;

/// A call that has waited this long gets its function another instance, if those it has are occupied.
const SCALE_AFTER: Duration = Duration::from_millis(20);

/// The handle that [`V8Engine`](super::V8Engine) gives out; dropping it ends the function once its calls have ended.
pub(super) struct V8Function(pub(super) Arc<Workload>);

impl Function for V8Function {
    fn invoke(&self, trigger: Trigger, replies: Replies) {
        self.0.invoke(std::iter::once(Invocation { trigger, replies }));
    }

    fn invoke_all(&self, calls: Vec<Invocation>) {
        self.0.invoke(calls.into_iter());
    }

    fn state(&self) -> Option<FunctionState> {
        Some(self.0.state())
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
    pub(super) logs: LimitedLog,
    engine: Arc<Shared>,
    queue: Mutex<Queue>,
    /// The watchdog has it on its list.
    watched: AtomicBool,
}

#[derive(Default)]
struct Queue {
    calls: VecDeque<Call>,
    /// Every instance whose thread has not ended.
    members: Vec<Member>,
    /// Instances on their way.
    starting: usize,
    last_key: u32,
    closed: bool,
    soft_limits: SoftLimitEvents,
}

struct Member {
    instance: Arc<Instance>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It runs its top level.
    Loading,
    /// It sleeps and is to be woken for a call.
    Parked,
    /// It comes for calls by itself.
    Busy,
    /// It takes no more calls.
    Lost,
}

/// What an instance got that came for calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// Some.
    Calls,
    /// None; it is woken when there are.
    Parked,
    /// None, because it has as many in flight as it may. It has to come again.
    Full,
}

impl Workload {
    pub(super) fn new(spec: FunctionSpec, host: FunctionHost, engine: Arc<Shared>) -> Result<Self, LoadError> {
        let source = SourceFile::of(&spec)?;
        Ok(Self {
            logs: LimitedLog::new(Arc::clone(&host.logs), spec.limits.log_lines),
            spec,
            source,
            host,
            engine,
            queue: Mutex::default(),
            watched: AtomicBool::new(false),
        })
    }

    pub(super) fn engine(&self) -> &Arc<Shared> {
        &self.engine
    }

    pub(super) fn code_cache(&self) -> &CodeCache {
        &self.engine.code_cache
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.spec.limits
    }

    /// Starts the first instance.
    pub(super) fn start(self: &Arc<Self>, report: Report) {
        self.queue.lock().starting += 1;
        self.engine.assign(Arc::clone(self), Some(report));
    }

    fn start_instance(self: &Arc<Self>) {
        self.engine.assign(Arc::clone(self), None);
    }

    fn invoke(self: &Arc<Self>, calls: impl Iterator<Item = Invocation>) {
        let deadline = Instant::now() + self.limits().wall_time;
        let depth = self.limits().queue_depth as usize;
        let mut refused = Vec::new();
        let mut start = false;
        let mut overfull = None;
        let wake = {
            let mut queue = self.queue.lock();
            for Invocation { trigger, replies } in calls {
                if queue.calls.len() >= depth {
                    refused.push(replies);
                    continue;
                }
                queue.calls.push_back(Call {
                    trigger,
                    replies,
                    deadline,
                });
            }
            if !refused.is_empty() {
                overfull = queue.soft_limits.due(LimitHit {
                    limit: Limit::QueueDepth,
                    allowed: depth as u64,
                    measured: (depth + refused.len()) as u64,
                });
            }
            let wake = queue.wake_one();
            if wake.is_none() && !queue.has_live() && queue.starting == 0 {
                queue.starting += 1;
                start = true;
            }
            wake
        };
        if let Some(instance) = wake {
            instance.waker.wake();
        }
        if start {
            self.start_instance();
        }
        // After whoever runs the calls has been woken, because this may wake somebody else.
        self.watch();
        if let Some(hit) = overfull {
            self.report_hit(hit);
        }
        for replies in refused {
            let message = format!("{depth} calls are waiting for this function already");
            replies.finish(Err(InvokeError::new(ErrorKind::Overloaded, message)));
        }
    }

    /// Puts the function on the watchdog's list, after something with a deadline has been noted where
    /// [`check`](Watched::check) looks for it.
    ///
    /// `forget` clears the mark before it looks, under the same locks as whoever notes something: either it sees the note,
    /// or the mark is seen cleared here.
    fn watch(self: &Arc<Self>) {
        if !self.watched.load(Ordering::SeqCst) && !self.watched.swap(true, Ordering::SeqCst) {
            let watched: Weak<Self> = Arc::downgrade(self);
            self.engine.watchdog.watch(watched);
        }
    }

    /// JavaScript is about to run in an instance that does not begin a call.
    pub(super) fn enter(self: &Arc<Self>, instance: &Instance, deadline: Instant, startup: bool) {
        instance.enter(deadline, startup);
        self.watch();
    }

    /// Takes no more calls; instances end when the queue and the calls in flight are done.
    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        for member in &queue.members {
            member.instance.waker.wake();
        }
    }

    fn state(&self) -> FunctionState {
        let queue = self.queue.lock();
        let live = queue.members.iter().filter(|member| member.phase.is_live());
        let in_flight: usize = queue.members.iter().map(|member| member.instance.in_flight()).sum();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        FunctionState {
            instances: count(live.count() + queue.starting),
            queued: count(queue.calls.len()),
            in_flight: count(in_flight),
        }
    }

    // ---- instances come and go ----

    /// An isolate thread has taken the function on and is about to run its top level.
    pub(super) fn instance_loading(&self, instance: &Arc<Instance>) {
        self.queue.lock().members.push(Member {
            instance: Arc::clone(instance),
            phase: Phase::Loading,
        });
    }

    /// The instance takes calls from now on.
    pub(super) fn instance_ready(&self, instance: &Arc<Instance>) {
        let mut queue = self.queue.lock();
        queue.starting = queue.starting.saturating_sub(1);
        if instance.status() == Status::Live
            && let Some(member) = queue.member(instance)
        {
            member.phase = Phase::Busy;
        }
    }

    /// An instance could not be started. If there is no other, whoever waits is told; the next call tries again.
    pub(super) fn load_failed(&self, load: Load, error: LoadError) {
        let calls = {
            let mut queue = self.queue.lock();
            queue.starting = queue.starting.saturating_sub(1);
            if queue.has_live() || queue.starting > 0 {
                VecDeque::new()
            } else {
                std::mem::take(&mut queue.calls)
            }
        };
        let kind = match error {
            LoadError::Overloaded(_) => ErrorKind::Overloaded,
            _ => ErrorKind::NotReady,
        };
        let answer = InvokeError::new(kind, format!("the function could not be started: {error}"));
        for call in calls {
            call.replies.finish(Err(answer.clone()));
        }
        load.report(Err(error));
    }

    /// The thread of an instance is about to end, for whatever reason.
    pub(super) fn instance_ended(self: &Arc<Self>, instance: &Arc<Instance>) {
        instance.finish_all(&InvokeError::new(
            ErrorKind::NotReady,
            "the function's instance has ended",
        ));
        deliver(&mut instance.take_answers(Vec::new()));
        let restart = {
            let mut queue = self.queue.lock();
            let restart = queue.lose(instance, instance.take_back());
            queue.remove(instance);
            restart
        };
        if restart {
            self.start_instance();
        }
    }

    /// Lets an idle instance go. `false` when there is something to do for it after all.
    pub(super) fn hibernate(&self, instance: &Arc<Instance>) -> bool {
        let mut queue = self.queue.lock();
        let parked = queue
            .member(instance)
            .is_some_and(|member| member.phase == Phase::Parked);
        let done = parked && queue.calls.is_empty();
        if done {
            queue.remove(instance);
        }
        done
    }

    /// Whether an instance without calls in flight should end.
    pub(super) fn is_done_with(&self, instance: &Instance) -> bool {
        let queue = self.queue.lock();
        instance.status() != Status::Live || queue.closed && queue.calls.is_empty()
    }

    // ---- calls ----

    /// Gives the instance as many calls as it may have.
    pub(super) fn fetch(&self, instance: &Arc<Instance>) -> Fetched {
        let mut queue = self.queue.lock();
        let queue = &mut *queue;
        let live = queue.members.iter().filter(|member| member.phase.is_live()).count();
        let waiting = queue.calls.len();
        let Some(member) = queue.member(instance).filter(|member| member.phase.is_live()) else {
            return Fetched::Parked;
        };
        if waiting == 0 {
            member.phase = Phase::Parked;
            return Fetched::Parked;
        }
        member.phase = Phase::Busy;
        let concurrency = self.spec.limits.concurrency.max(1) as usize;
        let room = concurrency.saturating_sub(instance.in_flight());
        if room == 0 {
            return Fetched::Full;
        }
        let count = waiting.div_ceil(live.max(1)).min(room).min(BATCH);
        let Queue { calls, last_key, .. } = queue;
        instance.give(calls.drain(..count).map(|call| {
            *last_key = last_key.wrapping_add(1);
            (*last_key, call)
        }));
        Fetched::Calls
    }

    /// Ends an invocation with its outcome, which is given to the caller together with others.
    pub(super) fn finish(&self, instance: &Instance, key: u32, outcome: Result<Reply, InvokeError>) {
        let limit = self.spec.limits.reply_bytes as usize;
        let outcome = match outcome {
            Ok(reply) if reply.body.len() > limit => {
                let message = format!("the reply has {} bytes, the limit is {limit}", reply.body.len());
                Err(InvokeError::new(ErrorKind::PayloadTooLarge, message))
            }
            outcome => outcome,
        };
        instance.finish(key, outcome);
    }

    // ---- what goes wrong ----

    /// An error that belongs to no call, with its stack, as a log line of the function. Those of calls go to the callers'
    /// sinks, and whoever owns those logs them.
    pub(super) fn log_error(&self, error: &InvokeError) {
        let text = error.stack.as_ref().unwrap_or(&error.message);
        self.logs.log(LogLine {
            level: LogLevel::Error,
            text: format!("Uncaught {text}"),
        });
    }

    pub(super) fn report_hit(&self, hit: LimitHit) {
        self.host.events.event(EngineEvent::LimitHit(hit));
    }

    /// A limit of memory was hit: ends the instance and answers its callers. Called on the isolate's thread, inside V8.
    pub(super) fn out_of_memory(self: &Arc<Self>, instance: &Arc<Instance>, hit: LimitHit) {
        self.report_hit(hit);
        self.discard(instance, &error(hit), Some(hit));
    }

    /// The code of an instance can neither go on nor be ended: answers its callers and condemns the process. Called on the
    /// isolate's thread, inside V8, which it never leaves.
    pub(super) fn give_up(self: &Arc<Self>, instance: &Arc<Instance>, reason: &str) {
        tracing::error!(function = %self.spec.name, id = %self.spec.id, "{reason}");
        if instance.condemn() {
            self.report_condemned();
        }
        if let Some(load) = instance.end_load() {
            self.load_failed(load, instance.load_error(self.limits()));
        }
        self.discard(instance, &InvokeError::new(ErrorKind::Memory, reason), None);
    }

    /// Terminates the code of an instance, and starts another if nobody is left.
    fn discard(self: &Arc<Self>, instance: &Arc<Instance>, error: &InvokeError, hit: Option<LimitHit>) {
        let mut answers = instance.terminate(error, hit);
        let restart = self.queue.lock().lose(instance, instance.take_back());
        deliver(&mut answers);
        if restart {
            self.start_instance();
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
}

impl Phase {
    fn is_live(self) -> bool {
        matches!(self, Self::Parked | Self::Busy)
    }
}

impl Queue {
    /// Without room for more where none is left: what a hibernating function has is to be little.
    fn remove(&mut self, instance: &Arc<Instance>) {
        self.members.retain(|member| !Arc::ptr_eq(&member.instance, instance));
        if self.members.is_empty() {
            self.members = Vec::new();
        }
    }

    fn member(&mut self, instance: &Arc<Instance>) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| Arc::ptr_eq(&member.instance, instance))
    }

    fn has_live(&self) -> bool {
        self.members.iter().any(|member| member.phase.is_live())
    }

    /// The first instance that sleeps, which is to be woken now.
    fn wake_one(&mut self) -> Option<Arc<Instance>> {
        let member = self.members.iter_mut().find(|member| member.phase == Phase::Parked)?;
        member.phase = Phase::Busy;
        Some(Arc::clone(&member.instance))
    }

    /// Takes calls back from an instance, as those that wait the longest.
    fn take_back(&mut self, calls: VecDeque<(u32, Call)>) {
        for (_, call) in calls.into_iter().rev() {
            self.calls.push_front(call);
        }
    }

    /// Gives up an instance and takes back its calls. Returns whether another must be started, because nobody is left.
    fn lose(&mut self, instance: &Arc<Instance>, calls: VecDeque<(u32, Call)>) -> bool {
        self.take_back(calls);
        let was_live = match self.member(instance) {
            Some(member) => std::mem::replace(&mut member.phase, Phase::Lost).is_live(),
            None => false,
        };
        let restart = was_live && !self.has_live() && self.starting == 0 && (!self.closed || !self.calls.is_empty());
        self.starting += usize::from(restart);
        restart
    }

    /// Whether calls have waited for so long that another instance should help those that are `occupied`: as long as it
    /// may have one, and a processor is left beside those `running`.
    fn needs_another(&self, limits: &Limits, now: Instant, occupied: usize, running: usize, processors: usize) -> bool {
        let since = |call: &Call| (now + limits.wall_time).saturating_duration_since(call.deadline);
        let late = self.calls.front().is_some_and(|call| since(call) >= SCALE_AFTER);
        let live = self.members.iter().filter(|member| member.phase.is_live()).count();
        late && self.starting == 0
            && occupied >= live
            && live < limits.instances.max(1) as usize
            && running < processors
    }
}

impl Watched for Workload {
    fn check(self: Arc<Self>, now: Instant) -> bool {
        let limits = &self.spec.limits;
        let mut answers: Vec<Answer> = Vec::new();
        let mut hits = Vec::new();
        let mut condemned = false;
        let mut load_failed = Vec::new();
        let mut start = false;
        let mut wake = None;
        let busy = {
            let mut queue = self.queue.lock();
            let queue = &mut *queue;
            let mut busy = false;
            let mut running = 0;
            let mut occupied = 0;
            for index in 0..queue.members.len() {
                let instance = Arc::clone(&queue.members[index].instance);
                let verdict = instance.check(now, limits, &mut answers);
                busy |= verdict.busy;
                running += usize::from(verdict.running);
                condemned |= verdict.condemned;
                load_failed.extend(verdict.load_failed);
                hits.extend(verdict.limit);
                occupied += usize::from(verdict.occupied && queue.members[index].phase.is_live());
                if verdict.lost {
                    start |= queue.lose(&instance, verdict.returned);
                } else {
                    queue.take_back(verdict.returned);
                }
            }
            while let Some(call) = queue.calls.pop_front_if(|call| call.deadline <= now) {
                let over = now.saturating_duration_since(call.deadline);
                let hit = LimitHit::time(Limit::WallTime, limits.wall_time, limits.wall_time + over);
                let mut error = error(hit);
                error.message.push_str(", before the function could begin with it");
                answers.push((call.replies, Err(error)));
            }
            if !queue.calls.is_empty() {
                wake = queue.wake_one();
            }
            if wake.is_none() && queue.needs_another(limits, now, occupied, running, self.engine.processors) {
                queue.starting += 1;
                start = true;
            }
            busy || !queue.calls.is_empty()
        };
        deliver(&mut answers);
        for hit in hits {
            self.host.events.event(EngineEvent::LimitHit(hit));
        }
        if condemned {
            self.report_condemned();
        }
        // After that: who loads it should know that its process is lost.
        for (load, error) in load_failed {
            self.load_failed(load, error);
        }
        if let Some(instance) = wake {
            instance.waker.wake();
        }
        if start {
            self.start_instance();
        }
        busy
    }

    fn forget(self: Arc<Self>, now: Instant) -> bool {
        // Before looking, so that whoever notes something after the look finds it out of the list and puts it back.
        self.watched.store(false, Ordering::SeqCst);
        Arc::clone(&self).check(now) && !self.watched.swap(true, Ordering::SeqCst)
    }
}
