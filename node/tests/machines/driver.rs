//! The drivers under test, and an engine over each.

use std::sync::Arc;
use std::time::Duration;

use nex_node::agents::{AgentPool, AgentPoolConfig};
use nex_node::in_process::InProcess;
use nex_node::machines::image::GuestImage;
use nex_node::machines::{ProcessConfig, ProcessDriver, QemuConfig, QemuDriver, RuntimeDir};
use nex_runtime::engine::Engine;
use nex_runtime::v8::{V8Config, V8Engine};

use crate::binary::agent_bin;
use crate::resources::resources;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    InProcess,
    Process,
    Qemu,
}

/// What runs the functions of a node, and the pool behind it, where there is one.
pub(crate) struct Muscle {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) pool: Option<Arc<AgentPool>>,
    _runtime_dir: Option<RuntimeDir>,
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
            Self::Qemu => "qemu",
        }
    }

    pub(crate) async fn start(self) -> Muscle {
        let pool = match self {
            Self::InProcess => {
                let engine = Arc::new(V8Engine::new(V8Config::default()).unwrap());
                return Muscle {
                    engine: Arc::new(InProcess::new(engine, Default::default())),
                    pool: None,
                    _runtime_dir: None,
                };
            }
            Self::Process => {
                let driver = ProcessDriver::new(ProcessConfig::new(agent_bin())).await.unwrap();
                AgentPool::start(AgentPoolConfig::new(driver)).await.unwrap()
            }
            Self::Qemu => {
                let resources = resources();
                let (qemu, _) = resources.qemu(&[]).unwrap();
                let image = GuestImage::open(&resources.image()).unwrap();
                let runtime_dir = RuntimeDir::claim(&std::env::temp_dir().join("nex-tests")).unwrap();
                let driver = QemuDriver::new(QemuConfig::new(qemu, image, runtime_dir.path()))
                    .await
                    .unwrap();
                let pool = AgentPool::start(AgentPoolConfig {
                    templates: Some(resources.templates()),
                    // Emulated, on a busy machine.
                    heartbeat_timeout: Duration::from_secs(3),
                    start_timeout: Duration::from_secs(60),
                    ..AgentPoolConfig::new(driver)
                });
                return Muscle::over(pool.await.unwrap(), Some(runtime_dir));
            }
        };
        Muscle::over(pool, None)
    }
}

impl Muscle {
    fn over(pool: Arc<AgentPool>, runtime_dir: Option<RuntimeDir>) -> Self {
        Self {
            engine: pool.clone(),
            pool: Some(pool),
            _runtime_dir: runtime_dir,
        }
    }
}
