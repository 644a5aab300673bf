//! A folder per test with programs, an image, and what the programs wrote down; and the node's end of a link.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nex_agent::link::{AgentToNode, CallId, FunctionId, HelloAck, LinkReader, NodeToAgent, Outbox};
use nex_node::machines::firecracker::{FirecrackerConfig, FirecrackerDriver};
use nex_node::machines::image::{FORMAT, FileSummary, Manifest, file_sha256};
use nex_node::machines::{Machine, MachineDriver, MachineError, Port, Stream};
use nex_runtime::engine::{FunctionSpec, Limits};
use nex_runtime::invocation::Trigger;
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Everything of one test on disk.
pub struct Lab {
    folder: TempDir,
}

impl Lab {
    /// With programs that behave as their version does.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("nex-fc-").tempdir().unwrap();
        let lab = Self { folder };
        fs::create_dir(lab.path("image")).unwrap();
        lab.image("6.1.0");
        lab.version("1.17.0");
        lab.behave("well");
        File::create(lab.path("records")).unwrap();
        for role in ["firecracker", "jailer"] {
            lab.program(role);
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A script, because the driver starts programs with no environment and this one must know what it is to be.
    fn program(&self, role: &str) {
        let (lab, exe) = (self.folder.path(), std::env::current_exe().unwrap());
        let script = format!(
            "#!/bin/sh\n\
             if [ \"$1\" = --version ]; then while read -r line; do echo \"$line\"; done < '{lab}/{role}-version'; exit 0; fi\n\
             export NEX_TEST_VMM='{lab}' NEX_TEST_ROLE={role}\n\
             exec '{exe}' stub::process --exact --nocapture -- \"$@\"\n",
            lab = lab.display(),
            exe = exe.display(),
        );
        let path = self.path(role);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// An image that says it has this kernel.
    pub fn image(&self, kernel_version: &str) {
        let folder = self.path("image");
        let files = ["vmlinux", "initrd.cpio", "rootfs.squashfs"].map(|name| {
            fs::write(folder.join(name), name).unwrap();
            let summary = FileSummary {
                sha256: file_sha256(&folder.join(name)).unwrap(),
                bytes: u64::try_from(name.len()).unwrap(),
            };
            (name.to_owned(), summary)
        });
        let manifest = Manifest {
            format: FORMAT,
            nex_version: "0".to_owned(),
            architecture: "x86_64".to_owned(),
            kernel_version: kernel_version.to_owned(),
            modules: Vec::new(),
            agent_sha256: String::new(),
            init_sha256: String::new(),
            customised: Vec::new(),
            files: files.into(),
        };
        fs::write(folder.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    pub fn version(&self, version: &str) {
        fs::write(self.path("firecracker-version"), format!("Firecracker v{version}\n\n")).unwrap();
        fs::write(self.path("jailer-version"), format!("Jailer v{version}\n\n")).unwrap();
    }

    /// How the programs started from now on behave; see [`stub::Behaviour`](crate::stub::Behaviour).
    pub fn behave(&self, how: &str) {
        fs::write(self.path("behaviour"), how).unwrap();
    }

    pub fn config(&self) -> FirecrackerConfig {
        FirecrackerConfig {
            firecracker_bin: self.path("firecracker"),
            kvm_device: "/dev/null".into(),
            boot_timeout: Duration::from_secs(20),
            ..FirecrackerConfig::new(self.path("image"), self.path("run"))
        }
    }

    pub async fn driver(&self) -> FirecrackerDriver {
        FirecrackerDriver::new(self.config()).await.unwrap()
    }

    /// What the programs wrote down, in order.
    pub fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("records")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Forgets what was written down so far.
    pub fn forget(&self) {
        File::create(self.path("records")).unwrap();
    }

    /// The requests of the API: method with path, and body.
    pub fn requests(&self) -> Vec<(String, Value)> {
        let records = self.records();
        let requests = records.iter().filter_map(|record| {
            let request = record.get("request")?.as_str()?.to_owned();
            Some((request, record["body"].clone()))
        });
        requests.collect()
    }

    /// The arguments of a program, each time it was started.
    pub fn arguments(&self, program: &str) -> Vec<Vec<String>> {
        let records = self.records();
        let starts = records.iter().filter_map(|record| record.get(program));
        starts
            .map(|args| serde_json::from_value(args.clone()).unwrap())
            .collect()
    }

    /// The control messages that guests received by this name.
    pub fn heard(&self, name: &str) -> Vec<Value> {
        let mut records = self.records();
        records.retain(|record| record["guest"] == name);
        records
    }

    /// Nothing is left of any machine: no process, no folder.
    pub fn assert_nothing_left(&self) {
        let machines = self.path("run/firecracker");
        let left: Vec<_> = fs::read_dir(machines)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        for record in self.records() {
            if let Some(pid) = record["pid"].as_i64() {
                assert!(!exists(u32::try_from(pid).unwrap()), "process {pid} is still there");
            }
        }
    }

    /// A boot that is to fail, and leave nothing.
    pub async fn failure(&self, config: FirecrackerConfig) -> MachineError {
        let driver = FirecrackerDriver::new(config).await.unwrap();
        let error = within(driver.boot("m")).await.unwrap_err();
        self.assert_nothing_left();
        error
    }
}

/// Whether the process is there, if only as a zombie.
pub fn exists(pid: u32) -> bool {
    test_kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()).is_ok()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mode and owner of a file.
pub fn mode_and_owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).unwrap();
    (metadata.mode() & 0o777, metadata.uid())
}

/// The node's end of a link.
pub struct Node {
    reader: LinkReader<AgentToNode>,
    outbox: Outbox<NodeToAgent>,
    calls: u64,
}

impl Node {
    /// Connects a machine, shakes hands, and deploys a toy of this name as its only function.
    pub async fn connect(machine: &Arc<dyn Machine>, toy: &str) -> Self {
        let stream = within(machine.connect(Port::Link)).await.unwrap();
        Self::over(stream, toy).await
    }

    async fn over(stream: Stream, toy: &str) -> Self {
        let (outbox, write) = Outbox::new(stream.writer);
        tokio::spawn(write.run());
        let mut node = Self {
            reader: LinkReader::new(stream.reader),
            outbox,
            calls: 0,
        };
        assert!(matches!(node.next().await, AgentToNode::Hello(_)));
        let ack = HelloAck {
            agent_id: "a".to_owned(),
            node_version: "0".to_owned(),
        };
        node.send(NodeToAgent::HelloAck(ack));
        node.send(NodeToAgent::Deploy {
            function: FunctionId(1),
            spec: FunctionSpec {
                id: "id".to_owned(),
                namespace: "ns".to_owned(),
                name: "name".to_owned(),
                workload_type: "v8".to_owned(),
                source: Bytes::copy_from_slice(toy.as_bytes()),
                vars: BTreeMap::new(),
                limits: Limits::default(),
            },
        });
        match node.next().await {
            AgentToNode::DeployResult { result, .. } => result.unwrap(),
            other => panic!("{other:?}"),
        }
        node
    }

    fn send(&self, message: NodeToAgent) {
        self.outbox.send(message).unwrap();
    }

    async fn next(&mut self) -> AgentToNode {
        within(self.reader.next()).await.unwrap().expect("the link is closed")
    }

    /// Closes the link.
    pub fn hang_up(self) {
        self.outbox.close();
    }

    /// Sends a call off.
    pub fn trigger(&mut self, payload: &str) {
        self.calls += 1;
        self.send(NodeToAgent::Trigger {
            call: CallId(self.calls),
            function: FunctionId(1),
            trigger: Trigger {
                subject: "s".to_owned(),
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                ..Trigger::default()
            },
        });
    }

    /// Its reply.
    pub async fn reply(&mut self) -> String {
        match self.next().await {
            AgentToNode::Reply { reply, .. } => String::from_utf8(reply.body.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn call(&mut self, payload: &str) -> String {
        self.trigger(payload);
        self.reply().await
    }
}

/// Waits, but not for ever: a test that hangs says nothing.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("nothing happened for 30 s")
}
