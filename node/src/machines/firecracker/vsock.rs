//! Streams into a machine. Firecracker listens on a Unix socket: the host connects, writes `CONNECT <port>\n`, and reads
//! `OK <number>\n` once the guest has accepted. When nobody listens in the guest, the connection is closed.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::api::quote;
use super::socket::Socket;

/// Ports of `nex-init` in the guest.
pub(super) const CONTROL: u32 = 1;
pub(super) const LINK: u32 = 2;

/// Longest answer, `OK 4294967295`, without the line's end.
const MAX_LINE: usize = 13;

/// Between two attempts while the guest is not listening yet.
const PAUSE: Duration = Duration::from_millis(5);

/// Connects to a port, and tries again until the deadline for as long as nobody listens there.
///
/// # Errors
/// When an answer is not one of Firecracker's, or with [`io::ErrorKind::TimedOut`] and what the last attempt said.
pub(super) async fn connect(socket: &Socket, port: u32, deadline: Instant) -> io::Result<UnixStream> {
    let started = Instant::now();
    let mut last = io::Error::other("it did not answer");
    let attempts = async {
        loop {
            match attempt(socket, port).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_early(&error) => last = error,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout_at(deadline, attempts).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("vsock port {port} was not open within {:?}: {last}", started.elapsed()),
        )),
    }
}

/// Whether it may be better in a moment: Firecracker has not made the socket, or the guest does not listen.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

async fn attempt(socket: &Socket, port: u32) -> io::Result<UnixStream> {
    let mut stream = socket.connect().await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut line = Vec::with_capacity(MAX_LINE);
    // What follows the line is the guest's, so no byte beyond it is read.
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            _ if line.len() == MAX_LINE => return Err(wrong(port, &line)),
            byte => line.push(byte),
        }
    }
    let number = line
        .strip_prefix(b"OK ")
        .and_then(|rest| std::str::from_utf8(rest).ok());
    match number.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(stream),
        _ => Err(wrong(port, &line)),
    }
}

fn wrong(port: u32, line: &[u8]) -> io::Error {
    let line = quote(line);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("vsock port {port}: `{line}` is no answer to CONNECT; expected OK and a number"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use tokio::net::UnixListener;

    use super::*;

    /// Connects to a host that gives these answers, one to each attempt.
    async fn against(answers: &'static [&'static str], patience: Duration) -> io::Result<UnixStream> {
        let folder = tempfile::tempdir().unwrap();
        let [socket] = Socket::all_in(folder.path(), ["v.sock"]).unwrap();
        let listener = UnixListener::bind(folder.path().join("v.sock")).unwrap();
        let host = async move {
            let mut kept = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 10];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"CONNECT 2\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                if !answer.is_empty() {
                    kept.push(stream);
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            connected = connect(&socket, LINK, Instant::now() + patience) => connected,
            () = host => unreachable!("it waits for ever"),
        }
    }

    #[tokio::test]
    async fn tries_again_until_somebody_listens_and_reads_no_byte_too_much() {
        let mut stream = against(&["", "", "OK 1073741824\nhi"], Duration::from_secs(10))
            .await
            .unwrap();
        let mut rest = [0; 2];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hi");
    }

    #[tokio::test]
    async fn refuses_other_answers() {
        for answer in ["OK\n", "OK x\n", "NO 1\n", "OK 4294967296\n", "OK 00000000000000000001"] {
            let error = against(Box::leak(Box::new([answer])), Duration::from_secs(10))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{answer}");
        }
    }

    #[tokio::test]
    async fn gives_up_at_the_deadline() {
        let silent = against(&["OK 1"], Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        assert!(silent.to_string().contains("port 2"), "{silent}");
        let folder = tempfile::tempdir().unwrap();
        let [missing] = Socket::all_in(folder.path(), ["none"]).unwrap();
        let nobody = connect(&missing, CONTROL, Instant::now() + Duration::from_millis(20)).await;
        assert!(nobody.unwrap_err().to_string().contains("No such file"));
    }
}
