//! Nodes that are killed outright, with functions deployed and calls in flight: their machines end with them, and the next
//! node sweeps up what is left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::lab::{control_groups_of, figures, until, within};
use crate::support::{Cluster, Node};

/// A driver, and how often its node is killed.
struct Trial {
    driver: &'static str,
    kills: usize,
    /// Every how many kills there are functions and calls: deploying to an emulated machine takes its time.
    busy_every: usize,
    /// Calls in flight.
    calls: usize,
}

#[tokio::test]
async fn confined_processes_end_with_their_node() {
    let trial = Trial {
        driver: "process",
        kills: 20,
        busy_every: 1,
        calls: 16,
    };
    trial
        .run(json!({"machine_limits": {"memory_mib": 512, "pids": 1000, "cpus": 2}}))
        .await;
}

#[tokio::test]
async fn virtual_machines_end_with_their_node() {
    let resources = std::env::var("NEX_RESOURCE_DIR");
    let trial = Trial {
        driver: "qemu",
        kills: 4,
        busy_every: 2,
        calls: 4,
    };
    // Emulated, on a busy machine.
    let slow = json!({
        "default_resource_dir": resources.expect("NEX_RESOURCE_DIR names what `nex preflight --driver qemu` has set up"),
        "agent_ping_timeout_ms": 10_000,
        "agent_handshake_timeout_ms": 60_000,
    });
    trial.run(slow).await;
}

/// Says that it has been called, and never answers.
const HOLD: &str =
    "export default async (msg, env) => { await env.nats.publish('held', msg.data); await new Promise(() => {}); }";

impl Trial {
    async fn run(&self, mut config: Value) {
        let folder = tempfile::Builder::new().prefix("nex").tempdir().unwrap();
        let runtime_dirs = folder.path().join("run");
        let source = folder.path().join("hold.mjs");
        fs::write(&source, HOLD).unwrap();
        config["machine_driver"] = json!(self.driver);
        config["runtime_dir"] = json!(runtime_dirs);
        let cluster = Cluster::start();
        let (mut ends, mut starts) = (Vec::new(), Vec::new());
        let mut dead: Vec<u32> = Vec::new();
        for kill in 0..=self.kills {
            let began = Instant::now();
            let mut node = cluster.node(&format!("node-{kill}"), config.clone()).await;
            starts.push(began.elapsed());
            // It has swept up after the others.
            for pid in &dead {
                assert_eq!(control_groups_of(*pid), Vec::<PathBuf>::new());
            }
            let own = format!("node-{}-", node.pid());
            for name in names_in(&runtime_dirs) {
                assert!(name.starts_with(&own), "{name} is not of the only node there is");
            }
            if kill == self.kills {
                let household = Household::of(&node, &runtime_dirs);
                let pid = node.pid();
                assert!(node.stop().await.success());
                household.gone().await;
                assert_eq!(
                    names_in(&runtime_dirs),
                    [""; 0],
                    "a node that ends leaves nothing to sweep up"
                );
                assert_eq!(control_groups_of(pid), Vec::<PathBuf>::new());
                break;
            }
            if kill.is_multiple_of(self.busy_every) {
                self.hold_calls(&cluster, &source).await;
            }
            let household = Household::of(&node, &runtime_dirs);
            assert!(!household.machines.is_empty(), "a node has a warm machine");
            dead.push(node.pid());
            let killed = Instant::now();
            node.kill().await;
            household.gone().await;
            ends.push(killed.elapsed());
        }
        figures(
            &format!("{}: from the end of a node to that of all its machines", self.driver),
            ends,
        );
        figures(
            &format!("{}: start of a node, sweeping up included", self.driver),
            starts,
        );
    }

    /// Deploys a function, and waits until it has calls in flight.
    async fn hold_calls(&self, cluster: &Cluster, source: &Path) {
        let client = cluster.client().await;
        let mut held = client.subscribe("held").await.unwrap();
        let source = source.to_str().unwrap();
        cluster
            .nex_json(["devrun", source, "--json", "--trigger_subject", "hold"])
            .await;
        for _ in 0..self.calls {
            client
                .publish_with_reply("hold", client.new_inbox(), "".into())
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        for _ in 0..self.calls {
            within(held.next()).await.unwrap();
        }
    }
}

/// Processes, each with the time it was started at: a number may be given again.
type Processes = BTreeMap<u32, u64>;

/// The parent and the start of a process that runs; one that has ended and is still listed does not.
fn process(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let runs = !matches!(fields[0], "Z" | "X");
    runs.then(|| (fields[1].parse().unwrap(), fields[19].parse().unwrap()))
}

fn all_pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What runs on behalf of a node.
struct Household {
    machines: Processes,
    /// What stands in the arguments of its machines: its control groups, its runtime folder.
    marks: [String; 2],
}

impl Household {
    fn of(node: &Node, runtime_dirs: &Path) -> Self {
        let processes: BTreeMap<u32, (u32, u64)> = all_pids()
            .into_iter()
            .filter_map(|pid| Some((pid, process(pid)?)))
            .collect();
        let is_below = |mut pid: u32| {
            while let Some((parent, _)) = processes.get(&pid) {
                if *parent == node.pid() {
                    return true;
                }
                pid = *parent;
            }
            false
        };
        let below = processes.iter().filter(|(pid, _)| is_below(**pid));
        Self {
            machines: below.map(|(pid, (_, start))| (*pid, *start)).collect(),
            marks: [
                format!("/nex-{}-", node.pid()),
                format!("{}/node-{}-", runtime_dirs.display(), node.pid()),
            ],
        }
    }

    /// Waits until all of them are gone, and those that were being started when this was made.
    async fn gone(&self) {
        let runs = || {
            let known = self.machines.iter();
            let known = known.filter(|(pid, start)| process(**pid).is_some_and(|(_, now)| now == **start));
            known.map(|(pid, _)| *pid).chain(self.marked()).collect::<Vec<_>>()
        };
        until("its machines are gone", || runs().is_empty().then_some(())).await;
    }

    fn marked(&self) -> Vec<u32> {
        let is_marked = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            self.marks.iter().any(|mark| arguments.contains(mark)) && process(*pid).is_some()
        };
        all_pids().into_iter().filter(is_marked).collect()
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    // It is not there where the driver has no use for it.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
