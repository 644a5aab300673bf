//! `nex node ls`, `info` and `probe`, and `nex lameduck`: what nodes there are, what runs on them, and winding one down.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use super::args::{Global, Output, name};
use super::control::Session;
use super::failure::Failure;
use super::{output, preflight, up};
use crate::control::messages::{AgentSummary, InfoResponse, LimitValues, MachineSummary, PingResponse};
use crate::limits::LimitKey;

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a node, and run it until Ctrl-C
    Up(up::Args),
    /// List the nodes
    Ls(LsArgs),
    /// Show a node, and what it runs in the namespace
    Info(InfoArgs),
    /// List where workloads of the namespace run
    Probe(ProbeArgs),
    /// The same as `nex preflight`
    Preflight(preflight::Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct LsArgs {
    /// Show more columns
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(super) struct InfoArgs {
    /// Node ID (N…)
    #[arg(value_parser = name)]
    node: String,
    /// Show each workload in full
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProbeArgs {
    /// ID or name of the workload [default: all of the namespace]
    #[arg(long, value_name = "ID or NAME", value_parser = name)]
    workload: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(super) struct LameduckArgs {
    /// Node ID (N…)
    #[arg(value_parser = name)]
    node: String,
    #[command(flatten)]
    output: Output,
}

/// Runs one of the commands except `up`.
pub(super) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(global, args).await,
        Command::Ls(args) => list(global, args).await,
        Command::Info(args) => info(global, args).await,
        Command::Probe(args) => probe(global, args).await,
        Command::Preflight(args) => preflight::run(args).await,
    }
}

async fn list(global: &Global, args: LsArgs) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let mut nodes = session.control.ping(None).await?;
    nodes.sort_by_cached_key(|node| (node.nexus.clone(), tag(&node.tags, "node_name"), node.node_id.clone()));
    if args.output.json {
        output::json(&nodes)
    } else if nodes.is_empty() {
        output::line("No nodes discovered")
    } else if args.full {
        output::table(
            "NATS Execution Nodes",
            [
                "Nexus",
                "ID (* = Lameduck Mode)",
                "Name",
                "Version",
                "Workloads",
                "Uptime",
                "Sandboxed",
                "OS",
                "Arch",
            ],
            nodes.iter().map(|node| {
                [
                    node.nexus.clone().unwrap_or_default(),
                    marked_id(node),
                    tag(&node.tags, "node_name"),
                    node.version.clone(),
                    node.running_machines.to_string(),
                    node.uptime.clone(),
                    (!flag(&node.tags, "nex.unsafe")).to_string(),
                    tag(&node.tags, "nex.os"),
                    tag(&node.tags, "nex.arch"),
                ]
            }),
        )
    } else {
        output::table(
            "NATS Execution Nodes",
            ["ID (* = Lameduck Mode)", "Name", "Version", "Workloads"],
            nodes.iter().map(|node| {
                [
                    marked_id(node),
                    tag(&node.tags, "node_name"),
                    node.version.clone(),
                    node.running_machines.to_string(),
                ]
            }),
        )
    }
}

/// What `node info --json` writes: the node's answer, with its ID in front.
#[derive(Serialize)]
struct InfoReport<'a> {
    node_id: &'a str,
    #[serde(flatten)]
    info: &'a InfoResponse,
}

async fn info(global: &Global, args: InfoArgs) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let info = session.control.info(&args.node).await?;
    if args.output.json {
        return output::json(&InfoReport {
            node_id: &args.node,
            info: &info,
        });
    }
    let mut rows = vec![
        ("Node", args.node.clone()),
        ("Xkey", info.public_xkey.clone()),
        ("Version", info.version.clone()),
        ("Uptime", info.uptime.clone()),
        ("Available Agents", info.available_agents.to_string()),
    ];
    if !info.supported_workload_types.is_empty() {
        rows.push(("Workload Types", info.supported_workload_types.join(", ")));
    }
    for (index, (key, value)) in info.tags.iter().enumerate() {
        let label = if index == 0 { "Tags" } else { "" };
        rows.push((label, format!("{key}={value}")));
    }
    if let Some(memory) = info.memory {
        rows.push(("Memory in kB", format!("Free: {}", memory.free)));
        rows.push(("", format!("Available: {}", memory.available)));
        rows.push(("", format!("Total: {}", memory.total)));
    }
    output::columns("NEX Node Information", &rows)?;
    output::line("")?;
    if !info.agents.is_empty() {
        agents(&info.agents)?;
        output::line("")?;
    }
    if info.machines.is_empty() {
        output::line(format_args!("No workloads in namespace {}", global.namespace))
    } else if args.full {
        info.machines.iter().try_for_each(|shown| machine(shown, &info.limits))
    } else {
        output::table(
            "Workloads",
            ["", "ID", "Type", "Name", "State", "Uptime", "Runtime", "Limits"],
            info.machines.iter().map(|machine| {
                let workload = &machine.workload;
                [
                    health(machine).to_owned(),
                    machine.id.clone(),
                    workload.workload_type.clone(),
                    workload.name.clone(),
                    machine.state.clone(),
                    machine.uptime.clone(),
                    workload.runtime.clone(),
                    own_limits(&workload.limits, &info.limits),
                ]
            }),
        )?;
        info.machines.iter().try_for_each(|machine| match &machine.reason {
            Some(reason) => output::line(format_args!("{} {}: {reason}", health(machine), machine.workload.name)),
            None => Ok(()),
        })
    }
}

