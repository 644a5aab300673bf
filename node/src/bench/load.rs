//! The load generator. In a closed loop a window of requests is in flight, and the next is sent when one is answered:
//! for throughput and round-trip time. In an open loop requests are sent at fixed times whatever becomes of the earlier
//! ones, as users do: for latency.
//!
//! It works on whatever answers: a function in this process ([`EngineTarget`](super::engine::EngineTarget)), a subject
//! of NATS ([`NatsTarget`](super::nats::NatsTarget)), or something else that implements [`Target`].

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout_at};

use super::pace::{Pacer, Schedule};
use super::payload::Payload;
use super::stats::Latencies;

/// Parts of an open loop of which the percentiles over time are told.
const BINS: u64 = 40;
/// From the start of an open loop to its first request: for its thread to start.
const LEAD: Duration = Duration::from_millis(2);

/// Something that answers requests, at one or several addresses.
pub trait Target: Send {
    /// The sending half.
    type Ask: Ask;

    /// Something to send with, from any thread.
    fn asker(&self) -> Self::Ask;

    /// The next answer; `None` if there will be no more, because the target is gone.
    fn answer(&mut self) -> impl Future<Output = Option<Answer>> + Send;
}

/// Sends requests to a [`Target`].
pub trait Ask: Clone + Send + 'static {
    /// Sends a request to the address with this index. The answer comes from [`Target::answer`] with the same key.
    ///
    /// Must not need a tokio runtime to be polled on.
    ///
    /// # Errors
    /// Why nothing can be sent, for people; ends the measurement.
    fn ask(&self, to: usize, key: u64, payload: Bytes) -> impl Future<Output = Result<(), String>> + Send;
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// That of the request.
    pub key: u64,
    /// The reply, or the error that came instead, for people.
    pub outcome: Result<Bytes, String>,
}

/// Why there is nothing to measure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Requests cannot be sent.
    #[error("cannot send requests: {0}")]
    Send(String),
    /// The target is gone.
    #[error("the connection is lost")]
    Closed,
    /// The thread of an open loop cannot be started.
    #[error("cannot start a thread to send requests from: {0}")]
    Thread(String),
}

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// An error came instead of a reply.
    Error(String),
    /// The reply was not the right one.
    Wrong(String),
    /// Nothing came in time.
    Missing,
}

/// Calls that did not succeed, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Answered with an error.
    pub errors: u64,
    /// Answered with a wrong reply.
    pub wrong: u64,
    /// Not answered in time.
    pub missing: u64,
    /// Answered a second time; not among [`total`](Self::total), because the first answer counted.
    pub duplicates: u64,
    /// What was wrong with the first.
    pub first: Option<String>,
}

impl Failures {
    /// How many calls did not succeed.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.errors + self.wrong + self.missing
    }

    /// Adds those of another measurement.
    pub fn merge(&mut self, other: &Self) {
        self.errors += other.errors;
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }

    fn add(&mut self, miss: Miss) {
        let text = match miss {
            Miss::Error(text) => {
                self.errors += 1;
                text
            }
            Miss::Wrong(text) => {
                self.wrong += 1;
                text
            }
            Miss::Missing => {
                self.missing += 1;
                "no answer in time".to_owned()
            }
        };
        self.first.get_or_insert(text);
    }
}

/// For people: how many of which kind.
impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            errors,
            wrong,
            missing,
            duplicates,
            first,
        } = self;
        write!(f, "{errors} errors, {wrong} wrong replies, {missing} without reply")?;
        if *duplicates > 0 {
            write!(f, ", {duplicates} replies too many")?;
        }
        first.iter().try_for_each(|first| write!(f, "; the first: {first}"))
    }
}

/// Latencies of calls, with those that failed counted as the longest wait.
#[derive(Debug, Clone)]
pub struct Tally {
    timeout: Duration,
    /// Of all calls.
    pub latencies: Latencies,
    /// Those that did not succeed.
    pub failures: Failures,
}

impl Tally {
    /// Of no calls yet. `timeout` is what failed ones count as.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            latencies: Latencies::default(),
            failures: Failures::default(),
        }
    }

    /// Adds a call, and gives the latency that it counts as.
    pub fn add(&mut self, outcome: Result<Duration, Miss>) -> Duration {
        let latency = match outcome {
            Ok(latency) if latency <= self.timeout => latency,
            Ok(_) => {
                self.failures.add(Miss::Missing);
                self.timeout
            }
            Err(miss) => {
                self.failures.add(miss);
                self.timeout
            }
        };
        self.latencies.record(latency);
        latency
    }

    /// Adds all calls of another.
    pub fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.failures.merge(&other.failures);
    }
}

