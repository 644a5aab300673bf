//! The control plane over the wire: a real nats-server, real nodes, and an engine that needs no JavaScript, so that what
//! fails here is the node's fault.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

#[path = "control/harness.rs"]
mod harness;
#[path = "control/lifecycle.rs"]
mod lifecycle;
#[path = "control/limits.rs"]
mod limits;
#[path = "control/malformed_deploys.rs"]
mod malformed_deploys;
#[path = "control/malformed_others.rs"]
mod malformed_others;
#[path = "control/shapes.rs"]
mod shapes;
#[path = "control/triggers.rs"]
mod triggers;
#[path = "control/trust.rs"]
mod trust;
