//! Starts the rivals, each as a process of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;

use super::setup::{self, Rivals};
use crate::contender::Process;

/// Where the processes of one run have their sockets and logs; removed with it.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("nex-rivals-").tempdir()?))
    }

    /// Where the process with this name listens.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join(name).with_extension("sock")
    }

    /// Where it writes what goes wrong.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.path().join(name).with_extension("log")
    }
}

/// A runtime that is called over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Workerd,
    Deno,
    Node,
}

/// What it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// Sends every body back.
    Echo,
    /// Takes functions and starts each when it is first called.
    Cold,
}

impl Rivals {
    /// Node.js as an echo on a subject.
    pub(crate) async fn node_echo(&self, url: &str, subject: &str, folder: &Folder) -> Result<Process> {
        let mut command = self.node_command("node-echo.mjs");
        command.args([url, subject]);
        Process::start(command, &folder.log("node-echo")).await
    }

    /// A server on the socket of this name.
    pub(crate) async fn serve(
        &self,
        server: Server,
        program: Program,
        folder: &Folder,
        name: &str,
    ) -> Result<(Process, PathBuf)> {
        let socket = folder.socket(name);
        let what = match program {
            Program::Echo => "echo",
            Program::Cold => "cold",
        };
        let mut command = match server {
            Server::Workerd => {
                setup::require(&self.workerd())?;
                let mut command = Command::new(self.workerd());
                command
                    .arg("serve")
                    .arg(self.program(&format!("workerd-{what}.capnp")))
                    // Which the worker loader is; a line on descriptor 1 when it listens.
                    .args(["--experimental", "--control-fd=1", "--socket-addr"]);
                command.arg(format!("http=unix:{}", text(&socket)?));
                command
            }
            Server::Deno => {
                setup::require(&self.deno())?;
                let mut command = Command::new(self.deno());
                command
                    .args([
                        "run",
                        "--quiet",
                        "--no-lock",
                        "--no-config",
                        "--no-remote",
                        "--allow-all",
                    ])
                    .arg(self.program(&format!("deno-{what}.mjs")))
                    .arg(&socket)
                    .env("DENO_DIR", self.deno_cache())
                    .envs([("DENO_NO_UPDATE_CHECK", "1"), ("DENO_NO_PACKAGE_JSON", "1")]);
                command
            }
            Server::Node => {
                let mut command = self.node_command(&format!("node-{what}.mjs"));
                command.arg(&socket);
                command
            }
        };
        command.env("NO_COLOR", "1");
        Ok((Process::start(command, &folder.log(name)).await?, socket))
    }

    fn node_command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.node);
        command.arg(self.program(program)).env_remove("NODE_OPTIONS");
        command
    }
}

/// This program as the bridge from a subject to a server's socket.
pub(crate) async fn bridge(url: &str, subject: &str, socket: &Path, connections: usize, log: &Path) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bridge", "--url", url, "--subject", subject])
        .args(["--connections", &connections.to_string(), "--socket"])
        .arg(socket);
    Process::start(command, log).await
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the name of the temporary folder is not UTF-8")
}
