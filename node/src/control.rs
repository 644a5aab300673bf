//! The control interface: what operators and clients say to nodes on `$NEX.>`, as NATS request-reply with JSON.
//!
//! [`messages`] is the wire format, shared by both sides; [`client`] speaks it as a client, the node's side is in
//! [`crate::node`]. Wire-compatible with the original 0.2.7 and 0.3.0-rc1, whose clients can drive these nodes.

pub mod client;
mod fields;
pub mod location;
pub mod messages;
pub mod subjects;

pub use client::{ControlClient, ControlError};
pub use fields::FieldError;
pub use location::Location;
