//! The way of a message to a function and of its reply back: subscriptions in a queue group per function, so that a
//! second node with the same function means more capacity and not a second reply.

mod reply;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subscriber};
use futures::StreamExt as _;
use nex_runtime::engine::{Function, Invocation};
use nex_runtime::host_services::Headers;
use nex_runtime::invocation::Trigger;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::reply::ReplyTo;
pub(crate) use self::reply::{ERROR, ERROR_KIND};
use crate::data_plane;
use crate::outbound::Outbound;
use crate::report::Reporter;

/// How long the server has to confirm that a subscription has begun or ended.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// A subscription ends in a pause of the traffic of this length: the NATS client forgets a subscription as soon as it has
/// asked the server to end it, and drops what the server had sent by then.
const LULL: Duration = Duration::from_millis(20);

/// How long such a pause is waited for. Traffic without one loses what is on its way at the end.
const LULL_PATIENCE: Duration = Duration::from_secs(1);

/// Messages handed to a function at a time.
const BATCH: usize = 256;

/// The queue group of a function: all nodes that run it share its messages.
pub(crate) fn queue_group(namespace: &str, name: &str) -> String {
    format!("nex.{namespace}.{name}")
}

/// A function, and what is needed to call it and to answer for it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) function: Arc<dyn Function>,
    pub(crate) outbound: Outbound,
    pub(crate) reporter: Arc<Reporter>,
}

/// The subscriptions of one function.
#[derive(Debug)]
pub(crate) struct Triggers {
    /// Tells the subscriptions to drain.
    drain: CancellationToken,
    subscriptions: TaskTracker,
    /// Calls that have not been answered.
    calls: TaskTracker,
}

impl Triggers {
    /// Subscribes all subjects. When this returns, the server knows of them.
    pub(crate) async fn subscribe(
        target: Arc<Target>,
        queue_group: &str,
        subjects: &[String],
    ) -> Result<Self, async_nats::SubscribeError> {
        let triggers = Self {
            drain: CancellationToken::new(),
            subscriptions: TaskTracker::new(),
            calls: TaskTracker::new(),
        };
        let client = target.outbound.client();
        for subject in subjects {
            let subscriber = client.queue_subscribe(subject.clone(), queue_group.to_owned()).await?;
            let subscription = Arc::new(Subscription {
                subject: subject.clone(),
                target: target.clone(),
                calls: triggers.calls.clone(),
                drain: triggers.drain.clone(),
            });
            let span = tracing::debug_span!("trigger", subject);
            triggers
                .subscriptions
                .spawn_on(subscription.run(subscriber).instrument(span), &data_plane::handle());
        }
        round_trip(client).await;
        Ok(triggers)
    }

    /// Ends the subscriptions: no new messages come, those that have arrived are still taken.
    pub(crate) async fn drain(&self) {
        self.drain.cancel();
        self.subscriptions.close();
        if tokio::time::timeout(SERVER_PATIENCE, self.subscriptions.wait())
            .await
            .is_err()
        {
            tracing::warn!("the server did not confirm the end of a subscription in time");
        }
    }

    /// After [`drain`](Self::drain): waits until all calls have been answered, for this long at most. Returns whether
    /// they have.
    pub(crate) async fn answered(&self, patience: Duration) -> bool {
        self.calls.close();
        tokio::time::timeout(patience, self.calls.wait()).await.is_ok()
    }
}

/// Dropped without having been drained, by an error half-way or by a node that is dropped, it ends its subscriptions.
impl Drop for Triggers {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

struct Subscription {
    /// As subscribed, wildcards included.
    subject: String,
    target: Arc<Target>,
    calls: TaskTracker,
    drain: CancellationToken,
}

impl Subscription {
    async fn run(self: Arc<Self>, mut messages: Subscriber) {
        loop {
            tokio::select! {
                biased;
                // Before messages, which may never pause.
                () = self.drain.cancelled() => break,
                come = self.dispatch(&mut messages) => if !come {
                    return;
                },
            }
        }
        // Whether it came to a pause or not: this is the end.
        _ = tokio::time::timeout(LULL_PATIENCE, self.serve_until_lull(&mut messages)).await;
        // Fails only if the connection is gone, and then no more messages come either.
        if messages.drain().await.is_ok() {
            while self.dispatch(&mut messages).await {}
        }
    }

    async fn serve_until_lull(self: &Arc<Self>, messages: &mut Subscriber) {
        while let Ok(true) = tokio::time::timeout(LULL, self.dispatch(messages)).await {}
    }

    /// Waits for messages and hands over those that have arrived together, [`BATCH`] at most; false when there will be no
    /// more. Takes none when it is dropped while it waits.
    async fn dispatch(self: &Arc<Self>, messages: &mut Subscriber) -> bool {
        let mut calls = Vec::new();
        poll_fn(|cx| {
            let now = Instant::now();
            while calls.len() < BATCH {
                match messages.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => calls.push(self.invocation(message, now)),
                    Poll::Pending if calls.is_empty() => return Poll::Pending,
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
        let come = !calls.is_empty();
        if come {
            self.target.function.invoke_all(calls);
        }
        come
    }

    fn invocation(self: &Arc<Self>, message: Message, now: Instant) -> Invocation {
        let reply_to = message.reply;
        let trigger = Trigger {
            subject: message.subject.into_string(),
            reply: reply_to.as_ref().map(|reply| reply.as_str().to_owned()),
            headers: message.headers.as_ref().map(headers).unwrap_or_default(),
            payload: message.payload,
        };
        let replies = ReplyTo {
            reply_to,
            subscription: self.clone(),
            started: now,
            finished: false,
            cut: None,
            _call: self.calls.token(),
        };
        Invocation {
            trigger,
            replies: Box::new(replies),
        }
    }
}

fn headers(headers: &async_nats::HeaderMap) -> Headers {
    headers
        .iter()
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(|value| (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned()))
        })
        .collect()
}

/// Waits until the server has worked through everything sent to it so far, by a message to ourselves. A connection that
/// may not send to its own inbox waits in vain for [`SERVER_PATIENCE`], which is all that can be done then.
pub(crate) async fn round_trip(client: &Client) {
    let there_and_back = async {
        let inbox = client.new_inbox();
        let mut echo = client.subscribe(inbox.clone()).await.ok()?;
        client.publish(inbox, bytes::Bytes::new()).await.ok()?;
        client.flush().await.ok()?;
        echo.next().await
    };
    if tokio::time::timeout(SERVER_PATIENCE, there_and_back).await.is_err() {
        tracing::warn!("the server did not confirm a subscription in time");
    }
}
