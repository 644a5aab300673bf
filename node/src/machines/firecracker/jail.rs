//! The folder of a machine, and the jail around it.
//!
//! With and without a jailer it is `<runtime_dir>/<name of the binary>/<id>/root`, where the jailer would make it, and the
//! process sees it as its root or its working directory. Everything in it has the same relative name for every machine,
//! so snapshots fit all of them. Files of the image and of templates are links: the page cache has them once. They belong
//! to root and are read-only, or are the jail's own copies if its user may not read them.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::process::Command;

use super::config::{FirecrackerConfig, JailerConfig};
use super::sweep::{CGROUP, remove_cgroup};
use crate::machines::MachineError;
use crate::machines::child::bare_command;

/// Names in a machine's folder.
pub(super) const KERNEL: &str = "vmlinux";
pub(super) const INITRD: &str = "initrd.cpio";
pub(super) const ROOTFS: &str = "rootfs.squashfs";
pub(super) const API: &str = "api.sock";
pub(super) const VSOCK: &str = "v.sock";
pub(super) const STATE: &str = "template.state";
pub(super) const MEMORY: &str = "template.memory";

/// What the state file of a snapshot may take beside the machine's memory, in bytes.
const MAX_STATE: u64 = 64 << 20;

/// Where the machines of one driver are.
#[derive(Debug)]
pub(super) struct Grounds {
    firecracker: PathBuf,
    /// With the jailer's user ids and, if machines get one, the control group that theirs are in.
    jailer: Option<(JailerConfig, Uids, Option<PathBuf>)>,
    runtime_dir: PathBuf,
    machines: PathBuf,
    /// Bytes a machine's process may write to a file.
    max_file: u64,
}

impl Grounds {
    /// Makes the folder for machines. The paths of the programs are absolute and without links.
    ///
    /// # Errors
    /// When the system refuses, or machines are to have control groups and there are none.
    pub(super) fn make(config: &FirecrackerConfig) -> Result<Self, MachineError> {
        let runtime_dir = &config.runtime_dir;
        private_folder(runtime_dir).map_err(at(runtime_dir))?;
        let runtime_dir = fs::canonicalize(runtime_dir).map_err(at(runtime_dir))?;
        let name = config.firecracker_bin.file_name().unwrap_or_default();
        let machines = runtime_dir.join(name);
        private_folder(&machines).map_err(at(&machines))?;
        let jailer = match &config.jailer {
            None => None,
            Some(jailer) => {
                let cgroup = match &jailer.cgroup {
                    Some(cgroup) if !cgroup.settings.is_empty() => Some(cgroup_root()?.join(&cgroup.parent)),
                    _ => None,
                };
                Some((jailer.clone(), Uids::new(jailer.uids.clone()), cgroup))
            }
        };
        Ok(Self {
            firecracker: config.firecracker_bin.clone(),
            jailer,
            runtime_dir,
            machines,
            max_file: (u64::from(config.memory_mib) << 20) + MAX_STATE,
        })
    }
}

/// A machine's folder. Dropping it removes it, with the machine's control group; its process must be gone by then.
#[derive(Debug)]
pub(super) struct Place {
    id: String,
    folder: PathBuf,
    root: PathBuf,
    /// Given back when all the rest is gone.
    uid: Option<u32>,
    grounds: Arc<Grounds>,
}

