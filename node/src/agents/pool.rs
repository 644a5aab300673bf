//! The agents there are: a few warm ones without an owner, the others each with the functions of one owner. Keeps the
//! warm ones warm; `place` gives functions to agents, `retire` takes agents away.

mod place;
mod retire;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agent::{Agent, Owner};
use super::config::AgentPoolConfig;
use super::error::{AgentError, Fault};
use super::report::{AgentEvent, AgentInfo};
use super::{incoming, start, supervisor};
use crate::data_plane;
use crate::machines::{Machine, MachineSource};
use crate::quarantine::Ledger;

/// What the tasks of a pool share.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) config: AgentPoolConfig,
    machines: MachineSource,
    pub(super) ledger: Ledger,
    /// Memory for calls whose functions have no place at the moment.
    pub(super) waiting_kib: Arc<Semaphore>,
    /// Where everything runs that takes its time.
    pub(super) runtime: Handle,
    state: Mutex<State>,
    /// Told when an agent has become warm, or cannot.
    warmed: Notify,
    /// Told when more warm agents may be wanted.
    refill: Notify,
    /// Whose turn it is to move from an agent that still serves.
    turns: Semaphore,
    closing: CancellationToken,
    tasks: TaskTracker,
    events: broadcast::Sender<AgentEvent>,
    started: AtomicU64,
}

/// An agent and where it lives.
#[derive(Debug, Clone)]
struct Member {
    agent: Arc<Agent>,
    machine: Arc<dyn Machine>,
}

#[derive(Debug, Default)]
struct State {
    /// Every agent whose machine is not gone yet.
    all: Vec<Member>,
    warm: VecDeque<Arc<Agent>>,
    /// In service; an agent that drains or is dead is not listed.
    owned: HashMap<Owner, Vec<Arc<Agent>>>,
    starting: usize,
    /// Condemned agents whose functions have not all been moved.
    leaving: usize,
    /// Owners whose deploys wait for an agent, and how many of them.
    waiting: HashMap<Owner, usize>,
    /// Starts that failed, and agents that died before they were used, since the last success.
    failures: u32,
    last_failure: Option<AgentError>,
    closed: bool,
}

/// KiB of calls that may wait while their functions are moved.
const MAX_WAITING_KIB: usize = 256 << 10;

/// What calls are told from the beginning of a shutdown on.
const SHUTTING_DOWN: &str = "the node is shutting down";

/// Agents that die unused within this time count as failed starts.
const START_TRIAL: Duration = Duration::from_secs(5);

const START_BACK_OFF: Duration = Duration::from_millis(100);
const MAX_START_BACK_OFF: Duration = Duration::from_secs(5);

/// Functions that move at a time from agents that still serve: half of the processors are left to calls.
fn turns() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

impl Pool {
    pub(super) fn new(mut config: AgentPoolConfig, events: broadcast::Sender<AgentEvent>) -> Arc<Self> {
        // An agent that may have none could never be of use.
        config.max_functions_per_agent = config.max_functions_per_agent.max(1);
        Arc::new(Self {
            ledger: Ledger::new(config.quarantine),
            waiting_kib: Arc::new(Semaphore::new(MAX_WAITING_KIB)),
            machines: MachineSource::new(config.driver.clone(), config.templates.clone()),
            config,
            runtime: Handle::current(),
            state: Mutex::default(),
            warmed: Notify::new(),
            refill: Notify::new(),
            turns: Semaphore::new(turns()),
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
                // One that nobody waits for can wait until functions have been moved, which takes processors enough.
                let spare = if state.leaving == 0 { self.config.warm_size } else { 0 };
                let wanted = (spare + state.waiting.len()).saturating_sub(state.warm.len() + state.starting);
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
        let started = start::start(&self.machines, &self.config, &id).await?;
        let version = started.hello.agent_version;
        let machine = started.machine;
        let agent = Agent::new(id, machine.pid(), version, started.outbox);
        {
            let mut state = self.state.lock();
            if state.closed {
                // Dropping the machine kills it.
                return Err(AgentError::ShutDown);
            }
            state.all.push(Member {
                agent: agent.clone(),
                machine: machine.clone(),
            });
            state.warm.push_back(agent.clone());
        }
        let start = machine.start();
        let driver = self.machines.kind();
        tracing::debug!(
            agent = agent.id,
            pid = agent.pid,
            %driver,
            restored = start.restored,
            elapsed = ?start.elapsed,
            "agent started"
        );
        self.report(AgentEvent::Started {
            id: agent.id.clone(),
            pid: agent.pid,
            version: agent.version.clone(),
            driver,
            start,
        });
        let read = incoming::read(self.clone(), agent.clone(), started.reader);
        self.tasks.spawn_on(read, &data_plane::handle());
        self.spawn(supervisor::supervise(self.clone(), agent, machine, started.last_words));
        self.warmed.notify_waiters();
        Ok(())
    }

    pub(super) fn available(&self) -> usize {
        self.state.lock().warm.len()
    }

    pub(super) fn agents(&self) -> Vec<AgentInfo> {
        let all = self.state.lock().all.clone();
        let driver = self.machines.kind();
        all.iter()
            .map(|Member { agent, machine }| agent.info(driver, machine.start(), machine.stats()))
            .collect()
    }

    fn close(&self) -> Vec<Arc<Agent>> {
        self.closing.cancel();
        let mut state = self.state.lock();
        state.closed = true;
        state.warm.clear();
        state.owned.clear();
        let all = state.all.iter().map(|member| member.agent.clone()).collect();
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
