//! Starts what an end-to-end test needs and ends it again: a real nats-server, real `nex node up` processes with real
//! agents, the command line, and Python scripts as foreign clients. Whatever a process wrote is shown when its test
//! fails. For every integration test of this crate: `mod support;`.
#![allow(dead_code, reason = "each test binary uses its part of this module")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and show why"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use nex_host_services::nats_server::NatsServer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for anything that a test does not itself measure. A test that hits it has failed; on a busy machine
/// everything takes longer than one thinks.
const PATIENCE: Duration = Duration::from_secs(120);

/// A file or folder below `fixtures/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(path)
}

/// A nats-server with JetStream, and a home folder with the sample keys, for one test.
pub(crate) struct Cluster {
    server: NatsServer,
    folder: TempDir,
}

impl Cluster {
    /// Starts the server.
    pub(crate) fn start() -> Self {
        let server = NatsServer::start().unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        std::fs::create_dir(&home).unwrap();
        for key in ["issuer.nk", "publisher.xk"] {
            std::fs::copy(fixture("keys").join(key), home.join(key)).unwrap();
        }
        Self { server, folder }
    }

    /// URL of the server.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// A connection of the test's own.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("connects")
    }

    /// The command `nex`, which knows the server and nothing else of the environment's NATS settings.
    pub(crate) fn nex<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text != "NATS_SERVER_BIN" && (text.starts_with("NATS_") || text.starts_with("NEX_")) {
                command.env_remove(&name);
            }
        }
        command
            .args(arguments)
            .env("NATS_URL", self.url())
            .env("NEX_HOME", self.folder.path().join("home"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a `nex` command to its end.
    pub(crate) async fn nex_output<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        finish(self.nex(arguments)).await
    }

    /// Runs a `nex` command that must succeed and write JSON.
    pub(crate) async fn nex_json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let command = self.nex(arguments);
        let shown = format!("{:?}", command.as_std());
        let output = finish(command).await;
        assert!(output.status.success(), "{shown} failed: {}", text(&output));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{shown} wrote no JSON ({error}): {}", text(&output)))
    }

    /// Deploys a function of `fixtures/js` with `nex devrun` on these subjects.
    pub(crate) async fn devrun(&self, function: &str, subjects: &[&str]) -> Value {
        let file = fixture("js").join(function);
        let mut arguments = vec!["devrun", file.to_str().unwrap(), "--json"];
        for subject in subjects {
            arguments.extend(["--trigger_subject", subject]);
        }
        self.nex_json(arguments).await
    }

    /// Starts a node and waits until it says that it is up. `name` must be new in this cluster.
    pub(crate) async fn node(&self, name: &str, mut config: Value) -> Node {
        agent_binary();
        config["tags"]["node_name"] = json!(name);
        let file = |extension: &str| self.folder.path().join(format!("{name}.{extension}"));
        std::fs::write(file("json"), config.to_string()).unwrap();
        let log = file("log");
        let mut child = self
            .nex(["node", "up", "--json", "--config"])
            .arg(file("json"))
            // Two nodes of one test are two machines: each has its own state.
            .env("NEX_HOME", self.folder.path().join(name))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("nex starts");
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, stdout.next_line()).await;
        let Ok(Ok(Some(line))) = line else {
            panic!("node {name} did not start: {line:?}\n{}", read(&log));
        };
        let report: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let id = report["node"].as_str().unwrap().to_owned();
        Node {
            id,
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Runs a script of `tests/acceptance`, which must succeed.
    pub(crate) async fn python(&self, script: &str, variables: &[(&str, &str)]) {
        let mut command = python();
        command
            .arg(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/acceptance")
                    .join(script),
            )
            .env("NATS_URL", self.url())
            .envs(variables.iter().copied())
            .kill_on_drop(true);
        let output = finish(command).await;
        assert!(output.status.success(), "{script} failed: {}", text(&output));
        // Figures that the script measured; the test harness shows them with --nocapture.
        eprintln!("{script}: {}", String::from_utf8_lossy(&output.stdout).trim_end());
    }
}

/// A running `nex node up`. Killed when dropped.
pub(crate) struct Node {
    /// Its public key.
    pub(crate) id: String,
    name: String,
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the node runs")
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        read(&self.log)
    }

    /// Asks it to end, as Ctrl-C does, and waits until it has.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        timeout(PATIENCE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("node {} does not end:\n{}", self.name, self.log()))
            .unwrap()
    }
}

impl Node {
    /// Ends it without asking (`kill -9`), and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("node {} does not die", self.name))
            .unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.child.start_kill();
        if std::thread::panicking() {
            eprintln!("--- node {} wrote:\n{}---", self.name, self.log());
        }
    }
}

/// The agent binary beside `nex`. Cargo builds only this crate's own binaries for its tests.
fn agent_binary() {
    let path = Path::new(env!("CARGO_BIN_EXE_nex")).with_file_name("nex-agent");
    assert!(
        path.exists(),
        "{} does not exist: run `cargo build --workspace` first, as `cargo xtask test` does",
        path.display()
    );
}

/// Python with the client library that the scripts need.
fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    if std::env::var_os("PYTHONPATH").is_none() {
        // As `cargo xtask test` lays it out: <target>/tools/python, beside <target>/<profile>/nex.
        let target = Path::new(env!("CARGO_BIN_EXE_nex")).ancestors().nth(2).unwrap();
        command.env("PYTHONPATH", target.join("tools/python"));
    }
    let usable = std::process::Command::new("python3")
        .envs(
            command
                .as_std()
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .args(["-c", "import nats"])
        .output()
        .expect("python3 is installed");
    assert!(
        usable.status.success(),
        "nats-py, the foreign client of these tests, is missing; `cargo xtask test` installs it from xtask/requirements: {}",
        text(&usable)
    );
    command
}

async fn finish(mut command: Command) -> Output {
    timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{:?} does not end", command.as_std()))
        .unwrap_or_else(|error| panic!("{:?}: {error}", command.as_std()))
}

fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn read(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
