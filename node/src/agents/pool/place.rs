//! Finds functions a place: the first one when they are deployed, the next one when their agent ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_runtime::engine::{EngineEvent, LoadError};

use super::{Pool, SHUTTING_DOWN, START_BACK_OFF};
use crate::agents::agent::{Agent, DeployError, Owner};
use crate::agents::config::Isolation;
use crate::agents::error::AgentError;
use crate::agents::slot::{Blame, Installed, Slot};
use crate::quarantine::Quarantine;

/// Why a function has no place.
#[derive(Debug)]
enum PlaceError {
    /// There is no agent.
    Agent(AgentError),
    /// The agent went out of service before the function came to it, which says nothing of the function.
    OutOfService,
    /// The agent died while it loaded the function.
    Died(String),
    /// The engine refused it.
    Load(LoadError),
    /// It was stopped meanwhile.
    Ended,
}

/// Attempts to place a function again before it is given up.
const MAX_ATTEMPTS: u32 = 5;

/// Agents that may die of a function's first load before the deploy is refused.
const MAX_FIRST_ATTEMPTS: u32 = 3;

/// Pause before another agent is tried in place of one that has just gone out of service.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// Pause before a function is tried again where an engine had no room for it.
const ROOM_AFTER: Duration = Duration::from_millis(100);

/// How long a function may keep others from moving; most are loaded in a tenth of that.
const TURN: Duration = Duration::from_millis(25);

/// How often waiting calls are looked at while their function is moved.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

impl Pool {
    fn owner_of(&self, slot: &Slot) -> Owner {
        let alone = self.config.isolation == Isolation::Workload || slot.conduct.must_be_alone();
        Owner {
            namespace: slot.spec.namespace.clone(),
            workload: alone.then(|| slot.spec.id.clone()),
        }
    }

    /// An agent in service for this owner: one it has, or a warm one from now on its own.
    async fn acquire(&self, owner: &Owner) -> Result<Arc<Agent>, AgentError> {
        let waited = self.config.start_timeout;
        let deadline = tokio::time::Instant::now() + waited;
        let mut place: Option<WaitingPlace<'_>> = None;
        loop {
            let mut warmed = std::pin::pin!(self.warmed.notified());
            warmed.as_mut().enable();
            if let Some(agent) = self.try_acquire(owner)? {
                return Ok(agent);
            }
            if place.is_none() {
                place = Some(WaitingPlace::take(self, owner));
            }
            if tokio::time::timeout_at(deadline, warmed).await.is_err() {
                let cause = self.state.lock().last_failure.clone();
                let cause = cause.map(|error| error.to_string());
                return Err(AgentError::NoneReady { waited, cause });
            }
        }
    }

