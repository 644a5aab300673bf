//! `nex devrun`: from a file to a running workload in one command. Type and name come from the file, keys from the
//! developer's own directory, the node from an auction; the older version of the workload is replaced.

mod rollout;

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use rand::seq::SliceRandom;

use self::rollout::{Older, Rollout};
use super::args::{Global, Output, WorkloadArgs, name, read_file};
use super::control::Session;
use super::deploy::{self, Artifact, Keys, Report, Workload, accepted};
use super::failure::Failure;
use super::node::flag;
use super::{invoke, keys, source};
use crate::claims::hex_sha256;
use crate::control::Location;
use crate::control::messages::{AuctionRequest, AuctionResponse};
use crate::limits::LimitSet;

/// Object store of developers' artefacts.
const BUCKET: &str = "NEXCLIFILES";

/// Size limit of [`BUCKET`] if it has to be made, in bytes.
const BUCKET_BYTES: i64 = 100 * 1024 * 1024;

/// How long nodes have to answer. Most answer within milliseconds, so the auction looks at what has come after the
/// first, short window and waits for the rest only if that is nothing.
const AUCTION_WINDOWS: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(600)];

const HELP: &str = "\
The keys are $NEX_HOME/issuer.nk and publisher.xk, in ~/.nex by default; they are made on first use.

Examples:
  nex devrun echo.js --trigger_subject greet.en --trigger_subject greet.fr
  nex devrun mailer.js SMTP_HOST=mail.example.com --trigger-subject 'mail.>'
  nex devrun thumbs.js --trigger-subject thumbs --limit cpu_time=200ms --limit heap=64MiB";

/// Arguments of `nex devrun`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// The artefact: for functions, the source file
    file: PathBuf,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Workload type [default: by the file's extension]
    #[arg(long = "type", value_name = "TYPE")]
    workload_type: Option<String>,
    /// Workload name [default: the file's name without dots, so echo.js is echojs]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Stop older workloads of this name in the namespace once this one runs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = ArgAction::Set)]
    stop: bool,
    /// Size limit of the object store NEXCLIFILES if it has to be made, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = BUCKET_BYTES,
        value_parser = clap::value_parser!(i64).range(1..))]
    bucketmaxbytes: i64,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let content = read_file("file", &args.file)?;
    let workload_type = source::type_or(args.workload_type.as_deref(), &args.file)?;
    let name = source::name_or(args.name.as_deref(), &args.file)?;
    let keys = Keys {
        issuer: keys::own_issuer()?,
        xkey: keys::own_xkey()?,
    };
    let session = Session::open(global).await?;
    // Goes on in the background while the new version is being deployed.
    let older = args.stop.then(|| Older::look_for(&session, &name));
    let artifact = Artifact {
        location: location(&global.namespace, &name)?,
        hash: hex_sha256(&content),
    };
    let (candidates, ()) = tokio::try_join!(
        auction(&session, &workload_type, args.workload.limits.set()),
        deploy::upload(&session, &artifact.location, args.bucketmaxbytes, content.as_slice()),
    )?;

    let workload = Workload {
        name: &name,
        workload_type: &workload_type,
        artifact: &artifact,
        description: args
            .workload
            .description
            .as_deref()
            .unwrap_or("Workload published in devmode"),
        args: &args.workload,
    };
    let rollout = Rollout {
        session: &session,
        workload: &workload,
        keys: &keys,
    };
    let check = || {
        invoke::check(
            global,
            &name,
            &workload_type,
            args.workload.limits.set(),
            content.into(),
        )
    };
    let (node, response, replaced) = rollout
        .run(&candidates, older, check)
        .await
        .map_err(|failure| failure.map(|message| source::locate(message, &name, &args.file)))?;
    accepted(
        args.output,
        &args.workload,
        &Report {
            response: &response,
            namespace: &global.namespace,
            node: &node.node_id,
            hash: &artifact.hash,
            location: artifact.location.to_string(),
            replaced: replaced.ids,
        },
    )?;
    replaced.failure.map_or(Ok(()), Err)
}

/// Where the artefact is stored. The name alone is the key in the default namespace, as in the original; others get a
/// key of their own, or developers in two namespaces would overwrite each other's files.
fn location(namespace: &str, name: &str) -> Result<Location, Failure> {
    let key = match namespace {
        "default" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    };
    Location::new(BUCKET, key).map_err(Failure::usage)
}

/// The nodes that run this type with these limits and take new workloads, in random order.
pub(super) async fn auction(
    session: &Session,
    workload_type: &str,
    limits: LimitSet,
) -> Result<Vec<AuctionResponse>, Failure> {
    let limited = if limits.is_empty() { "" } else { " with these limits" };
    let request = AuctionRequest {
        workload_types: vec![workload_type.to_owned()],
        limits,
        ..AuctionRequest::default()
    };
    for window in AUCTION_WINDOWS {
        let mut nodes = session.control.with_timeout(window).auction(&request, None).await?;
        nodes.retain(|node| !flag(&node.tags, "nex.lameduck"));
        if !nodes.is_empty() {
            nodes.shuffle(&mut rand::rng());
            return Ok(nodes);
        }
    }
    let waited: Duration = AUCTION_WINDOWS.iter().sum();
    Err(Failure::unreachable(format_args!(
        "no node at {} offered to run workloads of type {workload_type}{limited} within {waited:?}; `nex node ls` lists the nodes",
        session.connection.servers()
    )))
}
