//! The agents there are: a few warm ones without an owner, the others each with the functions of one owner. Finds
//! functions a place, moves them when their agent ends, and keeps the warm ones warm.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nex_runtime::engine::LoadError;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agent::{Agent, DeployError, Owner, died};
use super::config::{AgentPoolConfig, Isolation};
use super::error::{AgentError, Fault};
use super::report::{AgentEvent, AgentInfo};
use super::slot::{Installed, Slot};
use super::{incoming, process, supervisor};

/// What the tasks of a pool share.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) config: AgentPoolConfig,
    runtime: Handle,
    state: Mutex<State>,
    /// Told when an agent has become warm, or cannot.
    warmed: Notify,
    /// Told when more warm agents may be wanted.
    refill: Notify,
    closing: CancellationToken,
    tasks: TaskTracker,
    events: broadcast::Sender<AgentEvent>,
    started: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Every agent whose process is not gone yet.
    all: Vec<Arc<Agent>>,
    warm: VecDeque<Arc<Agent>>,
    /// In service; an agent that drains or is dead is not listed.
    owned: HashMap<Owner, Vec<Arc<Agent>>>,
    starting: usize,
    /// Owners whose deploys wait for an agent, and how many of them.
    waiting: HashMap<Owner, usize>,
    /// Starts that failed, and agents that died before they were used, since the last success.
    failures: u32,
    last_failure: Option<AgentError>,
    closed: bool,
}

/// Why a function has no place.
#[derive(Debug)]
pub(super) enum PlaceError {
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

/// What calls are told from the beginning of a shutdown on.
const SHUTTING_DOWN: &str = "the node is shutting down";

/// How often waiting calls are looked at while their function is moved.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

/// Agents that die unused within this time count as failed starts.
const START_TRIAL: Duration = Duration::from_secs(5);

const START_BACK_OFF: Duration = Duration::from_millis(100);
const MAX_START_BACK_OFF: Duration = Duration::from_secs(5);

impl Pool {
    pub(super) fn new(mut config: AgentPoolConfig, events: broadcast::Sender<AgentEvent>) -> Arc<Self> {
        // An agent that may have none could never be of use.
        config.max_functions_per_agent = config.max_functions_per_agent.max(1);
        Arc::new(Self {
            config,
            runtime: Handle::current(),
            state: Mutex::default(),
            warmed: Notify::new(),
            refill: Notify::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            events,
            started: AtomicU64::new(0),
        })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn report(&self, event: AgentEvent) {
        // Nobody listens: that is up to them.
        _ = self.events.send(event);
    }

    // ---- starting agents ----

    /// Starts one agent, makes it warm, and has more started as they are wanted from now on.
    pub(super) async fn open(self: &Arc<Self>) -> Result<(), AgentError> {
        if self.config.warm_size > 0 {
            self.start_agent().await?;
        }
        let pool = self.clone();
        self.spawn(async move {
            tokio::select! {
                () = pool.closing.cancelled() => {}
                () = pool.keep_warm() => {}
            }
        });
        Ok(())
    }

    async fn keep_warm(self: &Arc<Self>) {
        loop {
            let wanted = {
                let mut state = self.state.lock();
                let wanted =
                    (self.config.warm_size + state.waiting.len()).saturating_sub(state.warm.len() + state.starting);
                state.starting += wanted;
                wanted
            };
            for _ in 0..wanted {
                let pool = self.clone();
                self.spawn(async move {
                    tokio::select! {
                        () = pool.closing.cancelled() => {}
                        () = pool.start_one() => {}
                    }
                });
            }
            self.refill.notified().await;
        }
    }

    async fn start_one(self: &Arc<Self>) {
        tokio::time::sleep(self.start_back_off()).await;
        if let Err(error) = self.start_agent().await {
            tracing::error!("{error}");
            let mut state = self.state.lock();
            state.failures += 1;
            state.last_failure = Some(error);
        }
        self.state.lock().starting -= 1;
        self.refill.notify_one();
    }

    fn start_back_off(&self) -> Duration {
        match self.state.lock().failures {
            0 => Duration::ZERO,
            failures => (START_BACK_OFF * 2_u32.saturating_pow(failures.min(16) - 1)).min(MAX_START_BACK_OFF),
        }
    }

    async fn start_agent(self: &Arc<Self>) -> Result<(), AgentError> {
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let id = format!("agent-{}-{number}", std::process::id());
        let started = process::start(&self.config, &id).await?;
        let version = started.hello.agent_version;
        let agent = Agent::new(id, started.pid, version, started.outbox);
        {
            let mut state = self.state.lock();
            if state.closed {
                // Dropping the process kills it.
                return Err(AgentError::ShutDown);
            }
            state.all.push(agent.clone());
            state.warm.push_back(agent.clone());
        }
        tracing::debug!(agent = agent.id, pid = agent.pid, "agent started");
        self.report(AgentEvent::Started {
            id: agent.id.clone(),
            pid: agent.pid,
            version: agent.version.clone(),
        });
        self.spawn(incoming::read(self.clone(), agent.clone(), started.reader));
        self.spawn(supervisor::supervise(
            self.clone(),
            agent,
            started.child,
            started.last_words,
        ));
        self.warmed.notify_waiters();
        Ok(())
    }

    // ---- placing functions ----

    fn owner_of(&self, slot: &Slot) -> Owner {
        let alone = self.config.isolation == Isolation::Workload || slot.in_quarantine();
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
                        slot.blame(true, false);
                        Err(PlaceError::Died(format!("the agent {}", death.message)))
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
    pub(super) async fn place_first(&self, slot: &Arc<Slot>) -> Result<(), LoadError> {
        let mut attempts = 0;
        loop {
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
                    if attempts == MAX_FIRST_ATTEMPTS {
                        return Err(LoadError::Engine(format!(
                            "{attempts} agents ended while they loaded it; the last one: {message}"
                        )));
                    }
                    tokio::time::sleep(slot.back_off()).await;
                }
            }
        }
    }

