//! Agents that confine themselves, and try to break out: with the program `escape_probe`, whose attempts succeed where
//! nothing confines them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "confine/attempts.rs"]
mod attempts;
#[path = "confine/escape.rs"]
mod escape;
#[path = "support/escape_probe.rs"]
mod escape_probe;
#[path = "confine/lifecycle.rs"]
mod lifecycle;
#[allow(dead_code, reason = "other tests need more of it")]
#[path = "support/link.rs"]
mod link;
#[path = "confine/options.rs"]
mod options;
