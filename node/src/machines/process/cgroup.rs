//! Control groups: one for each machine in each hierarchy that limits something of it. Version 2 where the controllers
//! are there, else version 1 for processes and processors. The controller for memory of version 1 is not used: it is
//! deprecated, and slow to let go of what it has counted.
//!
//! A group is called `nex-<PID of the node>-<machine>`, so that those which a killed node leaves behind can be told.

pub(super) mod hierarchy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use self::hierarchy::{Controller, Version};
use super::config::ProcessLimits;
use crate::machines::MachineError;

const PREFIX: &str = "nex-";

/// How long the kernel may take to empty a group whose processes were killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Period in which processor time is counted, in microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// Where groups are made, and what is written into them.
#[derive(Debug, Default)]
pub(super) struct Hierarchies {
    places: Vec<Place>,
    /// Memory has a limit and no controller.
    memory_is_watched: bool,
}

#[derive(Debug)]
struct Place {
    parent: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
    /// Files of the group, and what to write. The last may be missing.
    settings: Vec<(&'static str, String)>,
}

impl Hierarchies {
    /// Looks for what can hold the limits, and tries whether the node may make groups there.
    pub(super) fn find(parent: Option<&Path>, limits: &ProcessLimits) -> Self {
        let mut wanted = Vec::new();
        wanted.extend(limits.memory_bytes.map(|_| Controller::Memory));
        wanted.extend(limits.pids.map(|_| Controller::Pids));
        wanted.extend(limits.cpus.map(|_| Controller::Cpu));
        let mut places: Vec<Place> = Vec::new();
        for controller in wanted {
            let Some((version, parent)) = hierarchy::of(controller, parent) else {
                tracing::warn!(%controller, "no control group can hold this limit here");
                continue;
            };
            if let Err(error) = may_make_groups(&parent) {
                tracing::warn!(%controller, parent = %parent.display(), %error, "the node may make no control groups");
                continue;
            }
            let settings = settings(controller, version, limits);
            match places.iter_mut().find(|place| place.parent == parent) {
                Some(place) => {
                    place.controllers.push(controller);
                    place.settings.extend(settings);
                }
                None => places.push(Place {
                    parent,
                    version,
                    controllers: vec![controller],
                    settings,
                }),
            }
        }
        let mut found = Self {
            places,
            memory_is_watched: false,
        };
        found.memory_is_watched = limits.memory_bytes.is_some() && !found.limits_memory();
        found
    }

    /// Whether the kernel limits memory.
    pub(super) fn limits_memory(&self) -> bool {
        let mut controllers = self.places.iter().flat_map(|place| &place.controllers);
        controllers.any(|controller| *controller == Controller::Memory)
    }

    /// What is limited, and by what.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let of_place = |place: &Place| {
            let version = place.version;
            let name = move |controller: &Controller| format!("{controller}_cgroup_{version}");
            place.controllers.iter().map(name).collect::<Vec<_>>()
        };
        let watched = self.memory_is_watched.then(|| "memory_watch".to_owned());
        self.places.iter().flat_map(of_place).chain(watched)
    }

    /// Makes the groups of a machine.
    pub(super) fn make(&self, id: &str) -> Result<Cgroups, MachineError> {
        let id = id.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
        let mut groups = Cgroups::default();
        for place in &self.places {
            let folder = place.parent.join(format!("{PREFIX}{}-{id}", std::process::id()));
            let error = |path: &Path, source| MachineError::File {
                path: path.to_owned(),
                source,
            };
            fs::create_dir(&folder).map_err(|source| error(&folder, source))?;
            // From now on it is removed whatever happens.
            groups.folders.push(folder.clone());
            for (file, value) in &place.settings {
                let file = folder.join(file);
                match fs::write(&file, value) {
                    // Without swap there is nothing to limit.
                    Err(source) if source.kind() == io::ErrorKind::NotFound && file.ends_with(SWAP_MAX) => {}
                    written => written.map_err(|source| error(&file, source))?,
                }
            }
        }
        Ok(groups)
    }
}

