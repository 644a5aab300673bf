//! The drivers under test, and an engine over each.

use std::sync::Arc;

use nex_node::agents::{AgentPool, AgentPoolConfig};
use nex_node::in_process::InProcess;
use nex_node::machines::{ProcessConfig, ProcessDriver};
use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};

use crate::binary::agent_bin;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    InProcess,
    Process,
}

/// What runs the functions of a node, and the pool behind it, where there is one.
pub(crate) struct Muscle {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) pool: Option<Arc<AgentPool>>,
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
        }
    }

    pub(crate) async fn start(self) -> Muscle {
        let pool = match self {
            Self::InProcess => {
                let engine = Arc::new(V8Engine::new(V8Config::default()).unwrap());
                return Muscle {
                    engine: Arc::new(InProcess::new(engine, Default::default())),
                    pool: None,
                };
            }
            Self::Process => {
                let driver = ProcessDriver::unconfined(ProcessConfig::new(agent_bin()));
                AgentPool::start(AgentPoolConfig::new(driver)).await.unwrap()
            }
        };
        Muscle {
            engine: pool.clone(),
            pool: Some(pool),
        }
    }
}
