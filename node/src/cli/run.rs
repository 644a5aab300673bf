//! `nex run`: deploys an artefact that is already in an object store to a node of the caller's choice.

use std::path::PathBuf;

use super::args::{Global, Output, WorkloadArgs, name};
use super::control::Session;
use super::deploy::{self, Keys, Report, Target, Workload, accepted, not_accepted};
use super::failure::Failure;
use super::keys;
use crate::control::Location;

/// Arguments of `nex run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the artefact is: nats://BUCKET/KEY
    #[arg(value_name = "URL")]
    location: Location,
    /// Node ID (N…)
    #[arg(value_parser = name)]
    node: String,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// File with the curve seed (SX…) that seals the environment for the node
    #[arg(long, value_name = "FILE")]
    xkey: PathBuf,
    /// File with the account seed (SA…) that signs the request
    #[arg(long, value_name = "FILE")]
    issuer: PathBuf,
    /// Workload name: letters, digits, - and _
    #[arg(long, value_parser = name)]
    name: String,
    /// Workload type
    #[arg(long = "type", value_name = "TYPE", default_value = "v8")]
    workload_type: String,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let keys = Keys {
        issuer: keys::read_issuer(&args.issuer)?,
        xkey: keys::read_xkey(&args.xkey)?,
    };
    let session = Session::open(global).await?;
    let (artifact, node) = tokio::try_join!(deploy::look_up(&session, args.location), async {
        Ok(session.control.ping_node(&args.node).await?)
    },)?;
    let workload = Workload {
        name: &args.name,
        workload_type: &args.workload_type,
        artifact: &artifact,
        description: args.workload.description.as_deref().unwrap_or_default(),
        args: &args.workload,
    };
    let target = Target {
        node_id: &args.node,
        xkey: &node.target_xkey,
    };
    let response = deploy::deploy(&session, &target, &workload, &keys)
        .await
        .map_err(not_accepted)?;
    accepted(
        args.output,
        &args.workload,
        &Report {
            response: &response,
            namespace: &global.namespace,
            node: &args.node,
            hash: &artifact.hash,
            location: artifact.location.to_string(),
            replaced: Vec::new(),
        },
    )
}
