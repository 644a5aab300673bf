//! Nex as contenders of cold starts: functions that hibernate are what nothing runs. They hibernate without ever having
//! been called, so that there is no more compiled code of them than what their deployment needed.

mod deployed;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use nex_runtime::engine::{Function, Limits};
use nex_runtime::invocation::Trigger;
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::time::{Instant, sleep};

pub(crate) use self::deployed::Deployed;
use super::bundle::{Platform, Size};
use crate::echo::PATIENCE;
use crate::runtime::load_into;

/// How often is looked whether functions hibernate.
const GLANCE: Duration = Duration::from_millis(5);

/// What an engine has ready when a function starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Blank isolates.
    pub(crate) pooled: bool,
    /// The code that the function's deployment has compiled.
    pub(crate) cached: bool,
}

impl Setup {
    fn pool_size(self) -> usize {
        if self.pooled { V8Config::default().pool_size } else { 0 }
    }

    fn code_cache_bytes(self) -> u64 {
        if self.cached {
            V8Config::default().code_cache_bytes
        } else {
            0
        }
    }
}

/// The engine in this process.
#[derive(Debug)]
pub(crate) struct Engine {
    engine: V8Engine,
    functions: Vec<Arc<dyn Function>>,
}

impl Engine {
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        let config = V8Config {
            pool_size: setup.pool_size(),
            code_cache_bytes: setup.code_cache_bytes(),
            ..V8Config::default()
        };
        Ok(Self {
            engine: V8Engine::new(config)?,
            functions: Vec::new(),
        })
    }

    /// Loads functions and waits until they hibernate. The ones before are gone.
    pub(crate) async fn load(&mut self, size: Size, numbers: &[u64]) -> Result<()> {
        self.functions.clear();
        let limits = Limits {
            hibernate_after: Duration::from_millis(1),
            ..Limits::default()
        };
        for &number in numbers {
            let source = size.source(number, Platform::Nex);
            let function = load_into(&self.engine, source.as_bytes(), limits.clone()).await?;
            self.functions.push(function);
        }
        until_asleep(|| !self.functions.iter().any(is_awake)).await
    }

    /// Calls one of them.
    pub(crate) async fn call(&self, index: usize, request: Bytes) -> Result<Bytes, String> {
        let function = self.functions.get(index).ok_or("no such function")?;
        let trigger = Trigger {
            subject: "bench".to_owned(),
            payload: request,
            ..Trigger::default()
        };
        let reply = function.call(trigger).await;
        reply.map(|reply| reply.body).map_err(|error| error.to_string())
    }
}

fn is_awake(function: &Arc<dyn Function>) -> bool {
    function.state().is_none_or(|state| state.instances > 0)
}

async fn until_asleep(mut asleep: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !asleep() {
        ensure!(Instant::now() < deadline, "the functions do not hibernate");
        sleep(GLANCE).await;
    }
    Ok(())
}
