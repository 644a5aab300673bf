//! The load generator: one connection that asks a subject and checks every byte of every reply. Closed loop (a window
//! of requests in flight, the next sent when one is answered) for throughput and round-trip time, paced for the latency
//! of a function that has been idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{sleep_until, timeout};

use crate::stats::Latencies;

/// Longest wait for one reply. A reply that never comes ends the benchmark: a figure without it would be false.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks one subject.
#[derive(Debug)]
pub(crate) struct Caller {
    client: Client,
    subject: Subject,
    inbox: String,
    replies: Subscriber,
    sequence: u64,
}

/// One request in flight.
#[derive(Debug, Clone)]
struct InFlight {
    sent: Instant,
    payload: Bytes,
}

/// What a closed loop gave.
#[derive(Debug)]
pub(crate) struct Throughput {
    /// Replies per second.
    pub(crate) per_second: f64,
    /// Replies.
    pub(crate) calls: u64,
    /// Round-trip times.
    pub(crate) latencies: Latencies,
}

impl Caller {
    /// A caller with a connection of its own.
    pub(crate) async fn connect(url: &str, subject: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let inbox = client.new_inbox();
        let replies = client.subscribe(format!("{inbox}.*")).await?;
        client.flush().await?;
        Ok(Self {
            client,
            subject: subject.into(),
            inbox,
            replies,
            sequence: 0,
        })
    }

    /// Keeps `window` requests of `size` bytes in flight for a time.
    pub(crate) async fn closed_loop(&mut self, window: usize, size: usize, duration: Duration) -> Result<Throughput> {
        let mut slots = Vec::with_capacity(window);
        let mut latencies = Latencies::default();
        let mut calls = 0;
        let start = Instant::now();
        for slot in 0..window {
            slots.push(self.send(slot, size).await?);
        }
        let mut in_flight = window;
        let mut elapsed = Duration::ZERO;
        while in_flight > 0 {
            let message = self.next_reply().await?;
            let slot = slot_of(&message)?;
            let request = slots.get(slot).context("a reply to nobody")?;
            check(&message, &request.payload)?;
            let now = Instant::now();
            if elapsed < duration {
                elapsed = now - start;
                calls += 1;
                latencies.record(now - request.sent);
            }
            if elapsed < duration {
                let next = self.send(slot, size).await?;
                if let Some(place) = slots.get_mut(slot) {
                    *place = next;
                }
            } else {
                in_flight -= 1;
            }
        }
        Ok(Throughput {
            per_second: calls as f64 / elapsed.as_secs_f64(),
            calls,
            latencies,
        })
    }

    /// One request at a time, at fixed times `1 / rate` apart, so that whatever answers has been idle before each.
    ///
    /// A request that is late because the reply before it took longer than that counts from when it was due.
    pub(crate) async fn paced(&mut self, rate: u32, size: usize, calls: u32) -> Result<Latencies> {
        let mut latencies = Latencies::default();
        let start = tokio::time::Instant::now();
        for number in 0..calls {
            let due = start + Duration::from_secs(1) * number / rate;
            let late = tokio::time::Instant::now() > due;
            sleep_until(due).await;
            let request = self.send(0, size).await?;
            let from = if late { due.into_std() } else { request.sent };
            let message = self.next_reply().await?;
            let now = Instant::now();
            check(&message, &request.payload)?;
            latencies.record(now - from);
        }
        Ok(latencies)
    }

    async fn send(&mut self, slot: usize, size: usize) -> Result<InFlight> {
        let payload = payload(self.sequence, size);
        self.sequence += 1;
        let reply = format!("{}.{slot}", self.inbox);
        let sent = Instant::now();
        self.client
            .publish_with_reply(self.subject.clone(), reply, payload.clone())
            .await?;
        Ok(InFlight { sent, payload })
    }

    async fn next_reply(&mut self) -> Result<Message> {
        timeout(PATIENCE, self.replies.next())
            .await
            .with_context(|| format!("no reply from {} within {PATIENCE:?}", self.subject))?
            .context("the connection closed")
    }
}

/// Different in every request, so that no reply is taken for another one's.
fn payload(sequence: u64, size: usize) -> Bytes {
    sequence
        .to_le_bytes()
        .into_iter()
        .cycle()
        .enumerate()
        .map(|(index, byte)| byte ^ index as u8)
        .take(size)
        .collect()
}

fn slot_of(message: &Message) -> Result<usize> {
    let (_, slot) = message.subject.rsplit_once('.').context("no slot")?;
    Ok(slot.parse()?)
}

fn check(message: &Message, expected: &Bytes) -> Result<()> {
    if let Some(status) = message.status
        && !status.is_success()
    {
        bail!("answered with status {status}");
    }
    let error = |headers: &HeaderMap| headers.get("Nats-Service-Error").map(ToString::to_string);
    if let Some(error) = message.headers.as_ref().and_then(error) {
        bail!("answered with an error: {error}");
    }
    ensure!(
        message.payload == *expected,
        "a wrong reply: {} bytes, expected {}",
        message.payload.len(),
        expected.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_differ() {
        assert_eq!(payload(1, 128).len(), 128);
        assert_ne!(payload(1, 128), payload(2, 128));
        assert_ne!(payload(1, 16).slice(..8), payload(1, 16).slice(8..));
    }
}
