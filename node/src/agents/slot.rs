//! A function's place in the pool, whichever agent it is on. Calls find their way here: to the agent it is placed on, or,
//! while it is being moved, into a bounded queue that its next agent is given.

mod conduct;
#[cfg(test)]
pub(super) mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_agent::link::FunctionId;
use nex_runtime::engine::{Function, FunctionHost, FunctionSpec, Invocation};
use nex_runtime::invocation::{ErrorKind, InvokeError, ReplySink, Trigger};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub(super) use self::conduct::Blame;
use self::conduct::Conduct;
use super::agent::{Agent, Submitted};
use crate::quarantine::Record;

/// A deployed function.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) spec: FunctionSpec,
    pub(super) host: FunctionHost,
    /// Time beyond the function's own limit before the node answers in its agent's place.
    reply_grace: Duration,
    /// Bounds the calls of all functions that wait to be placed.
    waiting_kib: Arc<Semaphore>,
    pub(super) conduct: Conduct,
    /// Cancelled when it takes no calls any more.
    pub(super) ended: CancellationToken,
    route: Mutex<Route>,
}

/// Where it is.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    pub(super) agent: Arc<Agent>,
    pub(super) function: FunctionId,
}

#[derive(Debug)]
struct Route {
    phase: Phase,
    /// Takes calls. A function on its way from a condemned agent keeps its place there until it has the next one.
    placement: Option<Placement>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
enum Phase {
    /// It has a place, or has just lost it and nobody has noticed yet.
    Placed,
    /// Somebody is finding it a place.
    Moving,
    /// It gets no place for a while, and what its callers are told.
    Quarantined(String),
    /// It takes no calls any more, and why.
    Ended(String),
}

#[derive(Debug)]
struct Waiting {
    trigger: Trigger,
    replies: Box<dyn ReplySink>,
    until: Instant,
    /// Its share of what may wait.
    memory: OwnedSemaphorePermit,
}

/// What became of a placement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Installed {
    Yes,
    /// The agent went out of service meanwhile.
    OutOfService,
    /// The function was stopped meanwhile.
    Ended,
}

impl Slot {
    /// A function that is about to be placed for the first time.
    pub(super) fn new(
        spec: FunctionSpec,
        host: FunctionHost,
        artifact: Arc<Record>,
        reply_grace: Duration,
        waiting_kib: Arc<Semaphore>,
    ) -> Self {
        Self {
            spec,
            host,
            reply_grace,
            waiting_kib,
            conduct: Conduct::new(artifact),
            ended: CancellationToken::new(),
            route: Mutex::new(Route {
                phase: Phase::Moving,
                placement: None,
                waiting: VecDeque::new(),
            }),
        }
    }

    fn invoke(&self, calls: impl ExactSizeIterator<Item = Invocation>) {
        let now = Instant::now();
        let mut refused = Vec::new();
        {
            let mut route = self.route.lock();
            let several = calls.len() > 1;
            // Also if the function is found to be gone from it half-way.
            let agent = route
                .placement
                .as_ref()
                .filter(|_| several)
                .map(|place| place.agent.clone());
            for call in calls {
                refused.extend(self.submit(&mut route, call, now, several).err());
            }
            if let Some(agent) = agent {
                agent.write_gathered();
            }
        }
        for (replies, error) in refused {
            replies.finish(Err(error));
        }
    }

    fn submit(
        &self,
        route: &mut Route,
        Invocation { trigger, replies }: Invocation,
        now: Instant,
        one_of_several: bool,
    ) -> Result<(), (Box<dyn ReplySink>, InvokeError)> {
        let limits = &self.spec.limits;
        let submitted = match &route.placement {
            Some(Placement { agent, function }) => {
                let deadline = now + limits.wall_time + self.reply_grace;
                agent.submit(*function, trigger, replies, deadline, one_of_several)
            }
            None => Submitted::Gone(trigger, replies),
        };
        match submitted {
            Submitted::Sent => Ok(()),
            Submitted::Refused(replies, error) => Err((replies, error)),
            Submitted::Gone(trigger, replies) => {
                route.placement = None;
                let error = match &route.phase {
                    Phase::Ended(message) => InvokeError::new(ErrorKind::NotReady, message),
                    Phase::Quarantined(message) => InvokeError::new(ErrorKind::Quarantined, message),
                    Phase::Placed | Phase::Moving => match self.room_to_wait(route, &trigger) {
                        Ok(memory) => {
                            route.waiting.push_back(Waiting {
                                trigger,
                                replies,
                                until: now + limits.wall_time,
                                memory,
                            });
                            return Ok(());
                        }
                        Err(message) => InvokeError::new(ErrorKind::Overloaded, message),
                    },
                };
                Err((replies, error))
            }
        }
    }

