//! Who answers: each contender is a process of its own, so that none shares a thread with the load generator.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for a process to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that answers; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Its process ID.
    pub(crate) fn id(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    /// A responder of this program: the native echo, or an engine in process that runs a function.
    pub(crate) async fn responder(url: &str, subject: &str, function: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["responder", "--url", url, "--subject", subject]);
        if let Some(function) = function {
            command.arg("--function").arg(function);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let line = timeout(PATIENCE, lines.next_line()).await??;
        ensure!(line.as_deref() == Some("ready"), "a responder did not start");
        Ok(Self { child })
    }
}

/// A node with its agents, and the functions deployed on it.
#[derive(Debug)]
pub(crate) struct Node {
    process: Process,
    url: String,
    folder: TempDir,
}

impl Node {
    /// Starts `nex node up` with the binaries beside this one, and waits until it bids for work.
    pub(crate) async fn start(url: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.json");
        std::fs::write(&config, json!({ "workload_types": ["v8"] }).to_string())?;
        let log = std::fs::File::create(folder.path().join("node.log"))?;
        let mut node = nex(url, folder.path())?;
        let child = node
            .args(["node", "up", "--config"])
            .arg(&config)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut node = Self {
            process: Process { child },
            url: url.to_owned(),
            folder,
        };
        match node.wait_until_ready().await {
            Ok(()) => Ok(node),
            Err(error) => {
                let log = std::fs::read_to_string(node.folder.path().join("node.log"))?;
                Err(error.context(format!("the node did not start; it wrote:\n{log}")))
            }
        }
    }

    /// The node's process; the agents are its children.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Deploys a function as a developer does.
    pub(crate) async fn deploy(&self, function: &Path, subject: &str) -> Result<()> {
        let mut command = nex(&self.url, self.folder.path())?;
        command
            .arg("devrun")
            .arg(function)
            .args(["--trigger_subject", subject, "--json"]);
        let output = timeout(PATIENCE, command.output()).await??;
        if !output.status.success() {
            bail!(
                "cannot deploy {}: {}",
                function.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let client = async_nats::connect(&self.url).await?;
        let answer = async {
            loop {
                // Until the node has subscribed, the server answers at once that nobody listens.
                if let Ok(answer) = client.request("$NEX.PING", "".into()).await {
                    return serde_json::from_slice::<Value>(&answer.payload);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            answer = timeout(PATIENCE, answer) => { answer??; }
            status = self.process.child.wait() => bail!("it ended with {}", status?),
        }
        Ok(())
    }
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
