//! One attack, from loading the offender to the healthy calls after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nex_node::agents::AgentInfo;
use nex_runtime::engine::{Engine as _, EngineEvent, Function, FunctionSpec, Limit, LimitHit, LoadError};
use nex_runtime::invocation::{InvokeError, Reply, Trigger};
use tokio::time::timeout;

use crate::bench::{Bench, PATIENCE};
use crate::expected::{Answer, Expected, Fate};
use crate::host::{Ear, fixture, host, spec};
use crate::report::Row;

/// Longest log line that may arrive, in characters: a cut one and the mark that says so.
const LONGEST_LINE: usize = 10_100;

/// Most log lines that may arrive of a flood.
const MOST_LINES: usize = 30_000;

/// How long the agent is watched after code was terminated. Longer than the engine waits for it to end, so that a
/// condemnation comes to light in the case it belongs to.
const AFTERMATH: Duration = Duration::from_millis(400);

/// An attack of a file.
#[derive(Debug)]
pub struct Attack {
    file: &'static str,
    name: String,
    expected: Expected,
}

/// What the offender's caller got.
#[derive(Debug)]
enum Outcome {
    Answered(Result<Reply, InvokeError>),
    NotLoaded(LoadError),
}

impl Attack {
    pub fn new(file: &'static str, name: &str) -> Self {
        Self {
            file,
            name: name.to_owned(),
            expected: Expected::of(file, name),
        }
    }

