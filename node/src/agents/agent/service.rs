//! How an agent goes out of service: drained, stopped, or dead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_agent::link::{FunctionId, Health, NodeToAgent};
use nex_runtime::engine::LoadError;
use nex_runtime::invocation::{ErrorKind, InvokeError, ReplySink};
use tokio::sync::oneshot;

use super::{Agent, Deployed, Known};
use crate::agents::error::Fault;
use crate::agents::slot::Slot;

/// Whether an agent is fit for use.
pub(super) enum Condition {
    Serving,
    Draining(Drain),
    Dead(Death),
}

/// How an agent ended. The message completes "the agent …".
#[derive(Debug, Clone)]
pub(in crate::agents) struct Death {
    pub(in crate::agents) message: String,
    /// It was wanted.
    pub(in crate::agents) expected: bool,
    /// It ended of itself and may have an exit code to tell.
    pub(in crate::agents) unaided: bool,
}

/// How an agent is taken out of service.
pub(super) struct Drain {
    /// What to say of its end.
    fault: Fault,
    /// When it is killed.
    until: Instant,
    /// Whether it was told to answer what it has and to exit. Before that, its functions have to be moved.
    told: bool,
}

/// The calls a dead agent leaves behind.
pub(in crate::agents) struct Wreck {
    pub(in crate::agents) message: String,
    pub(in crate::agents) replies: Vec<Box<dyn ReplySink>>,
}

/// A function that was on an agent when it died.
pub(in crate::agents) struct Casualty {
    pub(in crate::agents) slot: Arc<Slot>,
    /// Whoever waits for it to load learns the end of this, which is dropped when the blame has been laid.
    pub(in crate::agents) loading: Option<oneshot::Sender<Result<(), LoadError>>>,
    /// It had calls to answer.
    pub(in crate::agents) busy: bool,
    /// It has been blamed for the loss of this agent before.
    pub(in crate::agents) convicted: bool,
}

/// A function whose code does not stop.
pub(in crate::agents) struct Offender {
    pub(in crate::agents) slot: Arc<Slot>,
    pub(in crate::agents) loading: bool,
    /// It has been convicted before: several instances of it may be stuck, but they cost one agent.
    pub(in crate::agents) known: bool,
}

/// What a drain needs next.
pub(in crate::agents) enum DrainStep {
    /// Nothing, or there is no drain.
    Wait,
    /// All its functions have left: these are to be asked whether that is so.
    Leaving(Vec<Arc<Slot>>),
    /// Its time is over.
    Kill,
}

/// Time a drained agent has to exit before it is killed.
const EXIT_GRACE: Duration = Duration::from_secs(1);

impl Agent {
    pub(in crate::agents) fn pong(&self, health: Health) {
        self.state.lock().health = health;
    }

    /// Marks the agent as not to be used for anything new, until its functions have been moved; returns their slots, or
    /// None if it was out of service before.
    pub(in crate::agents) fn condemn(&self, message: String, move_time: Duration) -> Option<Vec<Arc<Slot>>> {
        let mut state = self.state.lock();
        if !matches!(state.condition, Condition::Serving) {
            return None;
        }
        let slots = state.slots();
        let longest = slots.iter().map(|slot| slot.spec.limits.wall_time).max();
        state.condition = Condition::Draining(Drain {
            fault: Fault::Condemned(message),
            until: Instant::now() + move_time + longest.unwrap_or_default(),
            told: false,
        });
        drop(state);
        self.progress.notify_one();
        Some(slots)
    }

    /// Asks the agent to answer what it has and to exit within this time.
    pub(in crate::agents) fn stop(&self, grace: Duration) {
        {
            let mut state = self.state.lock();
            let until = Instant::now() + grace;
            match &mut state.condition {
                Condition::Dead(_) => return,
                Condition::Draining(drain) => {
                    drain.until = drain.until.min(until);
                    if drain.told {
                        return;
                    }
                    drain.told = true;
                }
                Condition::Serving => {
                    state.condition = Condition::Draining(Drain {
                        fault: Fault::Stopped,
                        until,
                        told: true,
                    });
                }
            }
        }
        self.tell_to_drain();
    }