/// The agents of the namespace, and the warm ones.
fn agents(agents: &[AgentSummary]) -> Result<(), Failure> {
    output::table(
        "Agents",
        [
            "ID",
            "PID",
            "State",
            "Functions",
            "Hibernating",
            "Instances",
            "In Flight",
            "Memory",
            "Host Memory",
            "Machine",
        ],
        agents.iter().map(|agent| {
            let how = if agent.restored { "restored" } else { "booted" };
            [
                agent.id.clone(),
                agent.pid.to_string(),
                agent.state.clone(),
                agent.functions.to_string(),
                agent.hibernating.to_string(),
                agent.instances.to_string(),
                agent.in_flight.to_string(),
                format!("{} MiB", agent.rss_bytes >> 20),
                format!("{} MiB", agent.host_bytes >> 20),
                format!("{}, {how} in {} ms", agent.driver, agent.start_us.div_ceil(1000)),
            ]
        }),
    )
}

/// One workload in full.
fn machine(machine: &MachineSummary, defaults: &LimitValues) -> Result<(), Failure> {
    let workload = &machine.workload;
    let mut rows = vec![
        ("Id", machine.id.clone()),
        ("Healthy", machine.healthy.to_string()),
        ("State", machine.state.clone()),
        ("Type", workload.workload_type.clone()),
        ("Runtime", workload.runtime.clone()),
        ("Uptime", machine.uptime.clone()),
        ("Name", workload.name.clone()),
        ("Description", workload.description.clone()),
        ("Hash", workload.hash.clone()),
        ("Essential", workload.essential.to_string()),
    ];
    if let Some(reason) = &machine.reason {
        rows.push(("Reason", reason.clone()));
    }
    for (index, (key, &value)) in workload.limits.iter().enumerate() {
        let label = if index == 0 { "Limits" } else { "" };
        let own = if defaults.get(key) == Some(&value) {
            ""
        } else {
            " (own)"
        };
        rows.push((label, format!("{}{own}", limit(key, value))));
    }
    output::columns("Workload", &rows)?;
    output::line("")
}

/// The limits in which a workload differs from others of its node.
fn own_limits(limits: &LimitValues, defaults: &LimitValues) -> String {
    let own: Vec<String> = limits
        .iter()
        .filter(|(key, value)| defaults.get(*key) != Some(*value))
        .map(|(key, &value)| limit(key, value))
        .collect();
    own.join(" ")
}

/// A limit as the command line takes it. A node of a later version may have some that are unknown here.
fn limit(key: &str, value: u64) -> String {
    match LimitKey::find(key) {
        Some(limit) => format!("{}={}", limit.name(), limit.show(value)),
        None => format!("{key}={value}"),
    }
}

async fn probe(global: &Global, args: ProbeArgs) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let mut nodes = session.control.ping_workloads(args.workload.as_deref(), None).await?;
    nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    if args.output.json {
        return output::json(&nodes);
    }
    let rows: Vec<[String; 5]> = nodes
        .iter()
        .flat_map(|node| {
            node.running_machines.iter().map(|workload| {
                [
                    workload.id.clone(),
                    workload.name.clone(),
                    workload.workload_type.clone(),
                    workload.namespace.clone(),
                    tag(&node.tags, "node_name"),
                ]
            })
        })
        .collect();
    if rows.is_empty() {
        return output::line("No workloads matched");
    }
    output::table(
        "Discovered Workloads",
        ["ID", "Name", "Type", "Namespace", "Node Name"],
        rows,
    )
}

/// Runs `nex lameduck`.
pub(super) async fn lameduck(global: &Global, args: LameduckArgs) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let response = session.control.lameduck(&args.node).await?;
    if !response.success {
        return Err(Failure::failed(format_args!(
            "node {} did not enter lame duck mode",
            args.node
        )));
    }
    if args.output.json {
        output::json(&response)
    } else {
        output::line(format_args!(
            "✅ Node {} is in lame duck mode: it takes no new workloads, those it has keep running.",
            args.node
        ))
    }
}

fn marked_id(node: &PingResponse) -> String {
    let mark = if flag(&node.tags, "nex.lameduck") { "*" } else { "" };
    format!("{}{mark}", node.node_id)
}

fn health(machine: &MachineSummary) -> &'static str {
    if machine.healthy { "🟢" } else { "🔴" }
}

fn tag(tags: &BTreeMap<String, String>, key: &str) -> String {
    tags.get(key).cloned().unwrap_or_default()
}

/// Whether a tag says yes.
pub(super) fn flag(tags: &BTreeMap<String, String>, key: &str) -> bool {
    tags.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}
