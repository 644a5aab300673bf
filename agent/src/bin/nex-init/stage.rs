//! From the initial RAM disk to the real root file system: mounts what every process needs, loads the kernel's modules and
//! moves into the read-only root on the first block device.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::finit_module;

use crate::during;

/// Where the image keeps the kernel's modules, in the RAM disk; they are loaded in the order of their names.
const MODULES: &str = "/modules";

/// The block device with the root file system.
const ROOT_DEVICE: &str = "/dev/vda";

/// Where it is mounted at first.
const NEW_ROOT: &str = "/newroot";

/// What it may be formatted as.
const ROOT_TYPES: [&str; 3] = ["squashfs", "erofs", "ext4"];

/// What is mounted besides.
const SYSTEM_MOUNTS: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// How long a device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(1);

/// Makes the machine usable, and the root file system `/`.
///
/// # Errors
/// What went wrong, with the file or device it was about.
pub(super) fn set() -> io::Result<()> {
    for (kind, target) in SYSTEM_MOUNTS {
        make_folder(target)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        match mount(kind, target, kind, flags, None) {
            // The kernel may have mounted devtmpfs by itself.
            Err(Errno::BUSY) => {}
            mounted => during(|| format!("mounting {kind} at {target}"), mounted)?,
        }
    }
    load_modules()?;
    wait_for("the root device", || Ok(Path::new(ROOT_DEVICE).exists().then_some(())))?;
    mount_root()?;
    // They occupy memory, and are of no further use.
    during(|| format!("removing {MODULES}"), remove_folder(MODULES))?;
    switch_root()
}

/// Looks for something until it is there.
///
/// # Errors
/// When it does not appear in time, or looking for it fails.
pub(super) fn wait_for<T>(what: &str, mut find: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    let until = Instant::now() + DEVICE_PATIENCE;
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        if Instant::now() >= until {
            let message = format!("{what} did not appear within {DEVICE_PATIENCE:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        sleep(DEVICE_POLL);
    }
}

fn make_folder(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => during(|| format!("making {path}"), made),
    }
}

fn remove_folder(path: &str) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn load_modules() -> io::Result<()> {
    let entries = match fs::read_dir(MODULES) {
        Ok(entries) => entries,
        // A kernel that has everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return during(|| format!("reading {MODULES}"), Err(error)),
    };
    let mut modules = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .filter(|path| {
            path.as_ref()
                .map_or(true, |path| path.extension().is_some_and(|e| e == "ko"))
        })
        .collect::<io::Result<Vec<PathBuf>>>()?;
    modules.sort();
    for module in modules {
        let what = || format!("loading {}", module.display());
        let file = during(what, fs::File::open(&module))?;
        match finit_module(&file, c"", 0) {
            // It is built in, or was loaded already.
            Err(Errno::EXIST) => {}
            loaded => during(what, loaded)?,
        }
    }
    Ok(())
}

fn mount_root() -> io::Result<()> {
    make_folder(NEW_ROOT)?;
    let mut refusals = Vec::new();
    for kind in ROOT_TYPES {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        match mount(ROOT_DEVICE, NEW_ROOT, kind, flags, None) {
            Ok(()) => return Ok(()),
            Err(error) => refusals.push(format!("as {kind}: {error}")),
        }
    }
    let refusals = refusals.join(", ");
    Err(io::Error::other(format!("{ROOT_DEVICE} cannot be mounted {refusals}")))
}

fn switch_root() -> io::Result<()> {
    for (_, target) in SYSTEM_MOUNTS {
        let inside = format!("{NEW_ROOT}{target}");
        during(|| format!("moving {target} to {inside}"), mount_move(target, &inside))?;
    }
    let switched = (|| {
        rustix::process::chdir(NEW_ROOT)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    })();
    during(|| format!("making {NEW_ROOT} the root"), switched)
}