    /// Its name for people, and for `NEX_HOSTILE_ONLY`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.file, self.name)
    }

    /// Name of its function, unlike that of any other attack: one that has cost an agent may be kept apart.
    fn function(&self) -> String {
        format!("{}-{}", self.file.replace('.', "_"), self.name)
    }

    fn loads(&self) -> bool {
        !matches!(self.expected.answer, Answer::NotLoaded | Answer::Refused(_))
    }

    fn spec(&self) -> FunctionSpec {
        let source = if self.loads() {
            source_of(self.file)
        } else {
            format!("const ATTACK = {:?};\n{}", self.name, fixture(self.file))
        };
        spec(&self.function(), source, self.expected.limits())
    }

    /// Runs it and looks at everything that it must and must not have done.
    pub async fn run(&self, bench: &mut Bench) -> Result<Row> {
        bench.no_news(Duration::ZERO).await?;
        let agent = bench.agent_of_all(None).context("the victims have no common agent")?;
        let (services, ear) = host();
        let began = Instant::now();
        let (outcome, function) = if self.loads() {
            let function = bench.pool.load(self.spec(), services).await?;
            let shared = bench.agent_of_all(Some(&self.function()));
            ensure!(
                shared.is_some_and(|shared| shared.id == agent.id),
                "the offender does not share the victims' agent"
            );
            // From here on the offender's doing.
            bench.load.next_window();
            let answer = timeout(PATIENCE, call(&function, &self.name)).await;
            (Outcome::Answered(answer.context("never answered")?), Some(function))
        } else {
            bench.load.next_window();
            let loaded = timeout(PATIENCE, bench.pool.load(self.spec(), services)).await;
            let refused = loaded.context("neither loaded nor refused")?.err();
            (Outcome::NotLoaded(refused.context("it loaded")?), None)
        };
        let took = began.elapsed();

        self.check_answer(&outcome)?;
        self.check_events(&ear).await?;
        let replaced = self.check_fate(bench, &agent).await?.then(|| began.elapsed());
        bench.call_victims().await?;
        self.check_healthy(bench, function).await?;
        self.check_log(&ear)?;
        let calls = bench
            .load
            .next_window()
            .close(PATIENCE)
            .await
            .map_err(|error| anyhow!(error))?;
        if let Some(complaint) = calls.complaint(self.expected.fate == Fate::Dies) {
            bail!(complaint);
        }
        Ok(Row {
            title: self.title(),
            answer: match &outcome {
                Outcome::Answered(Ok(_)) => "reply".to_owned(),
                Outcome::Answered(Err(error)) => error.kind.to_string(),
                Outcome::NotLoaded(_) => "not loaded".to_owned(),
            },
            limit: self.expected.limit,
            took,
            fate: self.expected.fate,
            replaced,
            calls,
        })
    }

    fn check_answer(&self, outcome: &Outcome) -> Result<()> {
        let right = match (self.expected.answer, outcome) {
            (Answer::Error(kind), Outcome::Answered(Err(error))) => error.kind == kind,
            (Answer::Reply(text), Outcome::Answered(Ok(reply))) => reply.body == text,
            (Answer::NotLoaded, Outcome::NotLoaded(LoadError::Limit(hit))) => Some(hit.limit) == self.expected.limit,
            (Answer::NotLoaded, Outcome::NotLoaded(LoadError::Timeout(_))) => {
                self.expected.limit == Some(Limit::WallTime)
            }
            (Answer::Refused(why), Outcome::NotLoaded(LoadError::Threw(message))) => message.contains(why),
            _ => false,
        };
        ensure!(
            right,
            "answered {:.400}, expected {:?}",
            format!("{outcome:?}"),
            self.expected.answer
        );
        Ok(())
    }

    async fn check_events(&self, ear: &Ear) -> Result<()> {
        for &expected in self.expected.before.iter().chain(&self.expected.limit) {
            let hit = ear.hear(|event| matches!(event, EngineEvent::LimitHit(hit) if hit.limit == expected));
            let hit = timeout(PATIENCE, hit)
                .await
                .with_context(|| format!("no event about {}, only {:?}", expected.as_str(), ear.events()))?;
            let EngineEvent::LimitHit(hit) = hit else {
                bail!("{hit:?}")
            };
            ensure!(hit.measured >= hit.allowed, "{hit}");
        }
        // A function that did not load has no host to be told.
        if self.expected.fate == Fate::Condemned && self.loads() {
            let condemned = ear.hear(|event| matches!(event, EngineEvent::Condemned { .. }));
            timeout(PATIENCE, condemned)
                .await
                .with_context(|| format!("not condemned, only {:?}", ear.events()))?;
        }
        for event in ear.events() {
            if let EngineEvent::LimitHit(LimitHit { limit, .. }) = event {
                let expected = self.expected.limit == Some(limit) || self.expected.before.contains(&limit);
                ensure!(expected, "it also hit {}", limit.as_str());
            }
        }
        Ok(())
    }

    /// Returns whether the agent was replaced.
    async fn check_fate(&self, bench: &mut Bench, agent: &AgentInfo) -> Result<bool> {
        match self.expected.fate {
            Fate::Stays => {
                let terminated = self.expected.terminates();
                bench
                    .no_news(if terminated { AFTERMATH } else { Duration::ZERO })
                    .await?;
                let now = bench.reunion().await?;
                ensure!(
                    now.pid == agent.pid,
                    "the victims moved from {} to {}",
                    agent.id,
                    now.id
                );
                return Ok(false);
            }
            Fate::Condemned => {
                bench.condemned(agent).await?;
                bench.stopped(agent).await?;
            }
            Fate::Dies => {
                let code = bench.stopped(agent).await?;
                ensure!(code > 128, "exit code {code}, expected a signal");
            }
        }
        let now = bench.reunion().await?;
        ensure!(now.pid != agent.pid, "{} is still there", agent.id);
        Ok(true)
    }

    /// The offender answers as if nothing had been; one that never loaded does so in a harmless version.
    async fn check_healthy(&self, bench: &Bench, function: Option<Arc<dyn Function>>) -> Result<()> {
        let function = match function {
            Some(function) => function,
            None => {
                let spec = FunctionSpec {
                    source: "() => 'healthy'".into(),
                    ..self.spec()
                };
                bench.pool.load(spec, host().0).await.context("its harmless version")?
            }
        };
        let reply = timeout(PATIENCE, call(&function, "healthy"))
            .await
            .context("the offender does not answer again")?
            .map_err(|error| anyhow!("the offender's next call: {}: {error}", error.kind))?;
        ensure!(reply.body == "healthy", "the offender's next answer: {:?}", reply.body);
        Ok(())
    }

    fn check_log(&self, ear: &Ear) -> Result<()> {
        let log = ear.log();
        ensure!(log.longest <= LONGEST_LINE, "a log line of {} characters", log.longest);
        ensure!(log.lines <= MOST_LINES, "{} log lines", log.lines);
        Ok(())
    }
}

/// The source of a file of attacks that are called by name.
pub fn source_of(file: &str) -> String {
    fixture(file) + &fixture("choose.mjs")
}

pub async fn call(function: &Arc<dyn Function>, payload: &str) -> Result<Reply, InvokeError> {
    let payload = payload.to_owned().into();
    function
        .call(Trigger {
            subject: "attack".into(),
            payload,
            ..Trigger::default()
        })
        .await
}
