//! A client of QMP, QEMU's control protocol: one JSON object a line, over a socket that QEMU was started with.
//!
//! QEMU reads what a guest says, so it is not trusted either: lines have a limit, and every command has a time limit.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::machines::MachineError;

/// How long QEMU may take for a command.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest line, in bytes.
const MAX_LINE: usize = 1 << 20;

/// Bytes read at a time.
const READ_CHUNK: usize = 4 << 10;

/// A connection on which commands can be given.
#[derive(Debug)]
pub(super) struct Qmp(Mutex<Connection>);

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Of the last command.
    id: u64,
}

/// What QEMU says. Events have none of these, and are passed over.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Waits until QEMU is there.
    ///
    /// # Errors
    /// [`MachineError::Refused`], also when QEMU ends instead.
    pub(super) async fn greet(stream: UnixStream) -> Result<Self, MachineError> {
        let mut connection = Connection {
            stream,
            buffer: Vec::new(),
            id: 0,
        };
        let greeted = timeout(PATIENCE, async {
            loop {
                let line = connection.line().await?;
                if line.greeting.is_some() {
                    return io::Result::Ok(());
                }
            }
        });
        flatten("QMP greeting", greeted.await)?;
        let qmp = Self(Mutex::new(connection));
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Gives a command and waits for what it returns.
    ///
    /// # Errors
    /// [`MachineError::Refused`]
    ///
    /// # Cancel safety
    /// The command may or may not be carried out; further ones can be given.
    pub(super) async fn run(&self, command: &str, arguments: Value) -> Result<Value, MachineError> {
        self.run_with(command, arguments, None).await
    }

    /// Gives QEMU a descriptor, by a name for other commands.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) async fn give(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), MachineError> {
        let arguments = json!({ "fdname": name });
        self.run_with("getfd", arguments, Some(descriptor)).await.map(drop)
    }

    async fn run_with(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, MachineError> {
        let mut connection = self.0.lock().await;
        let answer = flatten(
            command,
            timeout(PATIENCE, connection.run(command, &arguments, descriptor)).await,
        )?;
        answer.map_err(|message| MachineError::Refused {
            request: command.to_owned(),
            message,
        })
    }
}

fn flatten<T>(request: &str, result: Result<io::Result<T>, tokio::time::error::Elapsed>) -> Result<T, MachineError> {
    let result = match result {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    Err(MachineError::Refused {
        request: request.to_owned(),
        message: result,
    })
}

impl Connection {
    async fn run(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<Result<Value, String>> {
        self.id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": self.id }).to_string();
        line.push('\n');
        let mut rest = line.as_bytes();
        if let Some(descriptor) = descriptor {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || send_with(&self.stream, rest, descriptor))
                .await?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        self.stream.write_all(rest).await?;
        loop {
            let line = self.line().await?;
            // An answer to a command that nobody waits for any more has another number.
            if line.id != Some(self.id) {
                continue;
            }
            return Ok(match (line.returned, line.error) {
                (_, Some(refusal)) => Err(refusal.desc),
                (returned, None) => Ok(returned.unwrap_or_default()),
            });
        }
    }

    /// The next line.
    async fn line(&mut self) -> io::Result<Line> {
        let mut searched = 0;
        loop {
            let found = self.buffer.iter().skip(searched).position(|&byte| byte == b'\n');
            if let Some(end) = found.map(|at| searched + at) {
                let line = serde_json::from_slice(self.buffer.get(..end).unwrap_or_default());
                self.buffer.drain(..=end);
                return line.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                let message = format!("a line of more than {MAX_LINE} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.buffer.reserve(READ_CHUNK);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU has ended"));
            }
        }
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        flags,
    )?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// A QEMU that answers each command with the next of these.
    async fn qemu(answers: &'static [&'static str]) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = theirs;
            theirs.write_all(GREETING.as_bytes()).await.unwrap();
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            let mut commands = tokio::io::BufReader::new(theirs);
            for answer in std::iter::once(&"").chain(answers) {
                let mut command = String::new();
                tokio::io::AsyncBufReadExt::read_line(&mut commands, &mut command)
                    .await
                    .unwrap();
                commands.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Qmp::greet(ours).await.unwrap()
    }

    #[tokio::test]
    async fn events_and_late_answers_are_passed_over() {
        let qmp = qemu(&[
            "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": 1, \"id\": 1}\n{\"return\": {\"a\": 2}, \"id\": 2}\n",
        ])
        .await;
        assert_eq!(qmp.run("query-status", json!({})).await.unwrap(), json!({"a": 2}));
    }

    #[tokio::test]
    async fn a_refusal_names_the_command() {
        let qmp = qemu(&["{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}, \"id\": 2}\n"]).await;
        let error = qmp.run("frobnicate", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "frobnicate: no such thing");
    }

    #[tokio::test]
    async fn an_end_and_noise_are_errors() {
        for (answers, expected) in [(&[][..], "QEMU has ended"), (&["nonsense\n"], "expected ident")] {
            let qmp = qemu(answers).await;
            let error = qmp.run("stop", json!({})).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move { while theirs.write_all(&[b' '; 65536]).await.is_ok() {} });
        let error = Qmp::greet(ours).await.unwrap_err();
        assert!(error.to_string().contains("a line of more than"), "{error}");
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_name() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qmp = Qmp(Mutex::new(Connection {
            stream: ours,
            buffer: Vec::new(),
            id: 0,
        }));
        let (given, kept) = UnixStream::pair().unwrap();
        let give = tokio::spawn(async move { qmp.give("state", std::os::fd::AsFd::as_fd(&given)).await });
        theirs.readable().await.unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 256];
        let received = rustix::net::recvmsg(
            &theirs,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            rustix::net::RecvFlags::empty(),
        )
        .unwrap();
        let line: Value = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
        assert_eq!(
            line,
            json!({"execute": "getfd", "arguments": {"fdname": "state"}, "id": 1})
        );
        assert_eq!(ancillary.drain().count(), 1);
        let mut theirs = theirs;
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
        give.await.unwrap().unwrap();
        drop(kept);
    }
}
