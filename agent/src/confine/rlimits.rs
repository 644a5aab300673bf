//! Limits on resources that an agent has no use for, or little. Address space is not among them: V8 reserves more of it
//! than any host has memory.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{ConfineError, Layer};

/// Descriptors. An agent has its link, its log and a handful of the runtime's own.
const DESCRIPTORS: u64 = 256;

/// Threads: one for each instance that is awake, see `max_instances`, and room for those that are about to end.
const THREADS: u64 = 8_192;

const LIMITS: [(Resource, &str, u64); 8] = [
    (Resource::Core, "core dumps", 0),
    (Resource::Fsize, "file sizes", 0),
    (Resource::Memlock, "locked memory", 0),
    (Resource::Msgqueue, "message queues", 0),
    (Resource::Nice, "priority", 0),
    (Resource::Rtprio, "real-time priority", 0),
    (Resource::Locks, "file locks", 0),
    (Resource::Nofile, "descriptors", DESCRIPTORS),
];

/// Sets the limits. A log that is a file is then lost, but does not end the process. The number of threads is limited in a user namespace only: elsewhere the kernel counts those of all
/// processes of the user.
pub(super) fn apply(in_user_namespace: bool) -> Result<(), ConfineError> {
    for (resource, name, value) in LIMITS {
        lower(resource, name, value)?;
    }
    ignore_oversized_files();
    if in_user_namespace {
        lower(Resource::Nproc, "threads", THREADS)?;
    }
    Ok(())
}

fn lower(resource: Resource, name: &str, value: u64) -> Result<(), ConfineError> {
    let value = getrlimit(resource).maximum.map_or(value, |most| most.min(value));
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, limit).map_err(|source| ConfineError::step(Layer::Rlimits, format!("limit {name}"), source))
}

#[allow(unsafe_code, reason = "std has no signal handlers")]
fn ignore_oversized_files() {
    // SAFETY: no handler is installed, and no memory touched.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
