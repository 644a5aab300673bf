//! Blank isolates, made before anybody needs them, each on a thread of its own that waits for a function.
//!
//! They are made one after the other: several at once would keep the functions that run from their processors. Where
//! somebody waits for the one that is being made, the next is made beside it.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::V8Config;
use super::heap::IsolateParams;
use super::platform;
use super::thread::{self, Assignment};
use crate::engine::LoadError;

type Blank = oneshot::Sender<Assignment>;

/// The blank isolates of an engine. Dropping it ends their threads.
pub(super) struct Pool {
    config: V8Config,
    state: Mutex<State>,
    /// Told when no isolate is being made any more.
    at_rest: Notify,
}

#[derive(Default)]
struct State {
    /// The oldest first: all are ready, or about to be, but the last.
    blanks: VecDeque<Blank>,
    /// One is being made.
    refilling: bool,
}

/// The turn of a thread to make a blank isolate. It ends when this is dropped.
pub(super) struct Turn(Weak<Pool>);

impl Turn {
    /// The isolate is ready, and nobody waits for it: the next one can be made.
    pub(super) fn pass(self) {
        let pool = self.0.upgrade();
        drop(self);
        if let Some(pool) = pool {
            pool.refill_or_warn();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.state.lock().refilling = false;
            pool.at_rest.notify_waiters();
        }
    }
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: V8Config) -> Arc<Self> {
        Arc::new(Self {
            config,
            state: Mutex::default(),
            at_rest: Notify::new(),
        })
    }

    pub(super) fn config(&self) -> &V8Config {
        &self.config
    }

    /// Has blank isolates made until there are as many as there should be. Does not wait for them.
    pub(super) fn refill(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.refilling || state.blanks.len() >= self.config.pool_size {
            return Ok(());
        }
        let (blank, assignment) = oneshot::channel();
        state.blanks.push_back(blank);
        state.refilling = true;
        drop(state);
        let turn = Turn(Arc::downgrade(self));
        let started = start_thread(IsolateParams::pooled(&self.config), Some(turn), assignment);
        if started.is_err() {
            self.state.lock().blanks.retain(|blank| !blank.is_closed());
        }
        started
    }

    /// Waits until there are as many blank isolates as there should be, all of them ready; or as many as can be had.
    pub(super) async fn filled(self: &Arc<Self>) {
        loop {
            let mut at_rest = pin!(self.at_rest.notified());
            at_rest.as_mut().enable();
            if let Err(error) = self.refill() {
                return tracing::warn!(%error, "the pool of isolates could not be filled");
            }
            let is_filled = {
                let state = self.state.lock();
                !state.refilling && state.blanks.len() >= self.config.pool_size
            };
            if is_filled {
                return;
            }
            at_rest.await;
        }
    }

    /// Gives the function to a blank isolate, or to a new one when none is there that suits it.
    pub(super) fn assign(self: &Arc<Self>, assignment: Assignment) -> Result<(), (Assignment, LoadError)> {
        let mut behind = false;
        let blank = match IsolateParams::for_function(&self.config, assignment.workload.limits()) {
            Some(params) => spawn(params),
            None => {
                let mut state = self.state.lock();
                let pooled = state.blanks.pop_front();
                behind = pooled.is_some() && state.blanks.is_empty() && std::mem::take(&mut state.refilling);
                drop(state);
                pooled.map_or_else(|| spawn(IsolateParams::pooled(&self.config)), Ok)
            }
        };
        let blank = match blank {
            Ok(blank) => blank,
            // Which may pass when others end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = format!("this machine may start no more threads ({error})");
                return Err((assignment, LoadError::Overloaded(message)));
            }
            Err(error) => return Err((assignment, LoadError::Engine(error.to_string()))),
        };
        let sent = blank.send(assignment).map_err(|assignment| {
            let error = LoadError::Engine("a blank isolate's thread had ended".into());
            (assignment, error)
        });
        if behind {
            self.refill_or_warn();
        }
        sent
    }

    /// As [`refill`](Self::refill), where it can be done without.
    pub(super) fn refill_or_warn(self: &Arc<Self>) {
        if let Err(error) = self.refill() {
            tracing::warn!(%error, "the pool of isolates could not be refilled");
        }
    }
}

/// A blank isolate for somebody who waits for it.
fn spawn(params: IsolateParams) -> io::Result<Blank> {
    let (blank, assignment) = oneshot::channel();
    start_thread(params, None, assignment)?;
    Ok(blank)
}

/// Starts a thread that makes a blank isolate and waits for a function.
fn start_thread(
    params: IsolateParams,
    turn: Option<Turn>,
    assignment: oneshot::Receiver<Assignment>,
) -> io::Result<()> {
    let job = Box::new(move || thread::run(params, turn, assignment));
    platform::spawn_isolate_thread("isolate".into(), params.thread_stack_bytes(), job)
}