    fn try_acquire(&self, owner: &Owner) -> Result<Option<Arc<Agent>>, AgentError> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.closed {
            return Err(AgentError::ShutDown);
        }
        let max = self.config.max_functions_per_agent;
        let owned = state.owned.entry(owner.clone()).or_default();
        let fits = |agent: &&Arc<Agent>| agent.serves() && agent.function_count() < max;
        let mut found = owned.iter().find(fits).cloned();
        while found.is_none() {
            let Some(agent) = state.warm.pop_front() else {
                break;
            };
            // One that has just died is still listed until its supervisor comes to it.
            if agent.serves() {
                owned.push(agent.clone());
                found = Some(agent);
            }
        }
        if owned.is_empty() {
            state.owned.remove(owner);
        }
        // Marks it as used, so that it is not retired before the function comes to it.
        let found = found.filter(|agent| agent.assign(owner));
        self.refill.notify_one();
        Ok(found)
    }

    async fn place(&self, slot: &Arc<Slot>) -> Result<(), PlaceError> {
        let owner = self.owner_of(slot);
        let agent = self.acquire(&owner).await.map_err(PlaceError::Agent)?;
        let placement = agent
            .deploy(slot, self.config.max_functions_per_agent)
            .await
            .map_err(|error| match error {
                DeployError::OutOfService => PlaceError::OutOfService,
                DeployError::Died(message) => PlaceError::Died(message),
                DeployError::Load(error) => PlaceError::Load(error),
            })?;
        {
            let mut state = self.state.lock();
            state.failures = 0;
            state.last_failure = None;
        }
        match slot.install(&placement) {
            Installed::Yes => Ok(()),
            Installed::OutOfService => {
                placement.agent.undeploy(placement.function);
                match placement.agent.death() {
                    Some(death) if !death.expected => {
                        // It has just been loaded, which may well be the reason.
                        let message = format!("the agent {}", death.message);
                        slot.conduct.blame(true, Blame::Possible, &message);
                        Err(PlaceError::Died(message))
                    }
                    _ => Err(PlaceError::OutOfService),
                }
            }
            Installed::Ended => {
                placement.agent.undeploy(placement.function);
                Err(PlaceError::Ended)
            }
        }
    }

    /// Places a function for the first time.
    pub(in crate::agents) async fn place_first(&self, slot: &Arc<Slot>) -> Result<(), LoadError> {
        let mut attempts = 0;
        loop {
            // Before the first attempt, because the same bytes may have been here before.
            if let Some(quarantine) = slot.conduct.quarantine() {
                return Err(LoadError::Quarantined(quarantine.to_string()));
            }
            match self.place(slot).await {
                Ok(()) => return Ok(()),
                Err(PlaceError::Load(error)) => return Err(error),
                Err(PlaceError::Agent(error)) => return Err(LoadError::Engine(error.to_string())),
                Err(PlaceError::Ended) => {
                    return Err(LoadError::Engine("stopped while it loaded".to_owned()));
                }
                Err(PlaceError::OutOfService) => tokio::time::sleep(RETRY_AFTER).await,
                Err(PlaceError::Died(message)) => {
                    attempts += 1;
                    if attempts == MAX_FIRST_ATTEMPTS && slot.conduct.quarantine().is_none() {
                        return Err(LoadError::Engine(format!(
                            "{attempts} agents ended while they loaded it; the last one: {message}"
                        )));
                    }
                    tokio::time::sleep(slot.conduct.back_off()).await;
                }
            }
        }
    }

    pub(super) fn spawn_move(self: &Arc<Self>, slot: Arc<Slot>) {
        let pool = self.clone();
        self.spawn(async move { pool.move_function(&slot).await });
    }

    /// Moves a function that is served where it is until then. Such functions take turns: loading all at once would keep
    /// them, and their neighbours, from their calls. Once its agent is dead, it moves at once. What takes longer than a turn,
    /// a quarantine even, keeps neither others nor the next warm agent waiting.
    pub(super) fn spawn_move_in_turn(self: &Arc<Self>, slot: Arc<Slot>, agent: Arc<Agent>, leaving: Arc<Leaving>) {
        let pool = self.clone();
        self.spawn(async move {
            let turn = tokio::select! {
                biased;
                () = agent.dead.cancelled() => None,
                turn = pool.turns.acquire() => turn.ok(),
            };
            let mut moving = std::pin::pin!(pool.move_function(&slot));
            if tokio::time::timeout(TURN, &mut moving).await.is_err() {
                drop((turn, leaving));
                moving.await;
            }
        });
    }

    /// Finds a function its next place, after its quarantine if it has deserved one.
    async fn move_function(&self, slot: &Arc<Slot>) {
        let message = loop {
            if let Some(quarantine) = slot.conduct.quarantine() {
                self.sit_out(slot, &quarantine).await;
            }
            match self.place_again_in_time(slot).await {
                Ok(()) => return,
                Err(Unplaced::Quarantined) => {}
                Err(Unplaced::Lost(message)) => break message,
            }
        };
        if let Some(placement) = slot.end(&message) {
            placement.agent.undeploy(placement.function);
        }
        if !self.closing.is_cancelled() {
            let spec = &slot.spec;
            tracing::error!(workload = spec.name, namespace = spec.namespace, "{message}");
            slot.host.events.event(EngineEvent::Lost { message });
        }
    }

    /// Waits until a quarantine is over, or nobody is interested any more.
    async fn sit_out(&self, slot: &Arc<Slot>, quarantine: &Quarantine) {
        let message = quarantine.to_string();
        if !slot.confine(&message) {
            return;
        }
        slot.host.events.event(EngineEvent::Quarantined {
            since: quarantine.since,
            until: quarantine.until,
            message,
        });
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = slot.ended.cancelled() => {}
            () = tokio::time::sleep_until(quarantine.ends.into()) => {
                if slot.release() {
                    slot.host.events.event(EngineEvent::Released);
                }
            }
        }
    }

    /// Finds a function its next place, and answers those who wait for it too long.
    async fn place_again_in_time(&self, slot: &Arc<Slot>) -> Result<(), Unplaced> {
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        let mut moving = std::pin::pin!(self.place_again(slot));
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(Unplaced::Lost(SHUTTING_DOWN.to_owned())),
                outcome = &mut moving => return outcome,
                _ = expire.tick() => slot.expire(Instant::now()),
            }
        }
    }

    async fn place_again(&self, slot: &Arc<Slot>) -> Result<(), Unplaced> {
        let mut attempts = 0;
        loop {
            tokio::time::sleep(slot.conduct.back_off()).await;
            if slot.has_ended() {
                return Ok(());
            }
            if slot.conduct.quarantine().is_some() {
                return Err(Unplaced::Quarantined);
            }
            let message = match self.place(slot).await {
                Ok(()) | Err(PlaceError::Ended) => return Ok(()),
                Err(PlaceError::OutOfService) => {
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
                // Which is not the function's fault, and passes.
                Err(PlaceError::Load(LoadError::Overloaded(_))) => {
                    tokio::time::sleep(ROOM_AFTER).await;
                    continue;
                }
                Err(PlaceError::Agent(error)) => error.to_string(),
                Err(PlaceError::Died(message)) => message,
                Err(PlaceError::Load(error)) => error.to_string(),
            };
            attempts += 1;
            tracing::warn!(
                workload = slot.spec.name,
                namespace = slot.spec.namespace,
                attempts,
                "function not moved: {message}"
            );
            if attempts == MAX_ATTEMPTS {
                return Err(Unplaced::Lost(format!(
                    "the function was given up after {attempts} attempts to start it again: {message}"
                )));
            }
            // Deaths have their back-off in the conduct; other failures have none there.
            tokio::time::sleep(START_BACK_OFF * attempts).await;
        }
    }
}

/// Why a function that lost its place has no other.
enum Unplaced {
    /// It has cost too many agents.
    Quarantined,
    /// It is given up, and why.
    Lost(String),
}

/// The functions of a condemned agent are being moved, until this is dropped.
pub(super) struct Leaving(Arc<Pool>);

impl Leaving {
    pub(super) fn from_agent(pool: &Arc<Pool>) -> Self {
        pool.state.lock().leaving += 1;
        Self(pool.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.state.lock().leaving -= 1;
        self.0.refill.notify_one();
    }
}

/// Counts a deploy that waits for an agent, so that one is started for its owner.
struct WaitingPlace<'a> {
    pool: &'a Pool,
    owner: &'a Owner,
}

impl<'a> WaitingPlace<'a> {
    fn take(pool: &'a Pool, owner: &'a Owner) -> Self {
        *pool.state.lock().waiting.entry(owner.clone()).or_default() += 1;
        pool.refill.notify_one();
        Self { pool, owner }
    }
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        if let Some(count) = state.waiting.get_mut(self.owner) {
            *count -= 1;
            if *count == 0 {
                state.waiting.remove(self.owner);
            }
        }
    }
}
