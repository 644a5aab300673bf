//! An engine of this process as a stage: no NATS, no node. It is V8 itself, with nothing between the load generator and the
//! functions, or a pool of agents in machines.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nex_host_services::memory::Memory;
use nex_host_services::{Config, Policy};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits};
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::super::failure::Failure;
use super::machines::{self, Machines, Start};
use super::stage::{self, Stage, Treatment};
use crate::bench::engine::EngineTarget;
use crate::bench::process;

/// Longest wait for functions to hibernate, beyond the time after which they should.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often they are asked.
const STEP: Duration = Duration::from_millis(2);
/// Their workload name, which shows in stack traces.
const NAME: &str = "bench";

/// An engine of its own.
#[derive(Debug)]
pub(super) struct InProcess {
    engine: Arc<dyn Engine>,
    memory: Memory,
    namespace: String,
}

impl InProcess {
    /// V8 with these settings.
    pub(super) fn new(config: V8Config, namespace: &str) -> Result<Self, Failure> {
        let engine = V8Engine::new(config).map_err(Failure::failed)?;
        Ok(Self::over(Arc::new(engine), namespace))
    }

    /// This engine.
    pub(super) fn over(engine: Arc<dyn Engine>, namespace: &str) -> Self {
        Self {
            engine,
            memory: Memory::new(),
            namespace: namespace.to_owned(),
        }
    }

    /// The engine's machines, if it has any.
    pub(super) fn machines(&self) -> Machines {
        Machines::of(self.engine.processes().into_iter().map(|process| Start {
            restored: process.restored,
            elapsed: process.started_in,
            host_bytes: process.host_bytes,
        }))
    }
}

impl Stage for InProcess {
    type Prepared = FunctionSpec;
    type Function = Arc<dyn Function>;
    type Target = EngineTarget;

    async fn prepare(&self, source: Bytes, treatment: Treatment) -> Result<FunctionSpec, Failure> {
        let defaults = Limits::default();
        Ok(FunctionSpec {
            id: Uuid::new_v4().to_string(),
            namespace: self.namespace.clone(),
            name: NAME.to_owned(),
            workload_type: "v8".to_owned(),
            source,
            vars: Default::default(),
            limits: Limits {
                hibernate_after: treatment.hibernate_after.unwrap_or(defaults.hibernate_after),
                ..defaults
            },
        })
    }

    async fn start(&self, spec: FunctionSpec) -> Result<Arc<dyn Function>, Failure> {
        let policy = Policy::new(&self.namespace, NAME, Config::default());
        let host = FunctionHost {
            services: Arc::new(self.memory.services(policy)),
            // As in production, lines are made and then belong to somebody else.
            logs: Arc::new(|_| {}),
            events: Arc::new(|_| {}),
        };
        self.engine.load(spec, host).await.map_err(Failure::failed)
    }

    async fn target(&self, functions: &[Arc<dyn Function>]) -> Result<EngineTarget, Failure> {
        Ok(EngineTarget::new(functions.iter().map(Arc::clone)))
    }

    async fn asleep(&self, functions: &[Arc<dyn Function>], after: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + after + PATIENCE;
        if stage::awake(functions).is_none() {
            // It is the agents that know.
            sleep(after + stage::HIBERNATION_MARGIN).await;
            return Ok(());
        }
        while stage::awake(functions) != Some(0) {
            if Instant::now() >= deadline {
                return Err(Failure::failed(format_args!(
                    "functions that were to hibernate after {after:?} are still awake {PATIENCE:?} later"
                )));
            }
            sleep(STEP).await;
        }
        Ok(())
    }

    fn awake(&self, functions: &[Arc<dyn Function>]) -> Option<usize> {
        stage::awake(functions)
    }

    async fn memory(&self) -> Result<u64, String> {
        let machines = self.engine.processes();
        let bytes = if machines.is_empty() {
            process::pss_bytes(std::process::id())
        } else {
            machines::memory(machines.iter().map(|machine| machine.host_bytes))
        };
        bytes.ok_or_else(|| "this system does not tell the memory of processes in /proc/PID/smaps_rollup".to_owned())
    }

    async fn remove(&self, functions: Vec<Arc<dyn Function>>) -> Result<(), Failure> {
        drop(functions);
        Ok(())
    }
}