impl Place {
    /// Makes the folder, with links to these files. Blocks.
    ///
    /// # Errors
    /// When the id is not one Firecracker takes, all user ids are in use, or the system refuses; nothing is left then.
    pub(super) fn make(grounds: &Arc<Grounds>, id: &str, files: &[(&Path, &str)]) -> Result<Self, MachineError> {
        if !(1..=64).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(MachineError::Unsupported(format!(
                "`{id}` is no id for a machine; Firecracker takes 1 to 64 letters, digits and hyphens"
            )));
        }
        let folder = grounds.machines.join(id);
        let root = folder.join("root");
        let mut builder = DirBuilder::new();
        // Two machines with one id would share everything.
        builder.mode(0o700).create(&folder).map_err(at(&folder))?;
        let mut place = Self {
            id: id.to_owned(),
            folder,
            root,
            uid: None,
            grounds: grounds.clone(),
        };
        builder.create(&place.root).map_err(at(&place.root))?;
        if let Some((_, uids, cgroup)) = &grounds.jailer {
            place.uid = Some(uids.lend()?);
            if let Some(parent) = cgroup {
                let note = place.folder.join(CGROUP);
                fs::write(&note, parent.join(id).as_os_str().as_encoded_bytes()).map_err(at(&note))?;
            }
        }
        for (file, name) in files {
            place.add(file, name).map_err(at(file))?;
        }
        Ok(place)
    }

    fn add(&self, file: &Path, name: &str) -> io::Result<()> {
        let to = self.root.join(name);
        let Some(uid) = self.uid else {
            return symlink(file, to);
        };
        // The owner of a link owns what it links to, so the owner stays root.
        let readable = fs::metadata(file)?.permissions().mode() & 0o004 != 0;
        if readable && fs::hard_link(file, &to).is_ok() {
            return Ok(());
        }
        fs::copy(file, &to)?;
        fs::set_permissions(&to, Permissions::from_mode(0o400))?;
        chown(&to, Some(uid), Some(uid))
    }

    /// What to start for the machine's process.
    pub(super) fn command(&self) -> Command {
        let Grounds {
            firecracker,
            runtime_dir,
            max_file,
            ..
        } = &*self.grounds;
        let firecracker_args = ["--api-sock", API, "--level", "Warning", "--show-level"];
        let Some((uid, (jailer, _, cgroup))) = self.uid.zip(self.grounds.jailer.as_ref()) else {
            let mut command = bare_command(firecracker);
            command.args(["--id", &self.id]).args(firecracker_args);
            command.current_dir(&self.root);
            return command;
        };
        let mut command = bare_command(&jailer.jailer_bin);
        command.args(["--id", &self.id]);
        command.arg("--exec-file").arg(firecracker);
        command.args(["--uid", &uid.to_string(), "--gid", &uid.to_string()]);
        command.arg("--chroot-base-dir").arg(runtime_dir);
        if let Some(settings) = &jailer.cgroup
            && cgroup.is_some()
        {
            command.args(["--cgroup-version", "2", "--parent-cgroup", &settings.parent]);
            for (file, value) in &settings.settings {
                command.args(["--cgroup", &format!("{file}={value}")]);
            }
        }
        command.args(["--resource-limit", &format!("no-file={}", jailer.max_files)]);
        command.args(["--resource-limit", &format!("fsize={max_file}")]);
        command.arg("--").args(firecracker_args);
        command
    }

    fn remove_folder(&self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(machine = self.id, %error, folder = %self.folder.display(), "a machine's folder is left");
        }
    }

    /// Where the process sees its files.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((_, uids, cgroup)) = &self.grounds.jailer {
            if let Some(parent) = cgroup
                && let Err(error) = remove_cgroup(&parent.join(&self.id))
            {
                tracing::warn!(machine = self.id, %error, "a machine's cgroup is left");
            }
            // Its files go first: they are readable for whoever has the id next.
            self.remove_folder();
            if let Some(uid) = self.uid {
                uids.give_back(uid);
            }
        } else {
            self.remove_folder();
        }
    }
}

/// Moves the files of a snapshot out of a machine's folder into a template's, for root to have and everybody to read who
/// gets at them, and nobody to write. Blocks.
pub(super) fn keep_snapshot(root: &Path, template: &Path) -> Result<(), MachineError> {
    private_folder(template).map_err(at(template))?;
    for name in [STATE, MEMORY] {
        let (from, to) = (root.join(name), template.join(name));
        let moved = match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(&from, &to).map(drop),
            moved => moved,
        };
        moved.map_err(at(&from))?;
        if rustix::process::geteuid().is_root() {
            chown(&to, Some(0), Some(0)).map_err(at(&to))?;
        }
        fs::set_permissions(&to, Permissions::from_mode(0o444)).map_err(at(&to))?;
    }
    Ok(())
}

