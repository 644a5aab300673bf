//! The process of one machine on its way up.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::api::{Api, quote};
use super::jail::{API, Grounds, Place, VSOCK};
use super::resources::InstanceInfo;
use super::socket::Socket;
use super::{blocking, exit, vsock};
use crate::machines::MachineError;
use crate::machines::child::MachineProcess;

/// Between two looks for the API's socket.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a process that has refused something, or fallen silent, is waited for to end: it may be about to.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// Most that is read of what a failed process has written, in bytes, and lines of it that an error shows.
const MAX_WORDS: u64 = 64 << 10;
const LAST_LINES: usize = 6;

/// A process of Firecracker. Dropping it kills it, and its folder goes.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) process: MachineProcess,
    api: Api,
    vsock: Socket,
    root: PathBuf,
    boot_timeout: Duration,
    deadline: Instant,
}

impl Vm {
    /// Starts it in a folder with these files, and waits for its API.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left.
    pub(super) async fn launch(
        grounds: &Arc<Grounds>,
        id: &str,
        files: Vec<(PathBuf, &'static str)>,
        boot_timeout: Duration,
    ) -> Result<Self, MachineError> {
        let deadline = Instant::now() + boot_timeout;
        let (grounds, name) = (grounds.clone(), id.to_owned());
        let place = blocking(move || {
            let files: Vec<_> = files.iter().map(|(path, name)| (path.as_path(), *name)).collect();
            Place::make(&grounds, &name, &files)
        })
        .await?;
        let root = place.root().to_owned();
        let sockets = Socket::all_in(&root, [API, VSOCK]).map_err(|source| MachineError::File {
            path: root.clone(),
            source,
        });
        let [api, vsock] = sockets?;
        let command = place.command();
        let program = PathBuf::from(command.as_std().get_program());
        let process = MachineProcess::spawn(command, move || drop(place))
            .await
            .map_err(|source| MachineError::Spawn { program, source })?;
        let vm = Self {
            api: Api::new(api.clone()),
            vsock,
            process,
            root,
            boot_timeout,
            deadline,
        };
        let fresh = async {
            wait_for(&api).await;
            let info: InstanceInfo = vm.api.get("/").await?;
            if info.id != id || info.state != "Not started" {
                let found = quote(format!("{} ({})", info.id, info.state).as_bytes());
                return Err(MachineError::Start(format!(
                    "its API is that of another machine, {found}"
                )));
            }
            Ok(())
        };
        vm.unless_it_ends(fresh).await?;
        Ok(vm)
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// For what takes as long as the machine's memory is large.
    pub(super) fn patient_api(&self) -> Api {
        self.api.patiently(self.boot_timeout)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn vsock(&self) -> &Socket {
        &self.vsock
    }

    /// Opens a stream to a port in the machine.
    pub(super) async fn connect(&self, port: u32) -> Result<UnixStream, MachineError> {
        let stream = vsock::connect(&self.vsock, port, self.deadline).await;
        stream.map_err(|error| MachineError::Start(error.to_string()))
    }

    /// Until when it must be up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Does something on the way up. If it fails, takes too long, or the process ends, the process is gone when this
    /// returns, and the error tells what it said.
    pub(super) async fn unless_it_ends<T>(
        &self,
        work: impl Future<Output = Result<T, MachineError>>,
    ) -> Result<T, MachineError> {
        let error = tokio::select! {
            biased;
            done = tokio::time::timeout_at(self.deadline, work) => match done {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => MachineError::TimedOut(self.boot_timeout),
            },
            _ = self.process.wait() => MachineError::Start("its process ended".to_owned()),
        };
        let ended = tokio::time::timeout(LAST_MOMENT, self.process.wait()).await.ok();
        self.process.kill();
        self.process.wait().await;
        Err(self.explain(error, ended).await)
    }

    /// Adds how the process ended, if it did so by itself, and its last words.
    async fn explain(&self, error: MachineError, ended: Option<ExitStatus>) -> MachineError {
        let mut words = last_lines(self.process.take_stdout()).await;
        words.extend(last_lines(self.process.take_stderr()).await);
        let words = words.join(" / ");
        let ended = ended.map(|status| format!("Firecracker {}", exit::explain(status)));
        let join = |first: String| {
            let parts = [Some(first), ended.clone(), Some(words.clone())];
            let parts: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
            parts.join("; ")
        };
        match error {
            MachineError::Refused { request, message } => MachineError::Refused {
                request,
                message: join(message),
            },
            MachineError::Start(message) => MachineError::Start(join(message)),
            other => {
                tracing::warn!(error = %other, ended, words, "a machine did not come up");
                other
            }
        }
    }
}

/// Waits until somebody listens on a socket.
async fn wait_for(socket: &Socket) {
    while socket.connect().await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
}

/// The last lines in the pipe of a process that is gone.
async fn last_lines(pipe: Option<impl AsyncRead + Unpin>) -> Vec<String> {
    let Some(pipe) = pipe else { return Vec::new() };
    let mut text = Vec::new();
    // A child of its own may hold the pipe open; then what came is what counts.
    _ = tokio::time::timeout(LAST_MOMENT, pipe.take(MAX_WORDS).read_to_end(&mut text)).await;
    let lines = text
        .split(|byte| *byte == b'\n')
        .map(quote)
        .filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}
