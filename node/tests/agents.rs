//! The agent pool with real agent processes: toys that do what a test needs, hostile ones, and V8.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "tests fail by panicking; their modules are shared by path"
)]

#[path = "agents/binary.rs"]
mod binary;
#[path = "agents/hostile.rs"]
mod hostile;
#[path = "agents/hostility.rs"]
mod hostility;
#[path = "agents/javascript.rs"]
mod javascript;
#[path = "agents/lifecycle.rs"]
mod lifecycle;
#[path = "agents/recovery.rs"]
mod recovery;
#[path = "agents/support.rs"]
mod support;
#[path = "../../agent/tests/support/toy.rs"]
mod toy;
