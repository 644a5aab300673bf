//! What an agent and its node have to do with a virtual machine: the [`control`] protocol by which the node tells the
//! machine's first process, `nex-init`, what to do, and the way by which the agent gets its link from it.
//!
//! `nex-init` itself is `bin/nex-init`; it compiles these files too, because with the whole library it would carry V8.

pub mod control;
pub(crate) mod handover;
