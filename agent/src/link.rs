//! The link between a node and one agent: a framed, multiplexed byte stream over anything that reads and writes bytes
//! (a Unix socket pair now; vsock, virtio-serial or memory by the same code).
//!
//! A frame is a fixed header, small metadata in postcard, and raw payload bytes:
//!
//! ```text
//!  0  u32  bytes after the header            all integers little-endian
//!  4  u32  how many of them are metadata; they come first, the payload follows
//!  8  u64  call, function or nonce the frame is about; 0 where there is none
//! 16  u8   kind
//! 17  u8   flags, 0
//! 18  u16  reserved, 0
//! ```
//!
//! Payloads never pass through a serialiser: the [`LinkReader`] cuts them out of its read buffer, the [`Outbox`] appends
//! small ones to the bytes waiting to be written and hands large ones to the socket as they are. Whatever is waiting
//! goes out in one write, so a busy link pays one system call and one wake-up per batch, not per message.
//!
//! Flow control: nobody ever stops reading, so the link cannot deadlock; each sender bounds what it queues. Calls are
//! bounded by count and by bytes waiting (one more is answered `overloaded`), host calls and their results wait for
//! room, streamed replies wait a moment and then end their stream, log lines are dropped and counted. Frames that are
//! few by nature (answers, health) always go out.

pub(crate) mod descriptor;
mod frame;
mod message;
mod outbox;
mod reader;
mod to_agent;
mod to_node;

#[cfg(test)]
mod tests;

pub use frame::{Frame, FrameLimits, HEADER_LEN, LinkError, MetaWriter};
pub use message::{CallId, Encoded, FunctionId, Health, Hello, HelloAck, Message};
pub use outbox::{Outbox, SendError, WriteTask};
pub use reader::LinkReader;
pub use to_agent::NodeToAgent;
pub use to_node::AgentToNode;

use nex_runtime::engine::Limits;
use nex_runtime::log_limit::Throttle;

/// Version of the protocol; node and agent must speak the same one.
pub const PROTOCOL_VERSION: u64 = 2;

/// Host calls one function may have pending, in all its instances; one more is refused with `LIMIT_EXCEEDED`, on both
/// sides of the link. The runtime refuses them for each instance before.
#[must_use]
pub fn max_pending_host_calls(limits: &Limits) -> usize {
    limits.host_calls as usize * limits.instances.max(1) as usize
}

/// What the agent lets through of a function's log: the runtime has applied the function's limit before, so this is for
/// what it gets wrong.
#[must_use]
pub fn agent_log_throttle(limits: &Limits) -> Throttle {
    Throttle::new(u64::from(limits.log_lines).max(LEAST_LOG_LINES) * 2)
}

/// What the node lets through, which does not trust agents: as much again, so that what an honest one lets pass is never
/// refused for having arrived in a lump.
#[must_use]
pub fn node_log_throttle(limits: &Limits) -> Throttle {
    Throttle::new(u64::from(limits.log_lines).max(LEAST_LOG_LINES) * 4)
}

/// Log lines of the least limit: lines that say how many were dropped must come through even where no others may.
const LEAST_LOG_LINES: u64 = 100;

/// Engine events of one function in any ten seconds. An engine reports each limit at most once a second and instance.
pub const MAX_EVENTS: u64 = 1_000;

/// Bytes waiting to be written beyond which bulk (calls, host calls and their results, streamed replies) has to wait or
/// is refused.
pub const BULK_ROOM: usize = 32 << 20;

/// Bytes waiting to be written beyond which log lines and events are dropped.
pub const LOG_ROOM: usize = 1 << 20;
