//! `nex node up`: runs a node until a signal ends it, on the user's NATS server or, with `--dev`, on one of its own.
//!
//! The first signal lets calls in flight end; a second one ends the process at once.

mod dev;
pub(super) mod muscle;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::Client;
use nex_runtime::engine::Engine;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::dev::DevServer;
use self::muscle::Muscle;
use super::args::{Global, Output, ResourceDir, assignment};
use super::failure::Failure;
use super::{keys, output};
use crate::config::NodeConfig;
use crate::connection::Connection;
use crate::data_plane;
use crate::identity::IdentityError;
use crate::machines::DriverKind;
use crate::node::{Node, NodeError};

/// Where the configuration is looked for without `--config`, as in the original.
const CONFIG_FILE: &str = "config.json";

/// Exit status after a second signal: what shells report for a process ended by SIGINT.
const KILLED: i32 = 130;

const HELP: &str = "\
The node runs in the foreground and logs to standard error. Ctrl-C (or SIGTERM) stops it: it takes no new calls, lets
those in flight end, and exits with status 0. A second one ends it at once.

Examples:
  nex node up --dev                             with a NATS server of its own
  nex node up -s nats://nats.example.com --creds node.creds --config node.json
  nex node up --tags region=eu --tags gpu=no --agents 4";

/// Arguments of `nex node up`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Configuration file of the node, JSON [default: ./config.json if there is one, else the defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start a nats-server with JetStream for this node alone, on port 4222 if that is free; reads no ./config.json
    #[arg(long)]
    dev: bool,
    /// Where the nats-server of --dev keeps its data [default: a temporary directory]
    #[arg(long, alias = "dev_store", value_name = "DIR", requires = "dev")]
    dev_store: Option<PathBuf>,
    /// Agent processes kept ready; overrides `machine_pool_size`
    #[arg(long, value_name = "N")]
    agents: Option<NonZeroU32>,
    /// Tag of the node; may be given several times. Added to those of the configuration
    #[arg(long, value_name = "NAME=VALUE", env = "NEX_NODE_TAGS", value_delimiter = ',', value_parser = assignment)]
    tags: Vec<(String, String)>,
    /// Name of the group of nodes this one belongs to; overrides `nexus`
    #[arg(long, value_name = "NAME")]
    nexus: Option<String>,
    /// Where the node keeps its identity, to be the same node after a restart; overrides `state_dir`
    /// [default: $NEX_HOME/node; with --dev it keeps none]
    #[arg(long, alias = "state_dir", value_name = "DIR", verbatim_doc_comment)]
    state_dir: Option<PathBuf>,
    /// What functions run in; overrides `machine_driver`. `in_process` needs --unsafe-in-process
    #[arg(long, value_name = "DRIVER", value_enum)]
    driver: Option<DriverKind>,
    #[command(flatten)]
    resource_dir: ResourceDir,
    /// Run functions inside the node process: no machines, and nothing between a function and the node's credentials
    #[arg(long, alias = "unsafe_in_process")]
    unsafe_in_process: bool,
    #[command(flatten)]
    output: Output,
}

/// What `--json` writes once the node is up.
#[derive(Serialize)]
struct Report<'a> {
    node: &'a str,
    public_xkey: &'a str,
    server: String,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let config = configure(&args)?;
    if args.dev && global.names_a_server() {
        return Err(Failure::usage(
            "--dev starts a NATS server of its own; give either --dev or the server to use",
        ));
    }
    let dev = match args.dev {
        true => Some(DevServer::start(args.dev_store.clone()).await?),
        false => None,
    };
    let connection = match &dev {
        Some(server) => server.connection()?,
        None => global.connection()?,
    };
    let wanted = connection.clone();
    let client = data_plane::run(async move { wanted.connect().await }).await?;
    let muscle = Muscle::start(global, &config, &args.resource_dir).await?;
    let node = start(config, &args, client.clone(), muscle.engine()).await?;
    muscle.report_to(node.events());
    if let Err(failure) = announce(&args, &node, &connection, dev.as_ref()) {
        // Nobody reads it. The node is up all the same.
        tracing::debug!(?failure, "standard output is closed");
    }

    let name = signals.next().await;
    tracing::info!(
        signal = name,
        "stopping; calls in flight may end, a second signal ends this at once"
    );
    let graceful = async {
        let answered = node.shutdown().await;
        muscle.shutdown().await;
        // What the agents' end has caused to be published.
        _ = tokio::time::timeout(connection.timeout, client.flush()).await;
        answered
    };
    tokio::select! {
        answered = graceful => {
            if !answered {
                tracing::warn!("some calls had not ended within the grace period");
            }
            tracing::info!("stopped");
            Ok(())
        }
        name = signals.next() => {
            tracing::warn!(signal = name, "ended before all calls were answered");
            // The agents and the nats-server die with this process.
            std::process::exit(KILLED);
        }
    }
}

