//! Measuring, for `nex bench` and for the project's own benchmarks: load generators that check every reply, statistics
//! that say how sure they are, and a description of the machine to judge the figures by.
//!
//! The rules, which hold for whatever is measured with this module:
//! - A reply that is an error, wrong or missing counts as the longest time that was waited. It is never left out.
//! - In an open loop, latency counts from the time a request was due, not from when a busy generator got to send it.
//! - What is told of several repeats is their median, with a 95 % confidence interval.

pub mod body;
pub mod engine;
pub mod load;
pub mod machine;
pub mod nats;
pub mod pace;
pub mod payload;
pub mod plot;
pub mod process;
pub mod stats;

pub use load::{Answer, Ask, ClosedLoop, Failures, Generator, LoadError, OpenLoop, Target};
pub use machine::Machine;
pub use payload::{Expected, Payload, Requests};
pub use stats::{Estimate, Latencies};
