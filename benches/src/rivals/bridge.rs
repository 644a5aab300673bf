//! The thinnest bridge from NATS to an HTTP server: each message becomes a POST on a UNIX socket, its reply the reply. It
//! is what somebody would put in front of workerd or Deno to have functions on NATS without nex.
//!
//! One thread does everything, because that is the least work: no call is handed from one thread to another.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use hyper::Method;

use super::http::{CallError, Pool};

/// The NATS convention for failed calls.
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// What HTTP calls a gateway that got no answer.
const BAD_GATEWAY: u16 = 502;

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// URL of the server
    #[arg(long)]
    url: String,
    /// Subject to answer on
    #[arg(long)]
    subject: String,
    /// Most connections
    #[arg(long)]
    connections: usize,
    /// UNIX sockets to ask; they take turns
    #[arg(long, required = true)]
    socket: Vec<PathBuf>,
}

/// Passes every message on, until it is killed.
pub(crate) async fn run(args: Args) -> Result<()> {
    let client = async_nats::connect(&args.url).await?;
    let requests = client.subscribe(args.subject).await?;
    client.flush().await?;
    println!("ready");
    serve(&client, requests, Pool::new(args.socket, args.connections)).await
}

/// Passes messages on until there are no more; as many at a time as there are connections.
async fn serve(client: &Client, mut requests: Subscriber, pool: Pool) -> Result<()> {
    while let Some(request) = requests.next().await {
        let permit = Arc::clone(pool.permits()).acquire_owned().await?;
        let (client, pool) = (client.clone(), pool.clone());
        tokio::spawn(async move {
            if let Err(error) = pass_on(&client, &pool, request).await {
                eprintln!("bridge: {error:#}");
            }
            drop(permit);
        });
    }
    Ok(())
}

async fn pass_on(client: &Client, pool: &Pool, request: Message) -> Result<()> {
    let reply = request.reply.context("a request without reply subject")?;
    match pool.call(&Method::POST, "/", request.payload).await {
        Ok(body) => client.publish(reply, body).await?,
        Err(error) => {
            let code = match &error {
                CallError::Status { status, .. } => status.as_u16(),
                _ => BAD_GATEWAY,
            };
            let mut headers = HeaderMap::new();
            headers.insert(ERROR_CODE, code.to_string());
            // A header is one line.
            headers.insert(ERROR, error.to_string().replace(['\r', '\n'], " "));
            client.publish_with_headers(reply, headers, Bytes::new()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
