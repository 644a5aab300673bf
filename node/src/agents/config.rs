//! Settings of the agent pool, and where its binary is found.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::error::AgentError;
use crate::machines::MachineDriver;
use crate::quarantine::QuarantineRules;

/// Settings of an [`AgentPool`](super::AgentPool).
#[derive(Debug, Clone)]
pub struct AgentPoolConfig {
    /// Starts the machines that agents live in.
    pub driver: Arc<dyn MachineDriver>,
    /// Where templates of machines are kept, if the driver can make any. Default none: every machine is booted.
    pub templates: Option<PathBuf>,
    /// Workload types the agents must run. Default `v8`.
    pub workload_types: &'static [&'static str],
    /// Idle agents kept ready for the next namespace, or for a replacement. Default 1.
    pub warm_size: usize,
    /// What shares an agent. Default [`Isolation::Namespace`].
    pub isolation: Isolation,
    /// Functions on one agent, hibernating ones included; a namespace with more gets further agents. Default 5,000. How
    /// many of them are awake is for the engine in the agent to bound.
    pub max_functions_per_agent: usize,
    /// Silence after which an agent is given up; it is pinged five times as often. Default 600 ms, so that a silent agent
    /// is noticed within a second. The node also answers overdue calls in time with the pings.
    pub heartbeat_timeout: Duration,
    /// Time an agent has to shake hands once its machine is up, and a deploy waits for one. Default 10 s.
    pub start_timeout: Duration,
    /// Time beyond a function's own limit before the node answers a call in its agent's place. Default 1 s.
    pub reply_grace: Duration,
    /// How long an agent without functions is kept for its namespace. Default 10 s.
    pub idle_linger: Duration,
    /// When functions that cost their agents are quarantined, and for how long.
    pub quarantine: QuarantineRules,
    /// Time agents have to answer their calls at shutdown. Default 10 s.
    pub shutdown_grace: Duration,
}

impl AgentPoolConfig {
    /// The defaults, with machines of this driver.
    #[must_use]
    pub fn new(driver: impl MachineDriver) -> Self {
        Self::with_driver(Arc::new(driver))
    }

    /// The defaults, with machines of a driver that others use too.
    #[must_use]
    pub fn with_driver(driver: Arc<dyn MachineDriver>) -> Self {
        Self {
            driver,
            templates: None,
            workload_types: &["v8"],
            warm_size: 1,
            isolation: Isolation::Namespace,
            max_functions_per_agent: 5_000,
            heartbeat_timeout: Duration::from_millis(600),
            start_timeout: Duration::from_secs(10),
            reply_grace: Duration::from_secs(1),
            idle_linger: Duration::from_secs(10),
            quarantine: QuarantineRules::default(),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// What may share an agent. Two namespaces never do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// The functions of one namespace.
    #[default]
    Namespace,
    /// Nothing: each workload has an agent of its own.
    Workload,
}

const BINARY: &str = "nex-agent";
const OVERRIDE: &str = "NEX_AGENT_BIN";

/// Finds the agent's binary: `$NEX_AGENT_BIN`, else `nex-agent` beside this executable or one directory above it (where
/// Cargo puts it for tests), else in `PATH`.
///
/// # Errors
/// [`AgentError::NoBinary`] tells where it was looked for.
pub fn find_agent_bin() -> Result<PathBuf, AgentError> {
    let beside = std::env::current_exe().ok();
    find(std::env::var_os(OVERRIDE), beside.as_deref(), std::env::var_os("PATH"))
}

fn find(chosen: Option<OsString>, exe: Option<&Path>, path: Option<OsString>) -> Result<PathBuf, AgentError> {
    if let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) {
        let chosen = PathBuf::from(chosen);
        return if chosen.is_file() {
            Ok(chosen)
        } else {
            Err(AgentError::NoBinary(format!(
                "{OVERRIDE} names {}, which is no file",
                chosen.display()
            )))
        };
    }
    let beside = exe.into_iter().flat_map(|exe| exe.ancestors().skip(1).take(2));
    let in_path = path.iter().flat_map(std::env::split_paths);
    let found = beside
        .map(Path::to_path_buf)
        .chain(in_path)
        .map(|folder| folder.join(BINARY))
        .find(|candidate| candidate.is_file());
    found.ok_or_else(|| {
        AgentError::NoBinary(format!(
            "there is no {BINARY} beside {} or in PATH; build it with `cargo build -p nex-agent`, or set {OVERRIDE}",
            exe.map_or_else(|| "this program".to_owned(), |exe| exe.display().to_string()),
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn finds_the_binary_in_order_and_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let make = |at: &str| {
            let at = folder.path().join(at);
            std::fs::create_dir_all(&at).unwrap();
            let bin = at.join(BINARY);
            std::fs::write(&bin, "").unwrap();
            bin
        };
        let in_path = make("path");
        let path = Some(folder.path().join("path").into_os_string());
        let exe = folder.path().join("debug/deps/test-1234");
        let exe = Some(exe.as_path());

        assert_eq!(find(None, exe, path.clone()).unwrap(), in_path);
        let above = make("debug");
        assert_eq!(find(None, exe, path.clone()).unwrap(), above);
        let beside = make("debug/deps");
        assert_eq!(find(None, exe, path.clone()).unwrap(), beside);
        let chosen = make("chosen");
        let found = find(Some(chosen.clone().into()), exe, path.clone());
        assert_eq!(found.unwrap(), chosen);

        let missing = find(Some("/no/such/agent".into()), exe, path);
        assert!(missing.unwrap_err().to_string().contains("/no/such/agent"));
        let nowhere = find(None, None, None).unwrap_err();
        assert!(nowhere.to_string().contains(OVERRIDE));
    }
}
