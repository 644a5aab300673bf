//! Sends messages to NATS from threads that must not wait: engine threads answer calls, log and report from here.
//!
//! Messages go through a queue of our own to a task beside the connection's own task, on the same thread: one wake-up
//! serves all that gather meanwhile, and they leave in few writes. They never overtake each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::data_plane;

/// Messages that may wait beside the client's own queue. More are dropped: NATS has then been away for long.
const CAPACITY: usize = 65_536;

/// Messages taken from the queue at a time.
const BATCH: usize = 256;

/// A handle on a connection for senders that must not wait. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    client: Client,
    queue: mpsc::Sender<OutboundMessage>,
    waiting: Arc<Waiting>,
}

/// Messages that the client does not have yet.
#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    /// Notified whenever there are none left.
    none: Notify,
}

impl Outbound {
    /// Starts the task, which ends with the last handle.
    pub(crate) fn new(client: Client) -> Self {
        let (queue, messages) = mpsc::channel(CAPACITY);
        let waiting = Arc::new(Waiting::default());
        data_plane::handle().spawn(publish(client.clone(), messages, waiting.clone()));
        Self { client, queue, waiting }
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a message as soon as there is room.
    pub(crate) fn send(&self, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) {
        let message = OutboundMessage {
            subject,
            reply: None,
            payload,
            headers,
        };
        self.waiting.count.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = self.queue.try_send(message) {
            self.waiting.done(1);
            tracing::debug!(%error, "message dropped: too many wait for NATS");
        }
    }

    /// Waits until everything sent so far has left this process, for as long as NATS is away.
    pub(crate) async fn flush(&self) {
        loop {
            let none = self.waiting.none.notified();
            if self.waiting.count.load(Ordering::Acquire) == 0 {
                break;
            }
            none.await;
        }
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "not flushed");
        }
    }
}

impl Waiting {
    fn done(&self, count: usize) {
        if self.count.fetch_sub(count, Ordering::AcqRel) == count {
            self.none.notify_waiters();
        }
    }
}

/// Gives the client what there is to send, in order, waiting for room in its queue.
async fn publish(client: Client, mut messages: mpsc::Receiver<OutboundMessage>, waiting: Arc<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let count = messages.recv_many(&mut batch, BATCH).await;
        if count == 0 {
            return;
        }
        for message in batch.drain(..) {
            if let Err(error) = client.publish_message(message).await {
                tracing::debug!(%error, "message not sent");
            }
        }
        waiting.done(count);
    }
}

/// Bytes a message with these headers has on the wire, as the server counts them against `max_payload`.
pub(crate) fn wire_len(headers: Option<&HeaderMap>, payload: &[u8]) -> usize {
    let headers = headers.map_or(0, |headers| {
        let lines = headers.iter().flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values
                .iter()
                .map(move |value| name.len() + value.as_str().len() + ": \r\n".len())
        });
        "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
    });
    headers + payload.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::time::Duration;

    use async_nats::ConnectOptions;
    use futures::StreamExt as _;
    use nex_host_services::nats_server::NatsServer;

    use super::*;

    /// A client with room for a single command makes nearly every message take the detour.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_queue_loses_nothing_and_keeps_the_order() {
        const SENDERS: usize = 3;
        const MESSAGES: usize = 5_000;
        let server = NatsServer::start().unwrap();
        let receiver = async_nats::connect(server.url()).await.unwrap();
        let mut messages = receiver.subscribe("out.*").await.unwrap();
        receiver.flush().await.unwrap();

        let client = ConnectOptions::new()
            .client_capacity(1)
            .connect(server.url())
            .await
            .unwrap();
        let outbound = Outbound::new(client);
        let threads: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let outbound = outbound.clone();
                std::thread::spawn(move || {
                    let subject = Subject::from(format!("out.{sender}"));
                    for number in 0..MESSAGES {
                        outbound.send(subject.clone(), None, number.to_string().into());
                    }
                })
            })
            .collect();
        let mut expected = [0; SENDERS];
        for _ in 0..SENDERS * MESSAGES {
            let message = tokio::time::timeout(Duration::from_secs(30), messages.next())
                .await
                .unwrap()
                .unwrap();
            let sender: usize = message.subject.trim_start_matches("out.").parse().unwrap();
            assert_eq!(message.payload, expected[sender].to_string());
            expected[sender] += 1;
        }
        for thread in threads {
            thread.join().unwrap();
        }
        outbound.flush().await;
        assert_eq!(outbound.waiting.count.load(Ordering::Acquire), 0);
    }

    #[test]
    fn length_on_the_wire() {
        assert_eq!(wire_len(None, b"12345"), 5);
        let mut headers = HeaderMap::new();
        headers.append("A", "1");
        headers.append("A", "22");
        assert_eq!(
            wire_len(Some(&headers), b"x"),
            "NATS/1.0\r\nA: 1\r\nA: 22\r\n\r\nx".len()
        );
    }
}
