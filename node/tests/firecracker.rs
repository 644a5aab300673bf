//! The Firecracker driver against a stub of Firecracker and of its jailer, which are this program started again: they
//! keep to the documented API, refuse what the real ones refuse, and write down what they were asked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests fail by panicking and say why they are skipped; their modules are shared by path"
)]

#[path = "firecracker/boot.rs"]
mod boot;
#[path = "firecracker/failures.rs"]
mod failures;
#[path = "firecracker/jailer.rs"]
mod jailer;
#[path = "firecracker/lab.rs"]
mod lab;
#[path = "firecracker/life.rs"]
mod life;
#[path = "firecracker/real.rs"]
mod real;
#[path = "firecracker/stub.rs"]
mod stub;
#[path = "firecracker/templates.rs"]
mod templates;
#[path = "../../agent/tests/support/toy.rs"]
mod toy;