/// What a closed loop gave.
#[derive(Debug, Clone)]
pub struct ClosedLoop {
    /// Right replies per second.
    pub per_second: f64,
    /// Right replies within the time.
    pub calls: u64,
    /// Round-trip times of all calls, those included that were still in flight at the end.
    pub tally: Tally,
}

/// What an open loop gave.
#[derive(Debug, Clone)]
pub struct OpenLoop {
    /// Latencies of all calls, from the time each was due.
    pub tally: Tally,
    /// The same, in parts of the time one after the other.
    pub timeline: Timeline,
    /// How late requests were sent: what the generator itself adds to the latencies. Empty if it could not send all.
    pub lags: Latencies,
}

/// Latencies in parts of a time, one after the other.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// How long each part is.
    pub bin: Duration,
    /// Latencies of the calls that were due in each part.
    pub bins: Vec<Latencies>,
}

/// Sends requests to a target and checks what comes back.
#[derive(Debug)]
pub struct Generator<T> {
    target: T,
    payload: Payload,
    timeout: Duration,
    /// Every request of a generator has a number of its own, so that a late answer is not taken for another one's.
    next_key: u64,
}

impl<T: Target> Generator<T> {
    /// A generator; a call that is not answered within `timeout` has failed.
    pub fn new(target: T, payload: Payload, timeout: Duration) -> Self {
        Self {
            target,
            payload,
            timeout,
            next_key: 0,
        }
    }

    /// What it asks.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// From now on it sends this.
    pub fn set_payload(&mut self, payload: Payload) {
        self.payload = payload;
    }

    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// One call to the address with this index, from sending it to its answer.
    ///
    /// # Errors
    /// [`LoadError`] if it cannot be made. A call that fails is a success of this.
    pub async fn call(&mut self, to: usize) -> Result<Result<Duration, Miss>, LoadError> {
        let key = self.next_key;
        self.next_key += 1;
        let request = self.payload.request(key);
        let asker = self.target.asker();
        let sent = Instant::now();
        asker.ask(to, key, request).await.map_err(LoadError::Send)?;
        let deadline = (sent + self.timeout).into();
        loop {
            match timeout_at(deadline, self.target.answer()).await {
                Err(_) => return Ok(Err(Miss::Missing)),
                Ok(None) => return Err(LoadError::Closed),
                Ok(Some(answer)) if answer.key == key => {
                    let elapsed = sent.elapsed();
                    return Ok(check(&self.payload, answer).map(|()| elapsed));
                }
                // The late answer to an earlier call, which has been counted as missing.
                Ok(Some(_)) => {}
            }
        }
    }

    /// Keeps `window` requests to one address in flight for a time, and waits for the last answers.
    ///
    /// # Errors
    /// [`LoadError`]; calls that fail are counted instead.
    pub async fn closed_loop(&mut self, to: usize, window: usize, duration: Duration) -> Result<ClosedLoop, LoadError> {
        let asker = self.target.asker();
        let mut tally = Tally::new(self.timeout);
        // When the requests were sent, by key from `oldest` on; `None` for those answered.
        let mut sent: VecDeque<Option<Instant>> = VecDeque::with_capacity(window);
        let mut oldest = self.next_key;
        let mut in_flight = 0;
        let mut calls = 0;
        let mut elapsed = Duration::ZERO;
        let start = Instant::now();
        loop {
            while in_flight < window && elapsed < duration {
                let request = self.payload.request(self.next_key);
                let now = Instant::now();
                asker.ask(to, self.next_key, request).await.map_err(LoadError::Send)?;
                self.next_key += 1;
                sent.push_back(Some(now));
                in_flight += 1;
            }
            while let Some(None) = sent.front() {
                sent.pop_front();
                oldest += 1;
            }
            let Some(Some(first)) = sent.front() else {
                break;
            };
            let deadline = (*first + self.timeout).into();
            let outcome = match timeout_at(deadline, self.target.answer()).await {
                Ok(None) => return Err(LoadError::Closed),
                Ok(Some(answer)) => {
                    let Some(index) = answer
                        .key
                        .checked_sub(oldest)
                        .and_then(|index| usize::try_from(index).ok())
                    else {
                        continue;
                    };
                    let Some(sent) = sent.get_mut(index).and_then(Option::take) else {
                        tally.failures.duplicates += 1;
                        continue;
                    };
                    check(&self.payload, answer).map(|()| sent)
                }
                Err(_) => {
                    sent.pop_front();
                    oldest += 1;
                    Err(Miss::Missing)
                }
            };
            let now = Instant::now();
            in_flight -= 1;
            if elapsed < duration {
                elapsed = now - start;
                calls += u64::from(outcome.is_ok());
            }
            tally.add(outcome.map(|sent| now - sent));
        }
        Ok(ClosedLoop {
            per_second: calls as f64 / elapsed.as_secs_f64(),
            calls,
            tally,
        })
    }

