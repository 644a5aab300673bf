//! Who answers: each contender is a process of its own, so that none shares a thread with the load generator.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for a process to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that answers; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// What it has said of itself when it was ready.
    ready: String,
}

impl Process {
    /// Starts a process that writes a line to standard output when it is ready. What it writes to standard error is in
    /// `log`, and told if it does not start.
    pub(crate) async fn start(mut command: Command, log: &Path) -> Result<Self> {
        let program = command.as_std().get_program().to_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log).with_context(|| format!("cannot create {}", log.display()))?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let ready = match timeout(PATIENCE, lines.next_line()).await {
            Ok(line) => line?.context("it ended before it was ready"),
            Err(_) => Err(anyhow!("it was not ready after {} s", PATIENCE.as_secs())),
        };
        let ready = ready.with_context(|| {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            format!("{} did not start; it wrote: {}", program.display(), said.trim())
        })?;
        // Else it would block, or die of it, should it ever write more.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, ready })
    }

    /// This program as a native echo.
    pub(crate) async fn native_echo(url: &str, subject: &str, log: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["native-echo", "--url", url, "--subject", subject]);
        Self::start(command, log).await
    }

    /// What it has said of itself when it was ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    /// Asks it to end in good order, and waits until it has.
    pub(crate) async fn end(mut self) -> Result<()> {
        let pid = i32::try_from(self.id()?).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process ID")?, Signal::TERM)?;
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("it does not end")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    /// Its process ID.
    pub(crate) fn id(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }
}

/// Where a node runs its functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// In agent processes, as in production.
    Agent,
    /// In its own process, for development.
    InProcess,
}

/// A node with the functions deployed on it.
#[derive(Debug)]
pub(crate) struct Node {
    process: Process,
    id: String,
    url: String,
    folder: TempDir,
}

impl Node {
    /// Starts `nex node up`, of the binary beside this one.
    pub(crate) async fn start(url: &str, isolation: Isolation) -> Result<Self> {
        Self::start_with(url, isolation, &json!({ "workload_types": ["v8"] })).await
    }

    /// The same with a configuration of its own.
    pub(crate) async fn start_with(url: &str, isolation: Isolation, config: &Value) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config.json");
        std::fs::write(&file, config.to_string())?;
        let log = folder.path().join("node.log");
        let mut command = nex(url, folder.path())?;
        command.args(["node", "up", "--json", "--config"]).arg(&file);
        if isolation == Isolation::InProcess {
            command.arg("--unsafe-in-process");
        }
        let process = Process::start(command, &log).await?;
        let report: Value = serde_json::from_str(&process.ready)?;
        let id = report["node"].as_str().context("the node has no ID")?.to_owned();
        Ok(Self {
            process,
            id,
            url: url.to_owned(),
            folder,
        })
    }

    /// Its public key.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The node's process; the agents are its children.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Deploys a function as a developer does; this must be the only node on the server that takes workloads.
    pub(crate) async fn deploy(&self, function: &Path, subject: &str) -> Result<()> {
        let name = subject.replace('.', "-");
        let mut command = nex(&self.url, self.folder.path())?;
        command
            .arg("devrun")
            .arg(function)
            .args(["--name", &name, "--trigger_subject", subject, "--json"]);
        succeed(command).await
    }

    /// Takes no more workloads from now on, so that the next ones go to another node.
    pub(crate) async fn close(&self) -> Result<()> {
        let mut command = nex(&self.url, self.folder.path())?;
        command.args(["lameduck", &self.id]);
        succeed(command).await
    }
}

async fn succeed(mut command: Command) -> Result<()> {
    let output = timeout(PATIENCE, command.output()).await??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{:?} failed: {said}", command.as_std());
    }
    Ok(())
}

/// The command line `nex` beside this program.
fn nex(url: &str, home: &Path) -> Result<Command> {
    let mut command = Command::new(sibling("nex")?);
    sibling("nex-agent")?;
    command
        .env("NATS_URL", url)
        .env("NEX_HOME", home)
        .env_remove("NATS_CONTEXT")
        .current_dir(home)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

fn sibling(name: impl AsRef<OsStr>) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name.as_ref());
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    ensure!(
        path.exists(),
        "{} does not exist: run `cargo build --workspace{profile}` first",
        path.display()
    );
    Ok(path)
}

/// A function of `fixtures/js`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/js").join(name)
}
