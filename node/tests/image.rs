//! Guest images as their users meet them: `nex rootfs` and what is in its images, what it does when something is wrong, and
//! `nex preflight`. What needs QEMU and a real kernel takes them from the folder that `cargo xtask setup` fills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say why they were skipped"
)]

mod image {
    mod build;
    mod preflight;
    mod support;
}
