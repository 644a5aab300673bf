//! Virtual machines by QEMU, as the driver starts, copies, pauses and ends them, and what code that has broken out of V8
//! finds inside. Real machines: emulated where KVM does not work.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    unreachable_pub,
    reason = "tests fail by panicking, and show figures; their modules are shared by path"
)]

#[path = "qemu/boundary.rs"]
mod boundary;
#[path = "qemu/copies.rs"]
mod copies;
#[path = "../../agent/tests/support/escape_probe.rs"]
mod escape_probe;
#[path = "qemu/lab.rs"]
mod lab;
#[path = "qemu/life.rs"]
mod life;
#[path = "../../agent/tests/support/link.rs"]
mod link;
#[path = "machines/resources.rs"]
mod resources;
