//! Runs functions: engines, the seam to host services, and an in-process harness. Knows nothing of NATS or of the node.

pub mod engine;
pub mod harness;
pub mod host_services;
pub mod invocation;
pub mod log_limit;
pub mod logs;
pub mod v8;