    /// Sends `rate` requests a second to one address, evenly spaced, for a time, and waits for the last answers. Latency
    /// counts from when a request was due, so that whoever answers slowly cannot hide that others had to wait, too.
    ///
    /// The rate must be positive and finite.
    ///
    /// # Errors
    /// [`LoadError`]; calls that fail are counted instead.
    pub async fn open_loop(&mut self, to: usize, rate: f64, duration: Duration) -> Result<OpenLoop, LoadError> {
        let schedule = Schedule::new(Instant::now() + LEAD, rate);
        let count = schedule.count(duration);
        let base = self.next_key;
        self.next_key += count;

        let (trouble, mut troubles) = mpsc::unbounded_channel();
        let mut pacer = {
            let (asker, payload) = (self.target.asker(), self.payload.clone());
            Pacer::start(schedule, count, move |number| {
                let key = base + number;
                if let Err(error) = block_on(asker.ask(to, key, payload.request(key))) {
                    _ = trouble.send(error);
                }
            })
            .map_err(|error| LoadError::Thread(error.to_string()))?
        };

        let mut tally = Tally::new(self.timeout);
        let mut timeline = Timeline::of(schedule, count);
        let mut answered = vec![false; usize::try_from(count).unwrap_or(usize::MAX)];
        let mut left = count;
        let last = schedule.due(count.saturating_sub(1));
        let end = sleep_until((last + self.timeout).into());
        tokio::pin!(end);
        while left > 0 {
            let answer = tokio::select! {
                biased;
                answer = self.target.answer() => answer.ok_or(LoadError::Closed)?,
                Some(error) = troubles.recv() => return Err(LoadError::Send(error)),
                () = &mut end => break,
            };
            let now = Instant::now();
            let Some(number) = answer.key.checked_sub(base) else {
                continue;
            };
            let seen = usize::try_from(number).ok().and_then(|index| answered.get_mut(index));
            let Some(seen) = seen else {
                continue;
            };
            if std::mem::replace(seen, true) {
                tally.failures.duplicates += 1;
                continue;
            }
            left -= 1;
            let elapsed = now.saturating_duration_since(schedule.due(number));
            let latency = tally.add(check(&self.payload, answer).map(|()| elapsed));
            timeline.record(schedule.offset(number), latency);
        }
        for (number, _) in answered.iter().enumerate().filter(|(_, answered)| !**answered) {
            let latency = tally.add(Err(Miss::Missing));
            timeline.record(schedule.offset(number as u64), latency);
        }
        let lags = if left == 0 {
            pacer.lags().await.unwrap_or_default()
        } else {
            Latencies::default()
        };
        Ok(OpenLoop { tally, timeline, lags })
    }
}

fn check(payload: &Payload, answer: Answer) -> Result<(), Miss> {
    let reply = answer.outcome.map_err(Miss::Error)?;
    payload.check(answer.key, &reply).map_err(Miss::Wrong)
}

impl Timeline {
    fn of(schedule: Schedule, count: u64) -> Self {
        let bins = BINS.min(count).max(1);
        Self {
            bin: schedule.offset(count.div_ceil(bins)),
            bins: vec![Latencies::default(); usize::try_from(bins).unwrap_or_default()],
        }
    }

    fn record(&mut self, at: Duration, latency: Duration) {
        let index = (at.as_secs_f64() / self.bin.as_secs_f64()) as usize;
        let last = self.bins.len() - 1;
        if let Some(bin) = self.bins.get_mut(index.min(last)) {
            bin.record(latency);
        }
    }
}

#[cfg(test)]
mod tests;
