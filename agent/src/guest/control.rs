//! The control protocol between a node and `nex-init` in a virtual machine: messages, their framing, their limits. Neither
//! side trusts the other: a guest may be in the hands of whoever broke out of its functions.
//!
//! A message is its length (u32, little endian) and that many bytes of postcard. What happens, in order:
//!
//! | host | guest |
//! |---|---|
//! | connects | `Booted`, on the first connection only |
//! | `Start` | starts the agent; `Ready` once its engine is warm. A template is taken now |
//! | `Resume`, after a boot and after each restore | sets the clock, reseeds, gives the agent its link; `Linked` |
//! | `Resume` again, after a pause | as before but for the link; `Linked` |
//! | `Clock`, at any time after that | sets the clock, says nothing |
//! | `Shutdown`, at any time | ends the agent |
//! | | `AgentExited` when it has ended, however that came about; `Failed` when the guest gives up |
//! | `Shutdown` in answer to either | ends the machine |

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol; a guest says its own in [`ToHost::Booted`], and a host has no use for another.
pub const VERSION: u32 = 1;

/// Most bytes of a message, its length not counted.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Most bytes of [`ToHost::Failed`]'s text; a guest cuts what is longer.
pub const MAX_FAILURE: usize = 4 << 10;

/// Bytes of a message's length.
const PREFIX: usize = size_of::<u32>();

/// From the node to `nex-init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Start the agent.
    Start {
        /// Its arguments, without the program and without `--wait-for-link`.
        args: Vec<String>,
        /// Its environment, all of it.
        env: Vec<(String, String)>,
    },
    /// Run from now on: this is the time, and these are random bytes nobody else has.
    Resume {
        /// Nanoseconds since 1970 (UTC).
        unix_nanos: u64,
        /// For the kernel's random numbers, which are those of the template until then.
        seed: Seed,
    },
    /// This is the time.
    Clock {
        /// Nanoseconds since 1970 (UTC).
        unix_nanos: u64,
    },
    /// End the agent, then the machine.
    Shutdown,
}

/// From `nex-init` to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// The guest is up and waits for `Start`.
    Booted {
        /// Its [`VERSION`].
        version: u32,
        /// Milliseconds since its kernel started.
        uptime_ms: u64,
    },
    /// The agent waits for its link, its engine is warm.
    Ready,
    /// The clock is set, the random numbers are fresh, the agent has its link.
    Linked,
    /// The agent has ended.
    AgentExited {
        /// As `wait` tells it.
        wait_status: i32,
    },
    /// The guest cannot go on.
    Failed {
        /// Why, for people; at most [`MAX_FAILURE`] bytes.
        message: String,
    },
}

impl ToHost {
    /// Its name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Booted { .. } => "Booted",
            Self::Ready => "Ready",
            Self::Linked => "Linked",
            Self::AgentExited { .. } => "AgentExited",
            Self::Failed { .. } => "Failed",
        }
    }

    /// A [`Failed`](Self::Failed) that is not too long.
    #[must_use]
    pub fn failed(mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(MAX_FAILURE));
        Self::Failed { message }
    }
}

impl ToGuest {
    /// Its name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "Start",
            Self::Resume { .. } => "Resume",
            Self::Clock { .. } => "Clock",
            Self::Shutdown => "Shutdown",
        }
    }

    /// A [`Resume`](Self::Resume) with this host's time.
    #[must_use]
    pub fn resume_now(seed: Seed) -> Self {
        Self::Resume {
            unix_nanos: unix_nanos(),
            seed,
        }
    }

    /// A [`Clock`](Self::Clock) with this host's time.
    #[must_use]
    pub fn clock_now() -> Self {
        Self::Clock {
            unix_nanos: unix_nanos(),
        }
    }
}

fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Random bytes for a guest. They are a secret: `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed([[u8; 32]; 2]);

impl Seed {
    /// How many.
    pub const LEN: usize = 64;

    /// Takes 64 bytes of the caller's random source.
    #[must_use]
    pub fn new(fill: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = [[0; 32]; 2];
        fill(bytes.as_flattened_mut());
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed")
    }
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("a control message of {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLarge(usize),
    /// Not a message of this direction, or more than one.
    #[error("a malformed control message of {0} bytes")]
    Malformed(usize),
}

/// A message as it goes on the stream.
///
/// # Errors
/// [`ControlError::TooLarge`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    // Serialising to memory cannot fail: the types hold nothing of unknown length.
    let body = postcard::to_stdvec(message).map_err(|_| ControlError::Malformed(0))?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_MESSAGE)
        .ok_or(ControlError::TooLarge(body.len()))?;
    let mut framed = Vec::with_capacity(PREFIX + body.len());
    framed.extend_from_slice(&len.to_le_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}

/// Cuts messages out of what comes from a stream. It holds no more than what was pushed, so whoever pushes no more than
/// it has taken out, and a message at most, has bounded it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// [`ControlError`]; the stream is of no further use.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MAX_MESSAGE {
            return Err(ControlError::TooLarge(len));
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        let message = match postcard::take_from_bytes(body) {
            Ok((message, [])) => message,
            _ => return Err(ControlError::Malformed(len)),
        };
        self.buffer.drain(..PREFIX + len);
        Ok(Some(message))
    }

    /// Whether the stream may end here without a message cut off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn messages_survive_any_fragmentation() {
        let sent = [
            ToGuest::Start {
                args: vec!["--heap-bytes".to_owned(), "1".to_owned()],
                env: vec![("RUST_LOG".to_owned(), "warn".to_owned())],
            },
            ToGuest::resume_now(Seed::new(|bytes| bytes.fill(7))),
            ToGuest::clock_now(),
            ToGuest::Shutdown,
        ];
        let stream: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
        for size in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                while let Some(message) = decoder.decode::<ToGuest>().unwrap() {
                    received.push(message);
                }
            }
            assert_eq!(received, sent, "in pieces of {size}");
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_has_come() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        let refused = decoder.decode::<ToHost>();
        assert_eq!(refused, Err(ControlError::TooLarge(u32::MAX as usize)));
        let long = ToGuest::Start {
            args: vec!["a".repeat(MAX_MESSAGE)],
            env: Vec::new(),
        };
        assert!(matches!(encode(&long), Err(ControlError::TooLarge(_))));
    }

    #[test]
    fn noise_is_no_message() {
        for body in [
            &[][..],
            &[9],
            &[1, 1],
            &[4, 0xff, 0xff, 0xff, 0xff, 0x0f, b'a'],
            &[4, 1, 0xff],
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&u32::try_from(body.len()).unwrap().to_le_bytes());
            decoder.push(body);
            assert_eq!(
                decoder.decode::<ToHost>(),
                Err(ControlError::Malformed(body.len())),
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_failure_is_cut_between_characters() {
        let ToHost::Failed { message } = ToHost::failed("€".repeat(MAX_FAILURE)) else {
            panic!("another message");
        };
        assert_eq!(message.len(), MAX_FAILURE - MAX_FAILURE % 3);
    }

    #[test]
    fn nobody_reads_a_seed_in_a_log() {
        let message = ToGuest::resume_now(Seed::new(|bytes| bytes.fill(0xab)));
        let shown = format!("{message:?}");
        assert!(
            !shown.contains("171") && !shown.to_lowercase().contains("ab"),
            "{shown}"
        );
    }
}
