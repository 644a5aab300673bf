//! Nex as one of the contenders of cold starts: functions that hibernate are what nothing runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use nex_runtime::engine::{Function, Limits};
use nex_runtime::invocation::Trigger;
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::time::{Instant, sleep};

use super::bundle::{Platform, Size};
use crate::echo::PATIENCE;
use crate::runtime::load_into;

/// How often is looked whether functions hibernate.
const GLANCE: Duration = Duration::from_millis(2);

/// The engine in this process, with functions that hibernate as soon as they are idle.
#[derive(Debug)]
pub(crate) struct Engine {
    engine: V8Engine,
    functions: Vec<Arc<dyn Function>>,
}

impl Engine {
    /// With blank isolates in its pool or without, with a code cache or without.
    pub(crate) fn new(pooled: bool, cached: bool) -> Result<Self> {
        let mut config = V8Config::default();
        if !pooled {
            config.pool_size = 0;
        }
        if !cached {
            config.code_cache_bytes = 0;
        }
        Ok(Self {
            engine: V8Engine::new(config)?,
            functions: Vec::new(),
        })
    }

    /// Loads functions, which nobody calls, and waits until they hibernate. The ones before are gone.
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
        let deadline = Instant::now() + PATIENCE;
        while self.functions.iter().any(is_awake) {
            if Instant::now() > deadline {
                bail!("functions do not hibernate");
            }
            sleep(GLANCE).await;
        }
        Ok(())
    }

    /// Calls one of them.
    pub(crate) async fn call(&self, index: usize, request: Bytes) -> Result<Bytes, String> {
        let function = self.functions.get(index).context("no such function");
        let trigger = Trigger {
            subject: "bench".to_owned(),
            payload: request,
            ..Trigger::default()
        };
        let reply = function.map_err(|error| error.to_string())?.call(trigger).await;
        reply.map(|reply| reply.body).map_err(|error| error.to_string())
    }
}

fn is_awake(function: &Arc<dyn Function>) -> bool {
    function.state().is_none_or(|state| state.instances > 0)
}
