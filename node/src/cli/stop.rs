//! `nex stop`: stops a workload, with the key of the issuer that started it.

use std::path::PathBuf;

use serde::Serialize;

use super::args::{Global, Output, name};
use super::control::{Session, while_doing};
use super::failure::Failure;
use super::{deploy, keys, output};
use crate::control::messages::StopResponse;

/// Arguments of `nex stop`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Node ID (N…)
    #[arg(value_parser = name)]
    node: String,
    /// Workload ID
    #[arg(value_name = "WORKLOAD_ID", value_parser = name)]
    workload: String,
    /// File with the account seed (SA…) that signed the workload's start
    #[arg(long, value_name = "FILE")]
    issuer: PathBuf,
    /// Workload name, for the message; the ID alone says what is stopped
    #[arg(long, value_parser = name)]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// What `--json` writes: the node's answer, and which node it was.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    response: StopResponse,
    node: &'a str,
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let issuer = keys::read_issuer(&args.issuer)?;
    let session = Session::open(global).await?;
    let response = deploy::stop(&session, &args.node, &args.workload, &issuer)
        .await
        .map_err(while_doing("Workload stop request failed"))?;
    if !response.stopped {
        return Err(Failure::failed(format_args!(
            "node {} did not stop workload {}",
            args.node, args.workload
        )));
    }
    let name = if response.name.is_empty() {
        args.name.unwrap_or(args.workload)
    } else {
        response.name.clone()
    };
    if args.output.json {
        output::json(&Report {
            response,
            node: &args.node,
        })
    } else {
        output::line(format_args!("✅ Workload '{name}' stopped."))
    }
}