/// The configuration in this file, else in the one that is looked for, else the defaults.
pub(super) fn load(file: Option<&Path>) -> Result<NodeConfig, Failure> {
    let default = Path::new(CONFIG_FILE);
    match file.or_else(|| default.exists().then_some(default)) {
        Some(file) => {
            tracing::info!(file = %file.display(), "configuration");
            NodeConfig::load(file).map_err(|error| Failure::usage(format_args!("{}: {error}", file.display())))
        }
        None => Ok(NodeConfig::default()),
    }
}

/// The configuration from the file, with what the flags say.
fn configure(args: &Args) -> Result<NodeConfig, Failure> {
    let mut config = if args.dev && args.config.is_none() {
        NodeConfig::default()
    } else {
        load(args.config.as_deref())?
    };
    if let Some(agents) = args.agents {
        config.machine_pool_size = agents;
    }
    if let Some(nexus) = &args.nexus {
        config.nexus.clone_from(nexus);
    }
    config.tags.extend(args.tags.iter().cloned());
    if args.state_dir.is_some() {
        config.state_dir.clone_from(&args.state_dir);
    }
    if let Some(driver) = args.driver {
        config.machine_driver = driver;
    }
    match (args.unsafe_in_process, config.machine_driver) {
        (true, DriverKind::InProcess | DriverKind::Process) => config.machine_driver = DriverKind::InProcess,
        (true, driver) => {
            return Err(Failure::usage(format_args!(
                "--unsafe-in-process runs functions without machines, but the driver is {driver}; give one or the other"
            )));
        }
        (false, DriverKind::InProcess) => {
            return Err(Failure::usage(
                "the driver in_process leaves nothing between a function and the node; add --unsafe-in-process if that is \
                 what you want",
            ));
        }
        (false, _) => {}
    }
    config.validate().map_err(Failure::usage)?;
    Ok(config)
}

/// Starts the node. Without a word on its state it keeps its identity under the user's home, and if it cannot, because
/// another node does or there is no home to write to, it gets along without.
async fn start(config: NodeConfig, args: &Args, client: Client, engine: Arc<dyn Engine>) -> Result<Node, Failure> {
    if config.state_dir.is_none()
        && !args.dev
        && let Ok(home) = keys::home()
    {
        let kept = NodeConfig {
            state_dir: Some(home.join("node")),
            ..config.clone()
        };
        match Node::start(kept, client.clone(), engine.clone()).await {
            Err(NodeError::Identity(error @ (IdentityError::InUse(_) | IdentityError::Io { .. }))) => {
                tracing::warn!(
                    "{error}: this node has an identity that ends with it; --state-dir gives it one to keep"
                );
            }
            started => return Ok(started?),
        }
    }
    Ok(Node::start(config, client, engine).await?)
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Config(_) | NodeError::WorkloadType { .. } | NodeError::Identity(_) => Self::usage(error),
            NodeError::Subscribe { .. } => Self::unreachable(error),
            _ => Self::failed(error),
        }
    }
}

/// Tells where the node is; with `--dev` also what to do next.
fn announce(args: &Args, node: &Node, connection: &Connection, dev: Option<&DevServer>) -> Result<(), Failure> {
    if args.output.json {
        return output::json_line(&Report {
            node: node.id(),
            public_xkey: node.public_xkey(),
            server: connection.servers(),
        });
    }
    output::line(format_args!("Node {} is up on {}", node.id(), connection.servers()))?;
    dev.map_or(Ok(()), DevServer::announce)
}

/// The signals that ask a process to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::failed);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            quit: listen(SignalKind::quit())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