    /// [Stops](Self::stop) it if it serves and has been without functions for so long; false if it does not or has not.
    pub(in crate::agents) fn stop_if_idle(&self, linger: Duration, grace: Duration) -> bool {
        {
            // One look under one lock: a function may be coming.
            let mut state = self.state.lock();
            let idle = matches!(state.condition, Condition::Serving)
                && state.functions.is_empty()
                && state.empty_since.is_some_and(|since| since.elapsed() >= linger);
            if !idle {
                return false;
            }
            state.condition = Condition::Draining(Drain {
                fault: Fault::Stopped,
                until: Instant::now() + grace,
                told: true,
            });
        }
        self.tell_to_drain();
        true
    }

    fn tell_to_drain(&self) {
        if let Err(error) = self.outbox.send(NodeToAgent::Drain) {
            tracing::debug!(agent = self.id, %error, "drain not sent");
        }
        self.progress.notify_one();
    }

    /// Asks a drained agent to exit.
    pub(in crate::agents) fn dismiss(&self) {
        self.stop(EXIT_GRACE);
    }

    /// What its drain needs.
    pub(in crate::agents) fn drain_step(&self, now: Instant) -> DrainStep {
        let state = self.state.lock();
        match &state.condition {
            Condition::Draining(drain) if now >= drain.until => DrainStep::Kill,
            Condition::Draining(drain) if !drain.told && state.in_flight == 0 => DrainStep::Leaving(state.slots()),
            _ => DrainStep::Wait,
        }
    }

    /// How it ended; nothing while it lives.
    pub(in crate::agents) fn death(&self) -> Option<Death> {
        match &self.state.lock().condition {
            Condition::Dead(death) => Some(death.clone()),
            Condition::Serving | Condition::Draining(_) => None,
        }
    }

    /// Takes note that a function's code does not stop; None if it was undeployed.
    pub(in crate::agents) fn convict(&self, function: FunctionId) -> Known<Offender> {
        let mut state = self.state.lock();
        Ok(state.function(function)?.map(|deployed| Offender {
            slot: deployed.slot.clone(),
            loading: deployed.loading.is_some(),
            known: std::mem::replace(&mut deployed.convicted, true),
        }))
    }

    /// The functions that were on it when it died. Whoever gets them has them moved.
    pub(in crate::agents) fn take_casualties(&self) -> Vec<Casualty> {
        std::mem::take(&mut self.state.lock().casualties)
    }

    /// Ends its service, once: nothing is sent or accepted any more, the process is to be killed.
    pub(in crate::agents) fn break_down(&self, fault: Fault) -> Option<Wreck> {
        let mut state = self.state.lock();
        let (message, expected) = match &state.condition {
            Condition::Dead(_) => return None,
            Condition::Serving => (fault.to_string(), matches!(fault, Fault::Stopped)),
            Condition::Draining(drain) => match (&drain.fault, &fault) {
                // It was told to exit and did, or has been dismissed by force.
                (planned, Fault::LinkClosed | Fault::Exited(_)) if drain.told => (planned.to_string(), true),
                (Fault::Stopped, Fault::Overstayed) => (fault.to_string(), true),
                (planned, Fault::Overstayed) => (planned.to_string(), true),
                _ => (fault.to_string(), matches!(fault, Fault::Stopped)),
            },
        };
        state.condition = Condition::Dead(Death {
            message: message.clone(),
            expected,
            unaided: matches!(fault, Fault::LinkClosed | Fault::Exited(_)),
        });
        let functions = std::mem::take(&mut state.functions);
        state.casualties = functions.into_values().map(Casualty::from).collect();
        state.in_flight = 0;
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        self.outbox.close();
        self.host_calls.abort_all();
        self.dead.cancel();
        Some(Wreck {
            message,
            replies: calls.into_values().map(|call| call.replies).collect(),
        })
    }
}

impl From<Deployed> for Casualty {
    fn from(deployed: Deployed) -> Self {
        Self {
            slot: deployed.slot,
            loading: deployed.loading,
            busy: deployed.in_flight > 0,
            convicted: deployed.convicted,
        }
    }
}

/// What the callers of a dead agent are told.
pub(in crate::agents) fn died(message: &str) -> InvokeError {
    InvokeError::new(ErrorKind::NotReady, format!("the agent running the function {message}"))
}
