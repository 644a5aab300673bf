//! Sends messages to NATS from threads that must not wait: engine threads answer calls, log and report from here.
//!
//! Messages go through a queue of our own to a task beside the connection's own task, on the same thread: one wake-up
//! serves all that gather meanwhile, and they leave in few writes. They never overtake each other. The queue is bounded,
//! and so is what the task gives to the client, whose own queue counts messages and not bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::data_plane;

/// Messages that may wait for NATS here. More are dropped: it has then been away for long.
const CAPACITY: usize = 65_536;

/// Bytes that may wait here. Streamed replies, which a function makes without end, may use half of either, so that there
/// is room for the last words of all others.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// Bytes given to the client before it is waited for until it has written them.
const FLUSH_BYTES: usize = 32 << 20;

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
    /// Payloads and headers.
    bytes: AtomicUsize,
    /// Some were dropped since there were none, which has been said.
    dropped: AtomicBool,
    /// Notified whenever there are none left.
    none: Notify,
}

impl Waiting {
    /// Takes room for a message of so many bytes, if fewer than that many messages and bytes are there with it.
    fn enter(&self, len: usize, max_count: usize, max_bytes: usize) -> bool {
        let count = self.count.fetch_add(1, Ordering::AcqRel);
        let bytes = self.bytes.fetch_add(len, Ordering::AcqRel);
        let fits = count < max_count && bytes + len <= max_bytes;
        if !fits {
            self.leave(len);
        }
        fits
    }

    fn leave(&self, len: usize) {
        self.bytes.fetch_sub(len, Ordering::AcqRel);
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.dropped.store(false, Ordering::Release);
            self.none.notify_waiters();
        }
    }
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
        let sent = self.offer(subject, headers, payload, CAPACITY, MAX_WAITING_BYTES);
        if !sent && !self.waiting.dropped.swap(true, Ordering::AcqRel) {
            tracing::warn!("messages are dropped: too many wait for NATS");
        }
    }

    /// Sends a message that others follow; false if NATS is so slow that there is no room for such.
    pub(crate) fn send_streamed(&self, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) -> bool {
        self.offer(subject, headers, payload, CAPACITY / 2, MAX_WAITING_BYTES / 2)
    }

    fn offer(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        max_count: usize,
        max_bytes: usize,
    ) -> bool {
        let len = wire_len(headers.as_ref(), &payload);
        if !self.waiting.enter(len, max_count, max_bytes) {
            return false;
        }
        let message = OutboundMessage {
            subject,
            reply: None,
            payload,
            headers,
        };
        let queued = self.queue.try_send(message).is_ok();
        if !queued {
            self.waiting.leave(len);
        }
        queued
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

/// Gives the client what there is to send, in order, waiting for room in its queue.
async fn publish(client: Client, mut messages: mpsc::Receiver<OutboundMessage>, waiting: Arc<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut unflushed = 0;
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        for message in batch.drain(..) {
            let len = wire_len(message.headers.as_ref(), &message.payload);
            if let Err(error) = client.publish_message(message).await {
                tracing::debug!(%error, "message not sent");
            }
            unflushed += len;
            if unflushed >= FLUSH_BYTES {
                unflushed = 0;
                if let Err(error) = client.flush().await {
                    tracing::debug!(%error, "not flushed");
                }
            }
            waiting.leave(len);
        }
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
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A client with room for a single command makes nearly every message wait.
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

    /// Connections are accepted, and nothing goes on until the gate is opened.
    async fn gated(server: &NatsServer) -> (String, Arc<Notify>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let upstream = server.url().trim_start_matches("nats://").to_owned();
        let gate = Arc::new(Notify::new());
        let opened = gate.clone();
        tokio::spawn(async move {
            opened.notified().await;
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(&upstream).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
            }
        });
        (url, gate)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn streams_are_refused_before_they_fill_memory_and_leave_room_for_last_replies() {
        let server = NatsServer::start().unwrap();
        let receiver = async_nats::connect(server.url()).await.unwrap();
        let mut last = receiver.subscribe("last").await.unwrap();
        receiver.flush().await.unwrap();
        let (url, gate) = gated(&server).await;
        let client = ConnectOptions::new()
            .retry_on_initial_connect()
            .connect(url)
            .await
            .unwrap();
        let outbound = Outbound::new(client);

        let chunk = Bytes::from(vec![0; 900_000]);
        let stream = || outbound.send_streamed("stream".into(), None, chunk.clone());
        let taken = (0..100_000).take_while(|_| stream()).count();
        // What may wait here, and what has gone on to the client.
        let most = (MAX_WAITING_BYTES / 2 + FLUSH_BYTES) / chunk.len() + 2;
        assert!((1..=most).contains(&taken), "{taken} streamed replies were taken");

        outbound.send("last".into(), None, "of another".into());
        gate.notify_one();
        let message = tokio::time::timeout(Duration::from_secs(30), last.next()).await;
        assert_eq!(message.unwrap().unwrap().payload, "of another");
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
