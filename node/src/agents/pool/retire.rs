//! Takes agents out of service: dead ones, condemned ones, idle ones.

use std::sync::Arc;

use super::{Pool, START_TRIAL};
use crate::agents::agent::{Agent, died};
use crate::agents::error::{AgentError, Fault};
use crate::agents::report::AgentEvent;
use crate::agents::slot::Slot;

impl Pool {
    /// Ends an agent: answers its callers, has its functions moved, and its process killed. Only the first reason counts.
    pub(in crate::agents) fn fail(self: &Arc<Self>, agent: &Arc<Agent>, fault: Fault) {
        let Some(wreck) = agent.break_down(fault) else {
            return;
        };
        let unused = self.withdraw(agent);
        // One that dies young would do so again at once.
        if unused && agent.age() < START_TRIAL && !self.closing.is_cancelled() {
            let mut state = self.state.lock();
            state.failures += 1;
            let message = format!("the agent {}", wreck.message);
            state.last_failure = Some(AgentError::Start(message));
        }
        for replies in wreck.replies {
            replies.finish(Err(died(&wreck.message)));
        }
        for slot in wreck.slots {
            if slot.lose(agent) {
                self.spawn_move(slot);
            }
        }
        self.refill.notify_one();
    }

    /// Replaces an agent without disturbing its functions: they move to another one and serve where they are meanwhile,
    /// all but the offender. The calls in flight are answered before the process is killed.
    pub(in crate::agents) fn condemn(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        offender: Option<&Arc<Slot>>,
        message: &str,
    ) {
        let slots = agent.condemn(message.to_owned(), self.config.start_timeout);
        if let Some(slots) = slots {
            self.withdraw(agent);
            tracing::warn!(agent = agent.id, "agent condemned: {message}");
            self.report(AgentEvent::Condemned {
                id: agent.id.clone(),
                namespace: agent.owner().map(|owner| owner.namespace.clone()),
                message: message.to_owned(),
            });
            // The offender first, so that it is not taken for one that may stay.
            if let Some(offender) = offender {
                self.remove_offender(agent, offender);
            }
            for slot in slots {
                if slot.leave(agent) {
                    self.spawn_move(slot);
                }
            }
        } else if let Some(offender) = offender
            && !agent.is_dead()
        {
            self.remove_offender(agent, offender);
        }
    }

    fn remove_offender(self: &Arc<Self>, agent: &Arc<Agent>, offender: &Arc<Slot>) {
        offender.convict();
        if offender.lose(agent) {
            self.spawn_move(offender.clone());
        }
    }

    /// Ends an agent that has had no function for long.
    pub(in crate::agents) fn retire_if_idle(&self, agent: &Arc<Agent>) {
        if agent.idle_for(self.config.idle_linger) {
            self.withdraw(agent);
            // A deploy that has just chosen it is refused by it and chooses again.
            agent.stop(self.config.start_timeout);
        }
    }

    /// Takes an agent off the lists of those to deploy on; true if it had no owner.
    fn withdraw(&self, agent: &Arc<Agent>) -> bool {
        let mut state = self.state.lock();
        let warm = state.warm.len();
        state.warm.retain(|other| !Arc::ptr_eq(other, agent));
        let unused = state.warm.len() < warm;
        if let Some(owner) = agent.owner()
            && let Some(owned) = state.owned.get_mut(owner)
        {
            owned.retain(|other| !Arc::ptr_eq(other, agent));
            if owned.is_empty() {
                state.owned.remove(owner);
            }
        }
        unused
    }

    /// Takes note that an agent's process is gone.
    pub(in crate::agents) fn ended(&self, agent: &Arc<Agent>, message: String, code: i32, expected: bool) {
        self.state.lock().all.retain(|other| !Arc::ptr_eq(other, agent));
        let namespace = agent.owner().map(|owner| owner.namespace.clone());
        if expected {
            tracing::debug!(agent = agent.id, namespace, code, "agent ended: {message}");
        } else {
            tracing::warn!(agent = agent.id, namespace, code, "agent ended: {message}");
        }
        self.report(AgentEvent::Stopped {
            id: agent.id.clone(),
            namespace,
            message,
            code,
        });
    }
}
