//! What a function may reach beyond its own memory: key-value buckets, object stores, messaging and HTTP.
//!
//! Each service is a small trait with two implementations, one on NATS (HTTP: on the network) and one in memory.
//! [`Services`] puts four of them behind the runtime's [`HostServices`](nex_runtime::host_services::HostServices) seam
//! and is the one place where a workload's [`Policy`] is applied, so a backend never decides what is allowed.
//!
//! | Module | Holds |
//! |---|---|
//! | [`services`] | the composition and its [`Config`] |
//! | [`policy`] | which buckets, subjects and URLs a workload may use |
//! | [`kv`], [`objects`], [`messaging`], [`http`] | the four traits, each with its backends |
//! | [`memory`], [`nats`] | ready-made sets of backends |
//! | [`nats_server`] | a local nats-server process for development and tests |

pub mod http;
pub mod kv;
pub mod memory;
pub mod messaging;
pub mod nats;
pub mod nats_server;
pub mod objects;
pub mod policy;
pub mod services;

mod error;
mod names;
mod time;

pub use names::{InvalidPattern, SubjectPattern};
pub use policy::Policy;
pub use services::{Backends, Config, Services};
