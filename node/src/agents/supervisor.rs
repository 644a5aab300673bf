//! One task for each agent: pings it, answers in its place what it leaves unanswered, sees its drain through, and waits
//! for its process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nex_agent::link::NodeToAgent;
use tokio::process::Child;
use tokio::time::MissedTickBehavior;

use super::agent::{Agent, DrainStep};
use super::error::{Fault, describe, exit_code};
use super::pool::Pool;
use super::process::LastWords;

/// How long the answers a dead agent has left in its socket are waited for.
const READ_OUT: Duration = Duration::from_millis(100);

/// How long an agent that ends of itself may take to exit once its link is closed.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// Pings without an answer after which an agent is given up.
const BEATS: u32 = 5;

/// Looks after an agent until its process is gone.
pub(super) async fn supervise(pool: Arc<Pool>, agent: Arc<Agent>, mut child: Child, mut last_words: LastWords) {
    let mut pulse = Pulse::new(pool.config.heartbeat_timeout);
    let mut tick = tokio::time::interval(pulse.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = agent.dead.cancelled() => break,
            status = child.wait() => {
                // Its last answers may still be unread; the end of the link comes after them.
                _ = tokio::time::timeout(READ_OUT, agent.dead.cancelled()).await;
                if let Ok(status) = status {
                    pool.fail(&agent, Fault::Exited(status));
                }
                break;
            }
            () = agent.progress.notified() => {}
            _ = tick.tick() => {
                if let Some(silence) = pulse.beat(&agent) {
                    pool.fail(&agent, Fault::Silent(silence));
                    break;
                }
                if agent.sweep(Instant::now()) {
                    pool.condemn(&agent, None, "it left too many calls unanswered");
                }
                pool.retire_if_idle(&agent);
            }
        }
        match agent.drain_step(Instant::now()) {
            DrainStep::Wait => {}
            DrainStep::Leaving(slots) => {
                if !slots.iter().any(|slot| slot.is_on(&agent)) {
                    agent.dismiss();
                }
            }
            DrainStep::Kill => {
                pool.fail(&agent, Fault::Overstayed);
                break;
            }
        }
    }
    let death = agent.death();
    let mut thread = None;
    if death.as_ref().is_some_and(|death| death.unaided) {
        // It closes its link before it exits; killed in between, it could not say how it ended.
        _ = tokio::time::timeout(EXIT_GRACE, child.wait()).await;
        thread = last_words.crashed_thread().await;
    }
    pool.settle(&agent, thread.as_deref());
    if let Err(error) = child.start_kill() {
        tracing::debug!(agent = agent.id, %error, "kill");
    }
    let (end, code) = match child.wait().await {
        Ok(status) => (describe(status), exit_code(status)),
        Err(error) => (error.to_string(), -1),
    };
    let (message, expected) = death.map_or_else(Default::default, |death| (death.message, death.expected));
    let message = if expected {
        message
    } else {
        last_words.after(&format!("{message}, {end}")).await
    };
    pool.ended(&agent, message, code, expected);
}

/// Counts heartbeats without an answer.
struct Pulse {
    interval: Duration,
    last: Instant,
    missed: u32,
    nonce: u64,
}

impl Pulse {
    fn new(timeout: Duration) -> Self {
        Self {
            // A timer of nothing is no timer.
            interval: (timeout / BEATS).max(Duration::from_millis(1)),
            last: Instant::now(),
            missed: 0,
            nonce: 0,
        }
    }

    /// Pings the agent; returns for how long it has been silent if that is too long.
    fn beat(&mut self, agent: &Agent) -> Option<Duration> {
        // A node that was itself kept from running has not listened either.
        let deaf = self.last.elapsed() > 2 * self.interval;
        self.last = Instant::now();
        if agent.heard.swap(false, Ordering::Relaxed) {
            self.missed = 0;
        } else if !deaf {
            self.missed += 1;
        }
        if self.missed >= BEATS {
            return Some(self.interval * self.missed);
        }
        self.nonce += 1;
        if let Err(error) = agent.outbox.send(NodeToAgent::Ping { nonce: self.nonce }) {
            tracing::debug!(agent = agent.id, %error, "ping not sent");
        }
        None
    }
}
