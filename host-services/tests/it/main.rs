//! The host services from outside: one suite of behaviour that every backend passes, then what only some have.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests fail by panicking"
)]

mod http;
mod jetstream;
mod nats_server;
mod suite;
mod switches;
mod world;
