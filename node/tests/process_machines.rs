//! Confined processes at the edge: more memory, threads, processes and disk than they may have, hosts without room, hundreds
//! of them one after the other, and nodes that are killed.
//!
//! What is counted in the process that has the machines (descriptors, say) is counted in one of its own, which is this
//! program started again for one test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    unreachable_pub,
    reason = "tests fail by panicking, and tell figures; their modules are shared by path"
)]

#[path = "agents/binary.rs"]
mod binary;
#[path = "../../agent/tests/support/escape_probe.rs"]
mod escape_probe;
#[path = "process_machines/full_disk.rs"]
mod full_disk;

#[path = "process_machines/killed_node.rs"]
mod killed_node;
#[path = "process_machines/lab.rs"]
mod lab;
#[path = "process_machines/limits.rs"]
mod limits;
#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../../agent/tests/support/link.rs"]
mod link;
#[path = "process_machines/rounds.rs"]
mod rounds;
mod support;
