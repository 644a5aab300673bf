//! Where the node may make control groups: found in what the kernel says of this process.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What limits something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "v1",
            Self::Two => "v2",
        })
    }
}

/// The group below which to make groups that a controller limits, if there is one. `chosen` is one of version 2.
pub(super) fn of(controller: Controller, chosen: Option<&Path>) -> Option<(Version, PathBuf)> {
    let of_process = OfProcess::read();
    let two = chosen.map(Path::to_path_buf).or_else(|| of_process.own(None));
    if let Some(parent) = two
        && enable(&parent, controller)
    {
        return Some((Version::Two, parent));
    }
    match controller {
        Controller::Memory => None,
        Controller::Pids | Controller::Cpu => of_process.own(Some(controller)).map(|parent| (Version::One, parent)),
    }
}

/// All groups below which groups may have been made.
pub(super) fn parents(chosen: Option<&Path>) -> Vec<PathBuf> {
    let of_process = OfProcess::read();
    let mut parents: Vec<PathBuf> = chosen.into_iter().map(Path::to_path_buf).collect();
    parents.extend(of_process.own(None));
    for controller in Controller::ALL {
        if controller != Controller::Memory {
            parents.extend(of_process.own(Some(controller)));
        }
    }
    parents.sort_unstable();
    parents.dedup();
    parents
}

/// The limits of memory, in bytes, of the groups that this process is in.
pub(in crate::machines::process) fn memory_limits() -> Vec<u64> {
    let of_process = OfProcess::read();
    let hierarchies = [
        (of_process.own(None), "memory.max"),
        (of_process.own(Some(Controller::Memory)), "memory.limit_in_bytes"),
    ];
    let mut limits = Vec::new();
    for (own, file) in hierarchies {
        // What is no number is no limit, and what has no such file is no group.
        let groups = own.iter().flat_map(|own| own.ancestors());
        limits.extend(groups.filter_map(|group| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok()));
    }
    limits
}

/// Has a controller of version 2 work for the groups below a group, if it does not already.
fn enable(parent: &Path, controller: Controller) -> bool {
    let has = |file: &str| {
        let list = fs::read_to_string(parent.join(file)).unwrap_or_default();
        list.split_ascii_whitespace().any(|name| name == controller.as_str())
    };
    if has("cgroup.subtree_control") {
        return true;
    }
    // The kernel refuses that for a group with processes of its own, as the node's may be.
    has("cgroup.controllers")
        && fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
            .inspect_err(|error| {
                tracing::warn!(parent = %parent.display(), %controller, %error, "a controller cannot be enabled for the groups of machines");
            })
            .is_ok()
}

/// What the kernel says of this process's groups.
struct OfProcess {
    /// `/proc/self/cgroup`
    groups: String,
    /// `/proc/self/mountinfo`
    mounts: String,
}

impl OfProcess {
    fn read() -> Self {
        let read = |file: &str| fs::read_to_string(Path::new("/proc/self").join(file)).unwrap_or_default();
        Self {
            groups: read("cgroup"),
            mounts: read("mountinfo"),
        }
    }

    /// The folder of the process's own group: in the hierarchy of version 1 with that controller, or of version 2.
    fn own(&self, controller: Option<Controller>) -> Option<PathBuf> {
        let path = self.groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let is_it = match controller {
                Some(controller) => controllers.split(',').any(|name| name == controller.as_str()),
                None => controllers.is_empty(),
            };
            is_it.then_some(path)
        })?;
        let (root, point) = self.mounts.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut file_system = file_system.split(' ');
            let is_it = match controller {
                Some(controller) => {
                    file_system.next() == Some("cgroup")
                        && file_system
                            .nth(1)?
                            .split(',')
                            .any(|option| option == controller.as_str())
                }
                None => file_system.next() == Some("cgroup2"),
            };
            let mut mount = mount.split(' ').skip(3);
            is_it.then_some((mount.next()?, mount.next()?))
        })?;
        // The mount may show a part of the hierarchy only.
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn own_groups_are_found_in_both_versions_and_in_containers() {
        let of_process = OfProcess {
            groups: "8:pids:/a/b\n5:cpu,cpuacct:/\n0::/user.slice/x\n".to_owned(),
            mounts: "24 1 0:22 / /proc rw - proc proc rw\n\
                     36 32 0:31 /a /sys/fs/cgroup/pids rw,nosuid shared:9 - cgroup cgroup rw,pids\n\
                     37 32 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     38 32 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
                .to_owned(),
        };
        let own = |controller| of_process.own(controller);
        assert_eq!(own(Some(Controller::Pids)).unwrap(), Path::new("/sys/fs/cgroup/pids/b"));
        assert_eq!(
            own(Some(Controller::Cpu)).unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(own(Some(Controller::Memory)), None);
        assert_eq!(own(None).unwrap(), Path::new("/sys/fs/cgroup/unified/user.slice/x"));
    }
}