    fn spawn_move(self: &Arc<Self>, slot: Arc<Slot>) {
        let pool = self.clone();
        self.spawn(async move { pool.move_function(&slot).await });
    }

    /// Finds a function its next place, and answers those who wait for it too long.
    async fn move_function(&self, slot: &Arc<Slot>) {
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        let mut moving = std::pin::pin!(self.place_again(slot));
        let outcome = loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break Err(SHUTTING_DOWN.to_owned()),
                outcome = &mut moving => break outcome,
                _ = expire.tick() => slot.expire(Instant::now()),
            }
        };
        let Err(message) = outcome else {
            return;
        };
        if let Some(placement) = slot.end(&message) {
            placement.agent.undeploy(placement.function);
        }
        if !self.closing.is_cancelled() {
            let spec = &slot.spec;
            tracing::error!(workload = spec.name, namespace = spec.namespace, "{message}");
            self.report(AgentEvent::FunctionLost {
                id: spec.id.clone(),
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                message,
            });
        }
    }

    async fn place_again(&self, slot: &Arc<Slot>) -> Result<(), String> {
        let mut attempts = 0;
        loop {
            tokio::time::sleep(slot.back_off()).await;
            if slot.has_ended() {
                return Ok(());
            }
            let message = match self.place(slot).await {
                Ok(()) | Err(PlaceError::Ended) => return Ok(()),
                Err(PlaceError::OutOfService) => {
                    tokio::time::sleep(RETRY_AFTER).await;
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
                return Err(format!(
                    "the function was given up after {attempts} attempts to start it again: {message}"
                ));
            }
            // Deaths have their back-off in the record; other failures have none there.
            tokio::time::sleep(START_BACK_OFF * attempts).await;
        }
    }

    // ---- taking agents out of service ----

    /// Ends an agent: answers its callers, has its functions moved, and its process killed. Only the first reason counts.
    pub(super) fn fail(self: &Arc<Self>, agent: &Arc<Agent>, fault: Fault) {
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
    pub(super) fn condemn(self: &Arc<Self>, agent: &Arc<Agent>, offender: Option<&Arc<Slot>>, message: &str) {
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
    pub(super) fn retire_if_idle(&self, agent: &Arc<Agent>) {
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
    pub(super) fn ended(&self, agent: &Arc<Agent>, message: String, code: i32, expected: bool) {
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

    // ---- the whole ----

    pub(super) fn available(&self) -> usize {
        self.state.lock().warm.len()
    }

    pub(super) fn agents(&self) -> Vec<AgentInfo> {
        let all = self.state.lock().all.clone();
        all.iter().map(|agent| agent.info()).collect()
    }

    fn close(&self) -> Vec<Arc<Agent>> {
        self.closing.cancel();
        let mut state = self.state.lock();
        state.closed = true;
        state.warm.clear();
        state.owned.clear();
        let all = state.all.clone();
        drop(state);
        self.warmed.notify_waiters();
        all
    }

    /// Lets the calls in flight finish, for so long, and ends every agent.
    pub(super) async fn shut_down(&self) {
        let agents = self.close();
        for slot in agents.iter().flat_map(|agent| agent.slots()) {
            // What is in flight stays so, for as long as the agent is there.
            _ = slot.end(SHUTTING_DOWN);
        }
        for agent in agents {
            agent.stop(self.config.shutdown_grace);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends every agent at once.
    pub(super) fn abandon(self: &Arc<Self>) {
        for agent in self.close() {
            self.fail(&agent, Fault::Stopped);
        }
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