    /// Room for one more call that waits for a place, or why there is none.
    fn room_to_wait(&self, route: &Route, trigger: &Trigger) -> Result<OwnedSemaphorePermit, &'static str> {
        if route.waiting.len() >= self.spec.limits.queue_depth as usize {
            return Err("the function is being moved, and too many calls wait for it");
        }
        let headers = trigger.headers.iter().map(|(name, value)| name.len() + value.len());
        let bytes = trigger.payload.len() + headers.sum::<usize>();
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        self.waiting_kib
            .clone()
            .try_acquire_many_owned(kib)
            .map_err(|_| "the function is being moved, and the calls that wait hold too much memory")
    }

    /// Sends calls to a new place from now on, those that waited first.
    pub(super) fn install(&self, placement: &Placement) -> Installed {
        let mut refused = Vec::new();
        {
            let mut route = self.route.lock();
            if matches!(route.phase, Phase::Ended(_)) {
                return Installed::Ended;
            }
            // An agent that goes out of service after this look finds the placement and has the function moved.
            if !placement.agent.serves() {
                return Installed::OutOfService;
            }
            route.phase = Phase::Placed;
            route.placement = Some(placement.clone());
            while let Some(call) = route.waiting.pop_front() {
                let deadline = call.until + self.reply_grace;
                match placement
                    .agent
                    .submit(placement.function, call.trigger, call.replies, deadline, false)
                {
                    Submitted::Sent => {}
                    Submitted::Refused(replies, error) => refused.push((replies, error)),
                    Submitted::Gone(trigger, replies) => {
                        route.waiting.push_front(Waiting {
                            trigger,
                            replies,
                            until: call.until,
                            memory: call.memory,
                        });
                        route.placement = None;
                        break;
                    }
                }
            }
        }
        for (replies, error) in refused {
            replies.finish(Err(error));
        }
        Installed::Yes
    }

    /// Takes note that an agent is not to be used any more; true if the function now needs somebody to find it a place.
    pub(super) fn lose(&self, agent: &Arc<Agent>) -> bool {
        let mut route = self.route.lock();
        if route.is_on(agent) {
            route.placement = None;
        }
        route.start_moving_if(|route| route.placement.is_none())
    }

    /// Has it moved from an agent that serves it until then; true if it now needs somebody to find it a place.
    pub(super) fn leave(&self, agent: &Arc<Agent>) -> bool {
        let mut route = self.route.lock();
        route.start_moving_if(|route| route.is_on(agent))
    }

    pub(super) fn is_on(&self, agent: &Arc<Agent>) -> bool {
        self.route.lock().is_on(agent)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.route.lock().phase, Phase::Ended(_))
    }

    /// Answers the calls that wait for a place, and all that come, with this; false if it takes none any more.
    pub(super) fn confine(&self, message: &str) -> bool {
        let waiting = {
            let mut route = self.route.lock();
            if matches!(route.phase, Phase::Ended(_)) {
                return false;
            }
            route.phase = Phase::Quarantined(message.to_owned());
            // An agent that is being drained may serve it still.
            route.placement = None;
            std::mem::take(&mut route.waiting)
        };
        for call in waiting {
            let error = InvokeError::new(ErrorKind::Quarantined, message);
            call.replies.finish(Err(error));
        }
        true
    }

    /// Lets calls wait for a place again; false if it takes none any more.
    pub(super) fn release(&self) -> bool {
        let mut route = self.route.lock();
        let confined = matches!(route.phase, Phase::Quarantined(_));
        if confined {
            route.phase = Phase::Moving;
        }
        confined
    }

    /// Answers the calls that have waited too long for a place.
    pub(super) fn expire(&self, now: Instant) {
        let mut late = Vec::new();
        {
            let mut route = self.route.lock();
            // All wait equally long, so the first in line is the first to be late.
            while let Some(call) = route.waiting.pop_front_if(|call| call.until <= now) {
                late.push(call);
            }
        }
        let message = "the function did not become ready in time after its agent had ended";
        for call in late {
            call.replies.finish(Err(InvokeError::new(ErrorKind::NotReady, message)));
        }
    }

    /// Takes no calls any more; returns its place, if it has one.
    pub(super) fn end(&self, why: &str) -> Option<Placement> {
        let (placement, waiting) = {
            let mut route = self.route.lock();
            if !matches!(route.phase, Phase::Ended(_)) {
                route.phase = Phase::Ended(why.to_owned());
            }
            (route.placement.take(), std::mem::take(&mut route.waiting))
        };
        self.ended.cancel();
        for call in waiting {
            call.replies.finish(Err(InvokeError::new(ErrorKind::NotReady, why)));
        }
        placement
    }
}

impl Route {
    fn is_on(&self, agent: &Arc<Agent>) -> bool {
        self.placement
            .as_ref()
            .is_some_and(|placement| Arc::ptr_eq(&placement.agent, agent))
    }

    fn start_moving_if(&mut self, condition: impl FnOnce(&Self) -> bool) -> bool {
        let start = matches!(self.phase, Phase::Placed) && condition(self);
        if start {
            self.phase = Phase::Moving;
        }
        start
    }
}

/// The handle the pool gives out. It outlives any agent; dropping it undeploys.
#[derive(Debug)]
pub(super) struct PoolFunction(pub(super) Arc<Slot>);

impl Function for PoolFunction {
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>) {
        self.0.invoke(std::iter::once(Invocation { trigger, replies }));
    }

    fn invoke_all(&self, calls: Vec<Invocation>) {
        self.0.invoke(calls.into_iter());
    }
}

impl Drop for PoolFunction {
    fn drop(&mut self) {
        if let Some(placement) = self.0.end("the function was stopped") {
            placement.agent.undeploy(placement.function);
        }
    }
}
