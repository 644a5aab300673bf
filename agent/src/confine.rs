//! What an agent puts on itself before it runs anybody's code: layers that each take something away from the process, so
//! that code which breaks out of V8 finds nothing to break into.
//!
//! - `namespaces`: the process that was started becomes a launcher. It waits for the agent, which runs below a PID 1 of
//!   its own, sees no file but its own binary, libraries and a few devices, no process but itself, and no network.
//! - `landlock`: the kernel lets it open those files only, and bind or connect nothing.
//! - `seccomp`: most system calls do not exist for it, and those that only an attack makes end it.
//! - `rlimits`: it can write no file, dump no core, and have few descriptors.
//!
//! `enter` comes first in the program. With namespaces it starts the program again, inside, where it is called once
//! more for the other layers.

mod bounding_set;
mod failure;
mod files;
mod inside;
mod landlock;
mod launcher;
mod plan;
mod privileges;
mod probe;
mod rlimits;
mod seccomp;

use std::fmt;
use std::io;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use self::failure::Failed;
pub(crate) use self::failure::exit;
use self::plan::{Plan, Purpose};
pub use self::probe::{LayerReport, Probe};

/// User and group of the agent as the host sees them, unless told otherwise: those that own nothing ("nobody").
const NOBODY: u32 = 65_534;

/// The name a program runs by inside its namespaces, which tells it that it is there.
const INSIDE: &str = "nex-agent [confined]";

/// One kind of confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Layer {
    /// User, PID, mount, network, IPC, UTS and cgroup namespaces of its own.
    Namespaces,
    /// Rules on files, TCP ports, abstract sockets and signals.
    Landlock,
    /// A filter on system calls.
    Seccomp,
    /// Limits on resources.
    Rlimits,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Namespaces, Self::Landlock, Self::Seccomp, Self::Rlimits];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Rlimits => "rlimits",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a process is to confine itself.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Confinement")]
pub struct ConfineOptions {
    /// Layers of confinement to put on before anything else; all must be available
    #[arg(long, value_name = "LAYERS", value_enum, value_delimiter = ',')]
    pub confine: Vec<Layer>,
    /// Control group to enter first of all; may be given more than once
    #[arg(long, value_name = "DIR")]
    pub cgroup: Vec<PathBuf>,
    /// User on this host that the agent ends up as when started as root
    #[arg(long, value_name = "UID", default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    pub confine_uid: u32,
    /// Group on this host that the agent ends up in when started as root
    #[arg(long, value_name = "GID", default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    pub confine_gid: u32,
    /// Print as JSON which layers this host gives, and why not the others, and exit
    #[arg(long)]
    pub probe_confinement: bool,
}

impl Default for ConfineOptions {
    fn default() -> Self {
        Self {
            confine: Vec::new(),
            cgroup: Vec::new(),
            confine_uid: NOBODY,
            confine_gid: NOBODY,
            probe_confinement: false,
        }
    }
}

impl ConfineOptions {
    /// Whether a layer is asked for.
    #[must_use]
    pub fn has(&self, layer: Layer) -> bool {
        self.confine.contains(&layer)
    }
}

/// Why a process is not confined as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// The control group could not be entered.
    #[error("control group {}: {source}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A step towards the layer failed.
    #[error("{layer}: {step}: {source}")]
    Step {
        /// Which layer.
        layer: Layer,
        /// What was being done.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not have the layer.
    #[error("{layer}: {reason}")]
    Unavailable {
        /// Which layer.
        layer: Layer,
        /// Why.
        reason: String,
    },
}

impl ConfineError {
    fn step(layer: Layer, step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Step {
            layer,
            step: step.into(),
            source: source.into(),
        }
    }
}

/// How the agent that a launcher waited for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Puts the layers on. Returns `None` in the process that is confined now, and how that process ended in the one that
/// launched it.
///
/// # Errors
/// [`ConfineError`]: the process must not go on.
pub(crate) fn enter(options: &ConfineOptions) -> Result<Option<Ended>, ConfineError> {
    let inside = std::env::args_os().next().is_some_and(|name| name == INSIDE);
    if !inside {
        for path in &options.cgroup {
            join(path)?;
        }
        if options.has(Layer::Namespaces) {
            return launcher::launch(Plan::new(options, Purpose::Agent)?).map(Some);
        }
    }
    if options.confine.is_empty() {
        return Ok(None);
    }
    if options.has(Layer::Rlimits) {
        rlimits::apply(inside)?;
    }
    if !inside {
        privileges::drop_root(options.confine_uid, options.confine_gid)
            .map_err(|source| ConfineError::step(options.confine[0], "give up root", source))?;
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(|source| ConfineError::step(options.confine[0], "give up new privileges", source))?;
    if options.has(Layer::Landlock) {
        landlock::apply()?;
    }
    if options.has(Layer::Seccomp) {
        seccomp::apply()?;
    }
    tracing::debug!(layers = ?options.confine, "confined");
    Ok(None)
}

/// Ends this process the way the agent ended.
pub(crate) fn end_like(ended: Ended) -> ! {
    match ended {
        Ended::Code(code) => exit(code),
        Ended::Signal(signal) => launcher::die_of(signal),
    }
}

/// Finds out which layers this host gives.
#[must_use]
pub fn probe(options: &ConfineOptions) -> Probe {
    Probe::run(options)
}

fn join(path: &std::path::Path) -> Result<(), ConfineError> {
    // 0 stands for the process that writes it.
    std::fs::write(path.join("cgroup.procs"), "0").map_err(|source| ConfineError::Cgroup {
        path: path.to_owned(),
        source,
    })
}

impl From<Failed> for ConfineError {
    fn from(failed: Failed) -> Self {
        Self::step(Layer::Namespaces, failed.step, failed.source)
    }
}
