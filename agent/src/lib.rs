//! The agent: a process, confined or inside a machine, that runs functions for a node. It holds no credentials and needs
//! no network; all it has is the [`link`], and everything its functions ask for is a frame on it.

pub mod confine;
pub mod crash;
pub mod guest;
pub mod link;
pub mod process;
pub mod session;
