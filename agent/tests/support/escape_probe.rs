//! Where tests find the agent that tries to break out, and how they have it try. The node's tests use it as well.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::time::Duration;

use nex_agent::link::{AgentToNode, CallId, FunctionId, NodeToAgent};
use nex_runtime::invocation::Trigger;
use serde::Deserialize;

use crate::link::Link;

/// What came of an attempt.
#[derive(Debug)]
#[allow(dead_code, reason = "details are for the messages of tests that fail")]
pub(crate) enum Outcome {
    Succeeded(String),
    Refused(String),
    /// It cost the agent its life.
    Died(ExitStatus),
}

#[derive(Debug, Deserialize)]
struct Answer {
    outcome: String,
    detail: String,
}

/// The program, built if that has not happened: Cargo builds no examples for a single test. `NEX_ESCAPE_PROBE_BIN` names
/// one that was built before, for users who cannot build.
pub(crate) fn escape_probe() -> PathBuf {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(bin) = std::env::var_os("NEX_ESCAPE_PROBE_BIN") {
            return bin.into();
        }
        let status = std::process::Command::new(env!("CARGO"))
            // Of the whole workspace: dependencies that were built for it are not built again with fewer features.
            .args(["build", "--quiet", "--workspace", "--example", "escape_probe"])
            .status()
            .unwrap();
        assert!(status.success(), "the example escape_probe of nex-agent was not built");
        // Beside `deps`, where tests are.
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("examples/escape_probe");
        assert!(program.is_file(), "{} is not there", program.display());
        program
    })
    .clone()
}

/// Shakes hands with the agent and gives it its function.
///
/// # Errors
/// What came instead of the greeting.
pub(crate) async fn settle(link: &mut Link) -> Result<(), String> {
    match within(link.reader.next()).await {
        Ok(Some(AgentToNode::Hello(_))) => {}
        other => return Err(format!("{other:?}")),
    }
    link.acknowledge();
    // A function that the other kind of agent would take as well.
    link.deploy(FunctionId(1), "() => {}");
    match within(link.next()).await {
        AgentToNode::DeployResult { result, .. } => result.unwrap(),
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// Has it attempt something. `None` if the link ended of it.
pub(crate) async fn attempt(link: &mut Link, probe: &str) -> Option<Outcome> {
    link.send(NodeToAgent::Trigger {
        call: CallId(1),
        function: FunctionId(1),
        trigger: Trigger {
            payload: probe.to_owned().into(),
            ..Trigger::default()
        },
    });
    match within(link.reader.next()).await {
        Ok(Some(AgentToNode::Reply { reply, .. })) => {
            let answer: Answer = serde_json::from_slice(&reply.body).unwrap();
            Some(match answer.outcome.as_str() {
                "succeeded" => Outcome::Succeeded(answer.detail),
                _ => Outcome::Refused(answer.detail),
            })
        }
        Ok(Some(other)) => panic!("{other:?}"),
        Ok(None) | Err(_) => None,
    }
}

/// What an attacker that is confined sees of itself: no rights, and none that it could get.
///
/// # Panics
/// When its `/proc/self/status` says otherwise.
pub(crate) fn assert_has_no_rights(status: &str) {
    for identity in ["Uid", "Gid"] {
        assert_eq!(status_field(status, identity), "1000\t1000\t1000\t1000", "{identity}");
    }
    assert_eq!(status_field(status, "NoNewPrivs"), "1");
    assert_eq!(status_field(status, "Seccomp"), "2");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_field(status, set), "0000000000000000", "{set}");
    }
}

/// A line of a `/proc/PID/status`.
pub(crate) fn status_field(status: &str, field: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

/// Nothing but loopback, and no route.
///
/// # Panics
/// When `/proc/self/net/dev` or `/proc/self/net/route` says otherwise.
pub(crate) fn assert_has_no_network(interfaces: &str, routes: &str) {
    let names = interfaces.lines().skip(2).filter_map(|line| line.split_once(':'));
    let names: Vec<&str> = names.map(|(name, _)| name.trim()).collect();
    assert_eq!(names, ["lo"]);
    assert_eq!(routes.lines().skip(1).count(), 0, "{routes}");
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("nothing happened for 30 s")
}
