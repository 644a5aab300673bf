//! Sends messages to NATS from threads that must not wait: engine threads answer calls, log and report from here.
//!
//! Messages go through a queue of our own to a task beside the connection's own task, on the same thread: one wake-up
//! serves all that gather meanwhile, and they leave in few writes. They never overtake each other. The queue is bounded,
//! and so is what the task gives to the client, whose own queue counts messages and not bytes.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use async_nats::client::traits::Publisher as _;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use futures::task::AtomicWaker;
use nex_runtime::engine::Limits;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::data_plane;

/// Messages that may wait for NATS here. More are dropped: it has then been away for long.
const CAPACITY: usize = 65_536;

/// Bytes that may wait here. Streamed replies, which a function makes without end, may use half of either, so that there
/// is room for the last words of all others.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// Bytes given to the client before it is waited for until it has written them.
const FLUSH_BYTES: usize = 32 << 20;

/// Messages given to the client before their room is given back.
const BATCH: usize = 256;

/// Messages for which the emptied list keeps its memory.
const KEPT_CAPACITY: usize = 1_024;

/// A handle on a connection for senders that must not wait. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    client: Client,
    handle: Arc<Handle>,
}

/// What all clones share; the queue is closed with the last of them.
#[derive(Debug)]
struct Handle(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes the task that empties it.
    task: AtomicWaker,
    /// Notified whenever nothing waits any longer.
    none: Notify,
}

/// Messages that the client does not have yet.
#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<OutboundMessage>,
    /// How many there are, with those that the task has taken.
    count: usize,
    /// Their payloads and headers.
    bytes: usize,
    /// Some were dropped since there were none, which has been said.
    dropped: bool,
    closed: bool,
}

impl Queue {
    /// Adds a message, if no more than that many messages and bytes are there with it.
    fn push(&self, message: OutboundMessage, max_count: usize, max_bytes: usize) -> bool {
        let len = wire_len(message.headers.as_ref(), &message.payload);
        let mut waiting = self.waiting.lock();
        if waiting.count >= max_count || waiting.bytes + len > max_bytes {
            return false;
        }
        waiting.count += 1;
        waiting.bytes += len;
        let first = waiting.messages.is_empty();
        waiting.messages.push(message);
        drop(waiting);
        if first {
            self.task.wake();
        }
        true
    }

    /// Waits for messages and takes all there are, in exchange for an empty list; false when no more can come.
    async fn take(&self, list: &mut Vec<OutboundMessage>) -> bool {
        poll_fn(|cx| {
            // Before looking, so that no message in between is missed.
            self.task.register(cx.waker());
            let mut waiting = self.waiting.lock();
            match waiting.messages.is_empty() {
                true if waiting.closed => Poll::Ready(false),
                true => Poll::Pending,
                false => {
                    std::mem::swap(&mut waiting.messages, list);
                    Poll::Ready(true)
                }
            }
        })
        .await
    }

    /// Takes note that the client has these.
    fn leave(&self, count: usize, bytes: usize) {
        let mut waiting = self.waiting.lock();
        waiting.count -= count;
        waiting.bytes -= bytes;
        if waiting.count == 0 {
            waiting.dropped = false;
            drop(waiting);
            self.none.notify_waiters();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.task.wake();
    }
}

impl Outbound {
    /// Starts the task, which ends with the last handle.
    pub(crate) fn new(client: Client) -> Self {
        let queue = Arc::new(Queue::default());
        data_plane::handle().spawn(publish(client.clone(), queue.clone()));
        let handle = Arc::new(Handle(queue));
        Self { client, handle }
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The limits, with replies no larger than the server takes.
    pub(crate) fn within_server(&self, limits: Limits) -> Limits {
        let max_payload = u32::try_from(self.client.max_payload()).unwrap_or(u32::MAX);
        Limits {
            reply_bytes: limits.reply_bytes.min(max_payload),
            ..limits
        }
    }

    fn queue(&self) -> &Queue {
        &self.handle.0
    }

    /// Sends a message as soon as there is room.
    pub(crate) fn send(&self, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) {
        let sent = self.offer(subject, headers, payload, CAPACITY, MAX_WAITING_BYTES);
        if !sent && !std::mem::replace(&mut self.queue().waiting.lock().dropped, true) {
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
        let message = OutboundMessage {
            subject,
            reply: None,
            payload,
            headers,
        };
        self.queue().push(message, max_count, max_bytes)
    }

    /// Waits until everything sent so far has left this process, for as long as NATS is away.
    pub(crate) async fn flush(&self) {
        loop {
            let none = self.queue().none.notified();
            if self.queue().waiting.lock().count == 0 {
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
async fn publish(client: Client, queue: Arc<Queue>) {
    let mut taken = Vec::new();
    let mut unflushed = 0;
    while queue.take(&mut taken).await {
        data_plane::answered();
        let mut messages = taken.drain(..);
        while messages.len() > 0 {
            let (mut count, mut bytes) = (0, 0);
            for message in messages.by_ref().take(BATCH) {
                let len = wire_len(message.headers.as_ref(), &message.payload);
                count += 1;
                bytes += len;
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
            }
            queue.leave(count, bytes);
        }
        drop(messages);
        taken.shrink_to(KEPT_CAPACITY);
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
        assert_eq!(outbound.queue().waiting.lock().count, 0);
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
