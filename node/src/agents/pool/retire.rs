//! Takes agents out of service: dead ones, condemned ones, idle ones.

use std::sync::Arc;

use nex_agent::crash::MAX_THREAD_NAME;

use super::place::Leaving;
use super::{Pool, START_TRIAL};
use crate::agents::agent::{Agent, Casualty, Offender, died};
use crate::agents::error::{AgentError, Fault};
use crate::agents::report::AgentEvent;
use crate::agents::slot::Blame;

impl Pool {
    /// Ends an agent: answers its callers and has its process killed. Only the first reason counts. What becomes of its
    /// functions is [settled](Self::settle) when it is known what it died of.
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
        self.refill.notify_one();
    }

    /// Lays the blame for a death, and has the functions moved. `thread` is where the process crashed, if it said so.
    pub(in crate::agents) fn settle(self: &Arc<Self>, agent: &Arc<Agent>, thread: Option<&str>) {
        let casualties = agent.take_casualties();
        if let Some(death) = agent.death()
            && !death.expected
        {
            let alone = agent.owner().is_some_and(|owner| owner.workload.is_some());
            lay_blame(&casualties, thread, alone, &format!("it {}", death.message));
        }
        for casualty in casualties {
            drop(casualty.loading);
            if casualty.slot.lose(agent) {
                self.spawn_move(casualty.slot);
            }
        }
    }

    /// Replaces an agent without disturbing its functions: they move to another one and serve where they are meanwhile,
    /// all but the offender. The calls in flight are answered before the process is killed.
    pub(in crate::agents) fn condemn(self: &Arc<Self>, agent: &Arc<Agent>, offender: Option<Offender>, message: &str) {
        let slots = agent.condemn(message.to_owned(), self.config.start_timeout);
        if let Some(slots) = slots {
            let leaving = Arc::new(Leaving::from_agent(self));
            self.withdraw(agent);
            tracing::warn!(agent = agent.id, "agent condemned: {message}");
            self.report(AgentEvent::Condemned {
                id: agent.id.clone(),
                namespace: agent.owner().map(|owner| owner.namespace.clone()),
                message: message.to_owned(),
            });
            // The offender first, so that it is not taken for one that may stay.
            if let Some(offender) = offender {
                self.remove_offender(agent, offender, message);
            }
            for slot in slots {
                if slot.leave(agent) {
                    self.spawn_move_in_turn(slot, agent.clone(), leaving.clone());
                }
            }
        } else if let Some(offender) = offender {
            self.remove_offender(agent, offender, message);
        }
    }

    fn remove_offender(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        Offender { slot, loading, known }: Offender,
        message: &str,
    ) {
        if !known {
            let what = format!("its code did not stop ({message})");
            slot.conduct.blame(loading, Blame::Certain, &what);
        }
        if slot.lose(agent) {
            self.spawn_move(slot);
        }
    }

    /// Ends an agent that has had no function for long.
    pub(in crate::agents) fn retire_if_idle(&self, agent: &Arc<Agent>) {
        if agent.stop_if_idle(self.config.idle_linger, self.config.start_timeout) {
            // A deploy that has just chosen it is refused by it and chooses again.
            self.withdraw(agent);
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
        self.state.lock().all.retain(|other| !Arc::ptr_eq(&other.agent, agent));
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

/// Decides which functions an agent died of: the one whose thread it crashed on, else the one that was at work, if it was
/// the only one.
fn lay_blame(casualties: &[Casualty], thread: Option<&str>, alone: bool, what: &str) {
    let blame = |casualty: &Casualty, blame| {
        if !casualty.convicted {
            casualty.slot.conduct.blame(casualty.loading.is_some(), blame, what);
        }
    };
    let mut named = casualties.iter().filter(|casualty| {
        let id = &casualty.slot.spec.id;
        thread.is_some_and(|thread| {
            !thread.is_empty() && id.starts_with(thread) && thread.len() == id.len().min(MAX_THREAD_NAME)
        })
    });
    if let (Some(culprit), None) = (named.next(), named.next()) {
        return blame(culprit, Blame::Certain);
    }
    let at_work = |casualty: &&Casualty| casualty.loading.is_some() || casualty.busy;
    let suspects: Vec<&Casualty> = casualties.iter().filter(at_work).collect();
    let how = match suspects.len() {
        1 if alone => Blame::Certain,
        1 => Blame::Likely,
        _ => Blame::Possible,
    };
    for suspect in suspects {
        blame(suspect, how);
    }
}
