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

/// Version of the protocol; node and agent must speak the same one.
pub const PROTOCOL_VERSION: u64 = 1;

/// Host calls one function may have pending, in all its instances together; one more is refused with `LIMIT_EXCEEDED`,
/// on both sides of the link.
#[must_use]
pub fn max_pending_host_calls(limits: &Limits) -> usize {
    limits.host_calls as usize * limits.instances as usize
}

/// Bytes waiting to be written beyond which bulk (calls, host calls and their results, streamed replies) has to wait or
/// is refused.
pub const BULK_ROOM: usize = 32 << 20;

/// Bytes waiting to be written beyond which log lines and events are dropped.
pub const LOG_ROOM: usize = 1 << 20;
