//! One task for each agent: pings it, answers in its place what it leaves unanswered, sees its drain through, and waits
//! for the end of its machine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nex_agent::link::NodeToAgent;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::agent::{Agent, DrainStep};
use super::error::{Fault, describe, exit_code};
use super::pool::Pool;
use super::start::LastWords;
use crate::data_plane;
use crate::machines::Machine;

/// How long the answers a dead agent has left in its socket are waited for.
const READ_OUT: Duration = Duration::from_millis(100);

/// How long an agent that ends of itself may take to exit once its link is closed.
const EXIT_GRACE: Duration = Duration::from_millis(500);

/// Pings without an answer after which an agent is given up.
const BEATS: u32 = 5;

/// Looks after an agent until its machine is gone.
pub(super) async fn supervise(
    pool: Arc<Pool>,
    agent: Arc<Agent>,
    machine: Arc<dyn Machine>,
    mut last_words: LastWords,
) {
    let timeout = pool.config.heartbeat_timeout;
    // Where its frames are read: while that thread is kept from running, it is the node that does not listen.
    let mut silence = AbortOnDropHandle::new(data_plane::handle().spawn(silence(agent.clone(), timeout)));
    let mut tick = heartbeats(timeout);
    loop {
        tokio::select! {
            biased;
            () = agent.dead.cancelled() => break,
            status = machine.wait() => {
                // Its last answers may still be unread; the end of the link comes after them.
                _ = tokio::time::timeout(READ_OUT, agent.dead.cancelled()).await;
                pool.fail(&agent, Fault::Exited(status));
                break;
            }
            () = agent.progress.notified() => {}
            silence = &mut silence => {
                // It cannot fail: nobody else aborts it.
                pool.fail(&agent, Fault::Silent(silence.unwrap_or(timeout)));
                break;
            }
            _ = tick.tick() => {
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
        _ = tokio::time::timeout(EXIT_GRACE, machine.wait()).await;
        thread = last_words.crashed_thread().await;
    }
    pool.settle(&agent, thread.as_deref());
    machine.kill();
    let status = machine.wait().await;
    let (end, code) = (describe(status), exit_code(status));
    let (message, expected) = death.map_or_else(Default::default, |death| (death.message, death.expected));
    let message = if expected {
        message
    } else {
        last_words.after(&format!("{message}, {end}")).await
    };
    pool.ended(&agent, message, code, expected);
}

/// A timer for the pings of an agent that may be silent for so long.
fn heartbeats(timeout: Duration) -> Interval {
    // A timer of nothing is no timer.
    let mut beats = tokio::time::interval((timeout / BEATS).max(Duration::from_millis(1)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

/// Pings an agent until it has been silent for too long, and tells for how long.
async fn silence(agent: Arc<Agent>, timeout: Duration) -> Duration {
    let mut beats = heartbeats(timeout);
    let mut last = Instant::now();
    let mut missed = 0;
    for nonce in 1.. {
        beats.tick().await;
        // A node that was itself kept from running has not listened either.
        let deaf = last.elapsed() > 2 * beats.period();
        last = Instant::now();
        if agent.heard.swap(false, Ordering::Relaxed) {
            missed = 0;
        } else if !deaf {
            missed += 1;
        }
        if missed >= BEATS {
            break;
        }
        if let Err(error) = agent.outbox.send(NodeToAgent::Ping { nonce }) {
            tracing::debug!(agent = agent.id, %error, "ping not sent");
        }
    }
    beats.period() * missed
}
