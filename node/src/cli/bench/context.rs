//! What all benchmarks of a run have in common: what is called, how often, and how long they wait.

use std::time::Duration;

use bytes::Bytes;

use super::super::failure::Failure;
use super::progress::Progress;
use crate::bench::load::LoadError;
use crate::bench::{Generator, Payload, Target, body};

/// The function of those benchmarks that do not need a certain size: in module form, as most are written.
const ECHO: &str = "export default (msg) => msg.data;\n";

/// What a run is about.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) repeats: u32,
    /// Unmeasured time before a measurement that takes a time.
    pub(super) warm_up: Duration,
    /// Longest wait for a reply.
    pub(super) timeout: Duration,
    pub(super) payload: Payload,
    /// The operator's own function, instead of the built-in ones.
    pub(super) own: Option<Bytes>,
    pub(super) namespace: String,
    pub(super) progress: Progress,
}

impl Context {
    /// The function to measure; no two with different numbers have the same code.
    pub(super) fn function(&self, number: u64) -> Bytes {
        let source = self.own.as_deref().unwrap_or(ECHO.as_bytes());
        body::unlike_others(source, number).into()
    }

    /// The load generator for a target.
    pub(super) fn generator<T: Target>(&self, target: T) -> Generator<T> {
        Generator::new(target, self.payload.clone(), self.timeout)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Closed => Self::unreachable(error),
            _ => Self::failed(error),
        }
    }
}
