//! What the two directions of the link have in common: typed ids, the handshake, health, and the trait that turns a
//! message into a frame and back.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::{Frame, FrameLimits, LinkError, MetaWriter};

/// One deployed function on one agent. The node issues them, counting up from 1 for each agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionId(pub u64);

/// One call on one link: of a function, issued by the node, or of a host service, issued by the agent. Both count up
/// from 1, independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CallId(pub u64);

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The agent's first frame. The protocol version travels in the frame's id, readable whatever the rest looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the agent's code.
    pub agent_version: String,
    /// Process id, as the agent sees it; inside a machine it differs from the host's.
    pub pid: u32,
    /// Workload types its engine runs.
    pub workload_types: Vec<String>,
    /// Optional features of this agent, for example a TCP tunnel; unknown ones are ignored.
    pub capabilities: Vec<String>,
}

/// The node's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The agent's name on this node, for its logs.
    pub agent_id: String,
    /// Version of the node's code.
    pub node_version: String,
}

/// How an agent is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Some code in it does not stop: it must be drained and replaced.
    pub condemned: bool,
    /// Calls it has not answered yet.
    pub in_flight: u32,
    /// Functions loaded.
    pub functions: u32,
    /// Functions of these that have no instance: they hibernate.
    pub hibernating: u32,
    /// Instances of the others.
    pub instances: u32,
    /// Resident memory of the process in bytes; 0 if unknown.
    pub rss_bytes: u64,
}

/// A frame's fixed parts, once its metadata is written.
#[derive(Debug)]
pub struct Encoded {
    pub(super) kind: u8,
    pub(super) id: u64,
    pub(super) payload: Bytes,
}

impl Encoded {
    pub(super) fn new(kind: u8, id: u64) -> Self {
        Self {
            kind,
            id,
            payload: Bytes::new(),
        }
    }

    pub(super) fn with_payload(kind: u8, id: u64, payload: Bytes) -> Self {
        Self { kind, id, payload }
    }
}

/// One direction of the link.
pub trait Message: fmt::Debug + Sized + Send + 'static {
    /// Largest frames of this direction.
    const LIMITS: FrameLimits;

    /// Writes the metadata and names the other parts.
    ///
    /// # Errors
    /// The metadata passes its limit.
    fn encode(self, meta: &mut MetaWriter<'_>) -> postcard::Result<Encoded>;

    /// Interprets a frame.
    ///
    /// # Errors
    /// [`LinkError`]: no frame of this direction, or malformed.
    fn decode(frame: Frame) -> Result<Self, LinkError>;
}