fn at(path: &Path) -> impl Fn(io::Error) -> MachineError {
    move |source| MachineError::File {
        path: path.to_owned(),
        source,
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// User ids, each lent to one machine at a time; the next one is the one that was not used for longest.
#[derive(Debug)]
struct Uids {
    range: RangeInclusive<u32>,
    state: Mutex<Lent>,
}

#[derive(Debug)]
struct Lent {
    /// With what keeps other nodes of this host from lending the same: a socket with its name, which no two can have, and
    /// which the kernel takes back from a node that is killed.
    lent: HashMap<u32, UnixListener>,
    next: u32,
}

/// Makes a user id this node's, unless it is another's already.
fn claim(uid: u32) -> io::Result<Option<UnixListener>> {
    let name = SocketAddr::from_abstract_name(format!("nex-machine-uid-{uid}"))?;
    match UnixListener::bind_addr(&name) {
        Ok(claimed) => Ok(Some(claimed)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

impl Uids {
    fn new(range: RangeInclusive<u32>) -> Self {
        let state = Mutex::new(Lent {
            lent: HashMap::new(),
            next: *range.start(),
        });
        Self { range, state }
    }

    fn lend(&self) -> Result<u32, MachineError> {
        let Lent { lent, next } = &mut *self.state.lock();
        let (first, last) = (*self.range.start(), *self.range.end());
        for uid in (*next..=last).chain(first..*next) {
            if lent.contains_key(&uid) {
                continue;
            }
            let claimed = claim(uid).map_err(|error| {
                MachineError::Unsupported(format!("the user id {uid} cannot be claimed for a machine: {error}"))
            })?;
            if let Some(claimed) = claimed {
                lent.insert(uid, claimed);
                *next = if uid == last { first } else { uid + 1 };
                return Ok(uid);
            }
        }
        Err(MachineError::Unsupported(format!(
            "all user ids for machines, {first} to {last}, are in use"
        )))
    }

    fn give_back(&self, uid: u32) {
        self.state.lock().lent.remove(&uid);
    }
}

/// Where control groups of version 2 are, found as the jailer finds it.
fn cgroup_root() -> Result<PathBuf, MachineError> {
    let mounts = Path::new("/proc/mounts");
    let text = fs::read_to_string(mounts).map_err(at(mounts))?;
    let mut fields = text.lines().map(|line| line.split(' '));
    let root = fields.find_map(|mut fields| {
        let (folder, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder))
    });
    root.ok_or_else(|| {
        MachineError::Unsupported("machines are to have a cgroup, and this host has none of version 2".to_owned())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn no_two_machines_share_a_user_and_the_last_used_comes_last() {
        let uids = Uids::new(10..=12);
        assert_eq!([10, 11].map(|_| uids.lend().unwrap()), [10, 11]);
        uids.give_back(10);
        assert_eq!(uids.lend().unwrap(), 12);
        assert_eq!(uids.lend().unwrap(), 10);
        let full = uids.lend().unwrap_err();
        assert!(full.to_string().contains("10 to 12"), "{full}");
        uids.give_back(11);
        assert_eq!(uids.lend().unwrap(), 11);
    }

    #[test]
    fn no_two_nodes_use_the_same_user() {
        let (one, other) = (Uids::new(20..=21), Uids::new(20..=21));
        assert_eq!((one.lend().unwrap(), other.lend().unwrap()), (20, 21));
        assert!(one.lend().is_err());
        drop(other);
        assert_eq!(one.lend().unwrap(), 21);
    }

    fn grounds(folder: &Path) -> Arc<Grounds> {
        let config = FirecrackerConfig {
            firecracker_bin: "/bin/firecracker".into(),
            ..FirecrackerConfig::new("/image", folder)
        };
        Arc::new(Grounds::make(&config).unwrap())
    }

    #[test]
    fn a_machine_has_its_folder_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let here = grounds(folder.path());
        let place = Place::make(&here, "a", &[(Path::new("/dev/null"), KERNEL)]).unwrap();
        let twice = Place::make(&here, "a", &[]).unwrap_err();
        assert!(twice.to_string().contains("exists"), "{twice}");
        let root = place.root().to_owned();
        assert!(root.join(KERNEL).exists());
        drop(place);
        assert_eq!(fs::read_dir(folder.path().join("firecracker")).unwrap().count(), 0);
    }

    #[test]
    fn refuses_ids_that_firecracker_would() {
        let folder = tempfile::tempdir().unwrap();
        let here = grounds(folder.path());
        for id in ["", "a/b", "..", "a_b", &"a".repeat(65)] {
            let error = Place::make(&here, id, &[]).unwrap_err().to_string();
            assert!(error.contains("no id"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path().join("firecracker")).unwrap().count(), 0);
    }
}
