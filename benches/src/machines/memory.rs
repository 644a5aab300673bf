//! What machines take of the host's memory: warm ones, and such with one function that was called once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nex_host_services::memory::Memory;
use nex_host_services::{Config, Policy};
use nex_node::agents::{AgentPool, AgentPoolConfig, AgentState};
use nex_node::machines::MachineStats;
use nex_runtime::engine::{Engine as _, Function, FunctionHost, FunctionSpec, Limits};
use nex_runtime::invocation::Trigger;

use super::lab::{Ground, Lab};
use super::{PATIENCE, section};
use crate::contender::fixture;
use crate::report::Table;

const MIB: f64 = (1 << 20) as f64;

/// How long memory must not have changed by more than [`STEADY_BYTES`] for each machine to count as settled.
const STEADY: Duration = Duration::from_secs(3);
const STEADY_BYTES: u64 = 256 << 10;

/// Measures all drivers and reports in Markdown.
pub(super) async fn run(lab: &Lab, grounds: &[Ground], count: usize) -> Result<String> {
    let mut table = Table::new(&["", "warm: RSS MiB", "PSS MiB", "after a call: RSS MiB", "PSS MiB"]);
    for ground in grounds {
        if ground.driver.templating().is_some() {
            row(&mut table, lab, ground, count, false).await?;
            row(&mut table, lab, ground, count, true).await?;
        } else {
            row(&mut table, lab, ground, count, false).await?;
        }
    }
    let about = format!(
        "Means of {count} machines of a kind that run at once. PSS divides what several processes share among them: the \
         template of restored machines, the program. The agent's process or the hypervisor's counts, not the small launcher \
         of a confined process."
    );
    Ok(section("Memory of a machine on the host", &about, table))
}

async fn row(table: &mut Table, lab: &Lab, ground: &Ground, count: usize, restored: bool) -> Result<()> {
    let label = match (ground.driver.templating(), restored) {
        (Some(_), true) => format!("{}, restored", ground.kind),
        (Some(_), false) => format!("{}, booted", ground.kind),
        (None, _) => ground.kind.to_string(),
    };
    let config = |warm_size| AgentPoolConfig {
        warm_size,
        templates: restored.then(|| lab.templates()),
        start_timeout: PATIENCE,
        heartbeat_timeout: PATIENCE,
        ..AgentPoolConfig::with_driver(ground.driver.clone())
    };
    eprintln!("memory: {count} warm machines, {label}");
    let pool = AgentPool::start(config(count)).await?;
    let began = Instant::now();
    while pool.available() < count {
        ensure!(
            began.elapsed() < PATIENCE,
            "{} of {count} machines are warm",
            pool.available()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let warm = settled(&pool, AgentState::Warm, count, restored).await?;
    pool.shutdown().await;

    eprintln!("memory: {count} machines with a function, {label}");
    let pool = AgentPool::start(config(0)).await?;
    let mut functions = Vec::new();
    for number in 0..count {
        functions.push(called(&pool, &format!("memory-{number}")).await?);
    }
    let serving = settled(&pool, AgentState::Serving, count, restored).await?;
    drop(functions);
    pool.shutdown().await;

    let mut cells = vec![label];
    for stats in [warm, serving] {
        for bytes in [stats.resident_bytes, stats.proportional_bytes] {
            cells.push(format!("{:.1}", bytes as f64 / MIB));
        }
    }
    table.row(&cells);
    Ok(())
}

/// A function in a namespace of its own, after one call.
async fn called(pool: &AgentPool, namespace: &str) -> Result<Arc<dyn Function>> {
    let spec = FunctionSpec {
        id: namespace.to_owned(),
        namespace: namespace.to_owned(),
        name: "memory".to_owned(),
        workload_type: "v8".to_owned(),
        source: std::fs::read(fixture("identity.mjs"))?.into(),
        vars: Default::default(),
        limits: Limits {
            // It must not hibernate while memory is read.
            hibernate_after: Duration::from_secs(24 * 60 * 60),
            ..Limits::default()
        },
    };
    let policy = Policy::new(namespace, "memory", Config::default());
    let host = FunctionHost {
        services: Arc::new(Memory::new().services(policy)),
        logs: Arc::new(|_| {}),
        events: Arc::new(|_| {}),
    };
    let function = pool.load(spec, host).await?;
    let payload = Bytes::from_static(b"are you there?");
    let trigger = Trigger {
        subject: "memory".to_owned(),
        payload: payload.clone(),
        ..Trigger::default()
    };
    ensure!(function.call(trigger).await?.body == payload, "a wrong reply");
    Ok(function)
}

/// What a machine takes on average, once that no longer changes.
async fn settled(pool: &AgentPool, state: AgentState, count: usize, restored: bool) -> Result<MachineStats> {
    let began = Instant::now();
    let mut last = (Instant::now(), mean(pool, state, count, restored)?);
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = mean(pool, state, count, restored)?;
        if now.proportional_bytes.abs_diff(last.1.proportional_bytes) > STEADY_BYTES {
            last = (Instant::now(), now);
        }
        if last.0.elapsed() >= STEADY || began.elapsed() >= PATIENCE {
            return Ok(now);
        }
    }
}

fn mean(pool: &AgentPool, state: AgentState, count: usize, restored: bool) -> Result<MachineStats> {
    let mut agents = pool.agents();
    agents.retain(|agent| agent.state == state);
    ensure!(
        agents.len() == count && agents.iter().all(|agent| agent.start.restored == restored),
        "expected {count} agents that are {}, got {agents:?}",
        state.as_str()
    );
    let among = u64::try_from(count)
        .ok()
        .filter(|&count| count > 0)
        .context("no machine")?;
    let mean = |bytes: fn(&MachineStats) -> u64| agents.iter().map(|agent| bytes(&agent.machine)).sum::<u64>() / among;
    Ok(MachineStats {
        resident_bytes: mean(|stats| stats.resident_bytes),
        proportional_bytes: mean(|stats| stats.proportional_bytes),
        ..MachineStats::default()
    })
}
