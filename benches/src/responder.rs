//! The responders that `echo` starts as processes of their own: a native echo, and an engine in process behind a plain
//! async-nats subscription.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_nats::{Client, Subject, Subscriber};
use futures::StreamExt;
use nex_runtime::engine::Function;
use nex_runtime::invocation::{InvokeError, Reply, ReplySink, Trigger};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::runtime;

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// URL of the server
    #[arg(long)]
    url: String,
    /// Subject to answer on
    #[arg(long)]
    subject: String,
    /// The function that answers; without it, a native echo
    #[arg(long)]
    function: Option<PathBuf>,
}

/// Answers until it is killed.
pub(crate) async fn run(args: Args) -> Result<()> {
    let client = async_nats::connect(&args.url).await?;
    let function = match &args.function {
        Some(path) => Some(runtime::load(&std::fs::read(path)?).await?),
        None => None,
    };
    let requests = client.subscribe(args.subject).await?;
    client.flush().await?;
    println!("ready");
    match function {
        Some(function) => run_function(client, requests, function).await,
        None => echo(client, requests).await,
    }
}

async fn echo(client: Client, mut requests: Subscriber) -> Result<()> {
    while let Some(request) = requests.next().await {
        let reply = request.reply.context("a request without reply subject")?;
        client.publish(reply, request.payload).await?;
    }
    Ok(())
}

async fn run_function(client: Client, mut requests: Subscriber, function: Arc<dyn Function>) -> Result<()> {
    let (replies, mut answered) = unbounded_channel();
    loop {
        tokio::select! {
            request = requests.next() => {
                let Some(request) = request else { return Ok(()) };
                let reply = request.reply.context("a request without reply subject")?;
                let trigger = Trigger {
                    subject: request.subject.to_string(),
                    payload: request.payload,
                    ..Trigger::default()
                };
                function.invoke(trigger, Box::new(Answer { reply, replies: replies.clone() }));
            }
            Some((reply, outcome)) = answered.recv() => {
                let outcome: Result<Reply, InvokeError> = outcome;
                client.publish(reply, outcome?.body).await?;
            }
        }
    }
}

/// Hands the outcome from the engine's thread to the task that publishes.
struct Answer {
    reply: Subject,
    replies: UnboundedSender<(Subject, Result<Reply, InvokeError>)>,
}

impl ReplySink for Answer {
    fn stream(&mut self, _reply: Reply) {}

    fn finish(self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        // The task is gone only when the process ends.
        _ = self.replies.send((self.reply, outcome));
    }
}
