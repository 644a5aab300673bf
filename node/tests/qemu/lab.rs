//! A driver with a runtime folder and templates of its own, and machines with somebody at the other end of their link.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use nex_agent::link::{AgentToNode, CallId, FunctionId, NodeToAgent};
use nex_node::machines::image::{GuestImage, Recipe, find_init_bin};
use nex_node::machines::{Machine, MachineDriver, MachineSource, Port, QemuConfig, QemuDriver, RuntimeDir};
use nex_runtime::invocation::Trigger;
use tempfile::TempDir;
use tokio::io::join;

use crate::escape_probe::{self, Outcome, escape_probe, within};
use crate::link::Link;
use crate::resources::resources;

/// Where one test has its machines.
pub(crate) struct Lab {
    pub(crate) driver: Arc<QemuDriver>,
    runtime_dir: RuntimeDir,
    folder: TempDir,
}

impl Lab {
    /// Machines of the image that was set up for the tests.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = GuestImage::open(&resources().image()).unwrap();
        Self::with(folder, image, |_| {}).await
    }

    /// Machines whose agent tries to break out.
    pub(crate) async fn of_attackers(configure: impl FnOnce(&mut QemuConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            agent: escape_probe(),
            init: find_init_bin().unwrap(),
            kernel: resources().kernel(),
            modules: None,
            additions: Vec::new(),
            script: None,
            time: 0,
        };
        let image = folder.path().join("image");
        let image = tokio::task::spawn_blocking(move || recipe.build(&image)).await;
        Self::with(folder, image.unwrap().unwrap(), configure).await
    }

    async fn with(folder: TempDir, image: GuestImage, configure: impl FnOnce(&mut QemuConfig)) -> Self {
        // Processes are found by it, and users that own nothing must get to the image.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let runtime_dir = RuntimeDir::claim(&folder.path().join("run")).unwrap();
        let (qemu, _) = resources().qemu(&[]).unwrap();
        let mut config = QemuConfig::new(qemu, image, runtime_dir.path());
        configure(&mut config);
        Self {
            driver: Arc::new(QemuDriver::new(config).await.unwrap()),
            runtime_dir,
            folder,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Machines as a node gets them: copies, from the second one on.
    pub(crate) fn source(&self) -> MachineSource {
        MachineSource::new(self.driver.clone(), Some(self.path("templates")))
    }

    pub(crate) async fn boot(&self, id: &str) -> Inmate {
        Inmate::of(self.driver.boot(id).await.unwrap()).await
    }

    /// Writes a template down.
    pub(crate) async fn template(&self) -> PathBuf {
        let folder = self.path("template");
        std::fs::create_dir(&folder).unwrap();
        let machine = self.driver.boot("original").await.unwrap();
        let templating = self.driver.templating().unwrap();
        templating.take(machine, &folder).await.unwrap();
        folder
    }

    pub(crate) async fn restore(&self, template: &Path, id: &str) -> Inmate {
        let templating = self.driver.templating().unwrap();
        let machine = templating.restore(template, id).await.unwrap();
        assert!(machine.start().restored);
        Inmate::of(machine).await
    }

    /// The processes of its machines.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let folder = self.runtime_dir.path().as_os_str().as_encoded_bytes().to_owned();
        let names_it = |pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.windows(folder.len()).any(|window| window == folder)
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(names_it).collect()
    }

    /// What is in its runtime folder, beside the lock.
    pub(crate) fn left_behind(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.runtime_dir.path()).unwrap().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| !path.ends_with("lock")).collect()
    }
}

/// A machine with its agent at the other end of the link.
pub(crate) struct Inmate {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) link: Link,
    functions: u64,
}

impl Inmate {
    pub(crate) async fn of(machine: Arc<dyn Machine>) -> Self {
        let stream = within(machine.connect(Port::Link)).await.unwrap();
        let mut link = Link::new(join(stream.reader, stream.writer));
        let settled = escape_probe::settle(&mut link).await;
        settled.unwrap_or_else(|instead| panic!("{instead}"));
        Self {
            machine,
            link,
            functions: 1,
        }
    }

    /// Runs a function once.
    pub(crate) async fn ask(&mut self, source: &str) -> String {
        self.request(source).await;
        self.reply().await
    }

    /// Deploys a function and calls it.
    pub(crate) async fn request(&mut self, source: &str) {
        self.functions += 1;
        let function = FunctionId(self.functions);
        self.link.deploy(function, source);
        match within(self.next()).await {
            AgentToNode::DeployResult { result, .. } => result.unwrap(),
            other => panic!("{other:?}"),
        }
        self.link.send(NodeToAgent::Trigger {
            call: CallId(self.functions),
            function,
            trigger: Trigger::default(),
        });
    }

    pub(crate) async fn reply(&mut self) -> String {
        match within(self.next()).await {
            AgentToNode::Reply { reply, .. } => String::from_utf8(reply.body.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The next frame that a test is interested in.
    async fn next(&mut self) -> AgentToNode {
        loop {
            match self.link.next().await {
                AgentToNode::Event { .. } => {}
                frame => return frame,
            }
        }
    }

    /// Has an attacker attempt something.
    pub(crate) async fn attempt(&mut self, probe: &str) -> Outcome {
        match escape_probe::attempt(&mut self.link, probe).await {
            Some(outcome) => outcome,
            None => Outcome::Died(within(self.machine.wait()).await),
        }
    }

    pub(crate) async fn show(&mut self, probe: &str) -> String {
        match self.attempt(probe).await {
            Outcome::Succeeded(detail) => detail,
            other => panic!("{probe}: {other:?}"),
        }
    }

    pub(crate) async fn end(self) -> ExitStatus {
        within(self.machine.stop(Duration::from_secs(10))).await
    }
}
