//! What runs in a virtual machine beside the agent: `nex-init`, its first process, and the [`control`] protocol by which
//! the node on the host tells it what to do.
//!
//! A machine has no network. All it has are byte streams to its host: one for control, one that becomes the agent's link,
//! and one for logs.

pub mod control;
