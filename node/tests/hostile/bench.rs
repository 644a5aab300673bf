//! Twenty victims on one agent, under load from first to last.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nex_node::agents::{AgentEvent, AgentInfo, AgentPool, AgentPoolConfig, AgentState, QuarantineRules};
use nex_node::machines::{ProcessConfig, ProcessDriver};
use nex_runtime::engine::{Engine as _, Limits};
use tokio::sync::broadcast;
use tokio::time::timeout;

use crate::binary::agent_bin;
use crate::host::{fixture, host, spec};
use crate::load::{Calls, Load, Victim};
use crate::suite::Agents;

const VICTIMS: usize = 20;

/// Longest wait for anything that must happen: a test that hits it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long the victims are watched undisturbed, for comparison.
const IDLE: Duration = Duration::from_secs(2);

/// Time between two looks for what nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The victims and their agent.
#[derive(Debug)]
pub struct Bench {
    pub pool: Arc<AgentPool>,
    pub load: Load,
    /// The victims without an attack.
    pub idle: Calls,
    victims: Vec<Victim>,
    events: broadcast::Receiver<AgentEvent>,
}

impl Bench {
    pub async fn start(agents: Agents) -> Result<Self> {
        let driver = ProcessDriver::unconfined(ProcessConfig {
            agent_env: agents.environment(),
            agent_log: "error".to_owned(),
            ..ProcessConfig::new(agent_bin())
        });
        let pool = AgentPool::start(AgentPoolConfig {
            // All attacks of a file are one artefact: it would not live to its fourth.
            quarantine: QuarantineRules {
                after: u32::MAX,
                ..QuarantineRules::default()
            },
            ..AgentPoolConfig::new(driver)
        })
        .await?;
        let source = fixture("victim.mjs");
        let mut victims = Vec::new();
        for number in 0..VICTIMS {
            let name = format!("victim-{number}");
            let (host, _ear) = host();
            let function = pool.load(spec(&name, source.clone(), Limits::default()), host).await?;
            victims.push(Victim { name, function });
        }
        let load = Load::start(victims.clone());
        // Cold starts and first optimisations are nobody's fault.
        tokio::time::sleep(IDLE / 4).await;
        load.next_window()
            .close(PATIENCE)
            .await
            .map_err(|error| anyhow!(error))?;
        tokio::time::sleep(IDLE).await;
        let idle = load
            .next_window()
            .close(PATIENCE)
            .await
            .map_err(|error| anyhow!(error))?;
        let events = pool.subscribe();
        Ok(Self {
            pool,
            load,
            idle,
            victims,
            events,
        })
    }

    /// The agent that serves every victim, and this function if there is one.
    pub fn agent_of_all(&self, offender: Option<&str>) -> Option<AgentInfo> {
        let names = || self.victims.iter().map(|victim| victim.name.as_str()).chain(offender);
        let has = |agent: &AgentInfo, name: &str| agent.functions.iter().any(|function| function == name);
        self.pool
            .agents()
            .into_iter()
            .find(|agent| agent.state == AgentState::Serving && names().all(|name| has(agent, name)))
    }

    /// Waits until the victims are together on an agent again.
    pub async fn reunion(&self) -> Result<AgentInfo> {
        let reunion = async {
            loop {
                if let Some(agent) = self.agent_of_all(None) {
                    return agent;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let reunited = timeout(PATIENCE, reunion).await;
        reunited.with_context(|| format!("the victims have no common agent: {:?}", self.pool.agents()))
    }

    /// Calls every victim once.
    pub async fn call_victims(&self) -> Result<()> {
        for (number, victim) in self.victims.iter().enumerate() {
            let reply = timeout(PATIENCE, victim.function.call(Victim::trigger(number)))
                .await
                .with_context(|| format!("{} does not answer after the attack", victim.name))?
                .with_context(|| format!("{} answers with an error after the attack", victim.name))?;
            ensure!(
                reply.body == victim.answer(number),
                "{} answers {:?} after the attack",
                victim.name,
                reply.body
            );
        }
        Ok(())
    }

    /// The next bad news of an agent.
    async fn news(&mut self) -> Result<AgentEvent> {
        loop {
            match self.events.recv().await? {
                AgentEvent::Started { .. } => {}
                event => return Ok(event),
            }
        }
    }

    /// Fails if any agent has come to harm so far, or does within this time.
    pub async fn no_news(&mut self, within: Duration) -> Result<()> {
        match timeout(within, self.news()).await {
            Err(_) => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(event)) => Err(anyhow!("an agent that should have served on: {event:?}")),
        }
    }

    /// Waits for the agent to be condemned.
    pub async fn condemned(&mut self, agent: &AgentInfo) -> Result<()> {
        let news = timeout(PATIENCE, self.news())
            .await
            .context("no agent was condemned")??;
        ensure!(
            matches!(&news, AgentEvent::Condemned { id, .. } if *id == agent.id),
            "expected {} to be condemned: {news:?}",
            agent.id
        );
        Ok(())
    }

    /// Waits for the agent's process to be gone; returns its exit code.
    pub async fn stopped(&mut self, agent: &AgentInfo) -> Result<i32> {
        let news = timeout(PATIENCE, self.news()).await.context("no agent ended")??;
        match news {
            AgentEvent::Stopped { id, code, .. } if id == agent.id => Ok(code),
            news => Err(anyhow!("expected {} to end: {news:?}", agent.id)),
        }
    }
}
