//! One NATS request and its reply over a plain socket: enough for the demo, and it shows how little a caller needs.
//! Protocol: <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const INBOX: &str = "_INBOX.xtask";

/// Sends `payload` to `subject` on the server at `address` (`host:port`), and waits for the reply's body.
///
/// # Errors
/// When the server cannot be reached or refuses, nobody serves the subject, the reply is an error, or time is over.
pub(crate) fn request(address: &str, subject: &str, payload: &[u8], timeout: Duration) -> Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to NATS at {address}"))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut message = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"rust\",\"version\":\"0\",\"name\":\"xtask\"}}\r\n\
         SUB {INBOX} 1\r\nPUB {subject} {INBOX} {}\r\n",
        payload.len()
    )
    .into_bytes();
    message.extend_from_slice(payload);
    message.extend_from_slice(b"\r\n");
    stream.write_all(&message)?;

    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no reply from `{subject}` within {timeout:?}");
        }
        stream.set_read_timeout(Some(left))?;
        let mut line = String::new();
        let length = reader
            .read_line(&mut line)
            .with_context(|| format!("no reply from `{subject}`"))?;
        if length == 0 {
            bail!("the server closed the connection before the reply");
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["MSG", _, _, size] => return read_body(&mut reader, size),
            ["HMSG", _, _, header_size, size] => {
                let body = read_body(&mut reader, size)?;
                return split_headers(subject, &body, header_size.parse()?);
            }
            ["PING"] => stream.write_all(b"PONG\r\n")?,
            ["-ERR", ..] => bail!("the server refuses: {}", line.trim()),
            _ => {} // INFO, +OK, PONG
        }
    }
}

fn read_body(reader: &mut impl Read, size: &str) -> Result<Vec<u8>> {
    let mut body = vec![0; size.parse().context("the server sent a size that is no number")?];
    reader.read_exact(&mut body)?;
    Ok(body)
}

/// The body of a message with headers; headers that stand for an error become one.
fn split_headers(subject: &str, message: &[u8], header_size: usize) -> Result<Vec<u8>> {
    let Some((headers, body)) = message.split_at_checked(header_size) else {
        bail!("the server sent headers longer than their message");
    };
    let headers = String::from_utf8_lossy(headers);
    if headers.starts_with("NATS/1.0 503") {
        bail!("nobody serves the subject `{subject}`");
    }
    if let Some(error) = headers
        .lines()
        .find_map(|line| line.strip_prefix("Nats-Service-Error:"))
    {
        bail!("`{subject}` answered with an error: {}", error.trim());
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::split_headers;

    #[test]
    fn tells_replies_from_errors() {
        let reply = b"NATS/1.0\r\nA: b\r\n\r\nhello";
        assert_eq!(split_headers("s", reply, 18).ok().as_deref(), Some(&b"hello"[..]));
        let nobody = b"NATS/1.0 503\r\n\r\n";
        assert!(split_headers("s", nobody, nobody.len()).is_err_and(|error| error.to_string().contains("nobody")));
        let failed = b"NATS/1.0\r\nNats-Service-Error-Code: 500\r\nNats-Service-Error: x is not defined\r\n\r\n";
        assert!(split_headers("s", failed, failed.len()).is_err_and(|error| error.to_string().contains("not defined")));
        assert!(split_headers("s", b"NATS/1.0", 100).is_err());
    }
}
