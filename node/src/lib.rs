//! The node: control API, deploy checks, triggers, host-services broker, agent pool, and the command line `nex`.

pub mod agents;
pub mod artifacts;
pub mod bench;
mod broker;
pub mod claims;
pub mod cli;
pub mod config;
pub mod connection;
pub mod control;
mod data_plane;
mod duration;
pub mod environment;
pub mod events;
pub mod identity;
pub mod in_process;
pub mod limits;
pub mod machines;
pub mod node;
mod outbound;
mod quarantine;
mod report;
mod text;
mod triggers;

pub use config::NodeConfig;
pub use node::{Node, NodeError};
