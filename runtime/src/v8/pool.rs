//! Blank isolates, made before anybody needs them, each on a thread of its own that waits for a function.

use std::collections::VecDeque;
use std::io;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::V8Config;
use super::heap::IsolateParams;
use super::platform;
use super::thread::{self, Assignment};
use crate::engine::LoadError;

type Blank = oneshot::Sender<Assignment>;

/// The blank isolates of an engine. Dropping it ends their threads.
pub(super) struct Pool {
    config: V8Config,
    /// The oldest first, which is the most likely to be ready.
    blanks: Mutex<VecDeque<Blank>>,
    /// Held by the one that refills, so that several at once do not make too many.
    refilling: Mutex<()>,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: V8Config) -> Self {
        Self {
            config,
            blanks: Mutex::default(),
            refilling: Mutex::default(),
        }
    }

    pub(super) fn config(&self) -> &V8Config {
        &self.config
    }

    /// Makes blank isolates until there are as many as there should be.
    pub(super) fn refill(&self) -> io::Result<()> {
        let _refilling = self.refilling.lock();
        while self.blanks.lock().len() < self.config.pool_size {
            let blank = spawn(IsolateParams::pooled(&self.config))?;
            self.blanks.lock().push_back(blank);
        }
        Ok(())
    }

    /// Gives the function to a blank isolate, or to a new one when none is there that suits it.
    pub(super) fn assign(&self, assignment: Assignment) -> Result<(), (Assignment, LoadError)> {
        let blank = match IsolateParams::for_function(&self.config, assignment.workload.limits()) {
            Some(params) => spawn(params),
            None => {
                let pooled = self.blanks.lock().pop_front();
                pooled.map_or_else(|| spawn(IsolateParams::pooled(&self.config)), Ok)
            }
        };
        let blank = match blank {
            Ok(blank) => blank,
            Err(error) => return Err((assignment, LoadError::Engine(error.to_string()))),
        };
        blank.send(assignment).map_err(|assignment| {
            let error = LoadError::Engine("a blank isolate's thread had ended".into());
            (assignment, error)
        })
    }
}

/// Starts a thread that makes a blank isolate and waits for a function.
fn spawn(params: IsolateParams) -> io::Result<Blank> {
    let (sender, receiver) = oneshot::channel();
    let job = Box::new(move || thread::run(params, receiver));
    platform::spawn_isolate_thread("isolate".into(), params.thread_stack_bytes(), job)?;
    Ok(sender)
}
