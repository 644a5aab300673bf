//! The native echo, which `echo` starts as a process of its own: the least that a responder on NATS can do.

use anyhow::{Context, Result};
use futures::StreamExt as _;

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// URL of the server
    #[arg(long)]
    url: String,
    /// Subject to answer on
    #[arg(long)]
    subject: String,
}

/// Sends every payload back, until it is killed.
pub(crate) async fn run(args: Args) -> Result<()> {
    let client = async_nats::connect(&args.url).await?;
    let mut requests = client.subscribe(args.subject).await?;
    client.flush().await?;
    println!("ready");
    while let Some(request) = requests.next().await {
        let reply = request.reply.context("a request without reply subject")?;
        client.publish(reply, request.payload).await?;
    }
    Ok(())
}