const SWAP_MAX: &str = "memory.swap.max";

fn settings(controller: Controller, version: Version, limits: &ProcessLimits) -> Vec<(&'static str, String)> {
    let memory = limits.memory_bytes.unwrap_or(u64::MAX);
    let pids = limits.pids.unwrap_or(u64::MAX);
    // The kernel takes no less than 1 ms.
    let quota = (limits.cpus.unwrap_or(f64::MAX) * CPU_PERIOD as f64).max(1000.0) as u64;
    match (controller, version) {
        (Controller::Memory, _) => vec![("memory.max", memory.to_string()), (SWAP_MAX, "0".to_owned())],
        (Controller::Pids, _) => vec![("pids.max", pids.to_string())],
        (Controller::Cpu, Version::Two) => vec![("cpu.max", format!("{quota} {CPU_PERIOD}"))],
        (Controller::Cpu, Version::One) => vec![
            ("cpu.cfs_period_us", CPU_PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ],
    }
}

fn may_make_groups(parent: &Path) -> io::Result<()> {
    let folder = parent.join(format!("{PREFIX}{}-probe", std::process::id()));
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::remove_dir(&folder),
    }
}

/// The groups of one machine. Dropping them kills what is in them and removes them; it may block for a moment if there
/// is something.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    folders: Vec<PathBuf>,
}

impl Cgroups {
    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for folder in &self.folders {
            if ran_out_of_memory(folder) {
                tracing::warn!(group = %folder.display(), "a machine took more memory than it may, and was killed");
            }
            if let Err(error) = remove(folder) {
                tracing::warn!(group = %folder.display(), %error, "a control group stays behind");
            }
        }
    }
}

/// Whether the kernel has killed something in a group for want of memory.
fn ran_out_of_memory(folder: &Path) -> bool {
    let events = fs::read_to_string(folder.join("memory.events")).unwrap_or_default();
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.is_some_and(|kills| kills != "0")
}

/// Kills all processes in a group and removes it.
fn remove(folder: &Path) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < give_up => {
                kill_all(folder);
                // The kernel tells nobody when the last of them is gone, not in version 1.
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
}

fn kill_all(folder: &Path) {
    if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
        _ = kill_process(pid, Signal::KILL);
    }
}

/// Removes the groups of nodes that are gone, with all that runs in them, wherever this node would make its own. Returns
/// how many there were.
pub(crate) fn remove_stale_cgroups(parent: Option<&Path>, is_alive: impl Fn(u32) -> bool) -> usize {
    let mut removed = 0;
    for parent in hierarchy::parents(parent) {
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(node) = name.to_str().and_then(node_of) else {
                continue;
            };
            if is_alive(node) {
                continue;
            }
            match remove(&entry.path()) {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(group = %entry.path().display(), %error, "a control group of another node stays behind");
                }
            }
        }
    }
    removed
}

/// The node that made a group, by the group's name.
fn node_of(name: &str) -> Option<u32> {
    let (node, _machine) = name.strip_prefix(PREFIX)?.split_once('-')?;
    node.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{node_of, ran_out_of_memory};

    #[test]
    fn a_kill_for_want_of_memory_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!ran_out_of_memory(folder.path()), "nothing limits memory");
        for (kills, expected) in [(0, false), (1, true)] {
            let events = format!("low 0\nhigh 0\nmax 7\noom 1\noom_kill {kills}\noom_group_kill 0\n");
            std::fs::write(folder.path().join("memory.events"), events).unwrap();
            assert_eq!(ran_out_of_memory(folder.path()), expected);
        }
    }

    #[test]
    fn only_groups_of_nodes_are_taken_for_such() {
        assert_eq!(node_of("nex-123-a1b2"), Some(123));
        for other in ["nex-123", "nex-abc-1", "next-123-a", "nex--1", "user.slice"] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }
}
