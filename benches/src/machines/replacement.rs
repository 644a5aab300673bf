//! Machines that crash or hang while somebody waits inside: when that caller is answered, and when the function is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use nex_node::machines::DriverKind;
use rustix::process::{Pid, Signal, kill_process};

use super::node::TestNode;
use super::{PATIENCE, Times, millis, section};
use crate::contender::fixture;
use crate::report::Table;

/// Waits longer than anybody here.
const SLEEPER: &str = "export default () => new Promise((done) => setTimeout(done, 25_000));";

/// Between two attempts to call a function that is away.
const STEP: Duration = Duration::from_millis(1);

/// What happens to a machine.
const FAULTS: [(&str, Signal); 2] = [("crash (SIGKILL)", Signal::KILL), ("hang (SIGSTOP)", Signal::STOP)];

/// Measures all nodes that have machines, and reports in Markdown.
pub(super) async fn run(nodes: &[TestNode], count: usize) -> Result<String> {
    let mut table = Table::new(&[
        "",
        "rounds",
        "caller answered: p50 ms",
        "max ms",
        "function back: p50 ms",
        "max ms",
    ]);
    for (fault, signal) in FAULTS {
        for node in nodes.iter().filter(|node| node.kind != DriverKind::InProcess) {
            let (mut answered, mut back) = (Times::default(), Times::default());
            for round in 0..count {
                eprintln!("{fault}, {}: {} of {count}", node.kind, round + 1);
                let namespace = format!("{}-{round}", signal.as_raw());
                let (one, other) = one(node, &namespace, signal).await?;
                answered.push(one);
                back.push(other);
            }
            table.row(&[
                format!("{}, {fault}", node.kind),
                count.to_string(),
                millis(answered.median()),
                millis(answered.max()),
                millis(back.median()),
                millis(back.max()),
            ]);
        }
    }
    let about = "A machine with two functions, one of which has a call in flight, while another machine is warm. From the \
                 signal to the agent's process or the hypervisor until that call is answered, with an error, and until the \
                 other function gives a right reply to calls one after the other. An agent is given up after 600 ms of \
                 silence, in an emulated machine after 2.4 s, as by a node with default settings.";
    Ok(section("Replacement", about, table))
}

/// Until the caller is answered, and until the other function is back.
async fn one(node: &TestNode, namespace: &str, signal: Signal) -> Result<(Duration, Duration)> {
    let echo = format!("fault.{}.{namespace}.echo", node.kind);
    let sleeper = format!("fault.{}.{namespace}.sleeper", node.kind);
    let mut functions = Vec::new();
    for (subject, source) in [
        (&echo, std::fs::read_to_string(fixture("identity.mjs"))?),
        // No two rounds have the same artefact: what one does to its agents is not held against the next.
        (&sleeper, format!("{SLEEPER} // {namespace}")),
    ] {
        let request = node.prepare(&source, subject).await?;
        functions.push(node.deploy(namespace, &request).await?);
    }
    let payload = Bytes::from_static(b"are you there?");
    ensure!(
        node.call(&echo, &payload).await?.as_ref() == Some(&payload),
        "a wrong reply"
    );
    node.warm().await?;

    let waiting = async {
        let answer = node.call(&sleeper, &payload).await?;
        let at = Instant::now();
        ensure!(answer.is_none(), "{}: a machine that is gone has answered", node.kind);
        Ok(at)
    };
    let fault = async {
        let agent = node.serving(namespace, functions.len(), 1).await?;
        let pid = i32::try_from(agent.pid).ok().and_then(Pid::from_raw);
        let began = Instant::now();
        kill_process(pid.context("no process ID")?, signal)?;
        loop {
            if node.call(&echo, &payload).await?.as_ref() == Some(&payload) {
                return Ok((began, Instant::now()));
            }
            ensure!(began.elapsed() < PATIENCE, "{echo} does not come back");
            tokio::time::sleep(STEP).await;
        }
    };
    let (answered, (began, back)) = tokio::try_join!(waiting, fault)?;
    for function in functions {
        node.stop(function).await?;
    }
    Ok((answered.saturating_duration_since(began), back - began))
}
