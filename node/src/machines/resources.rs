//! The resource folder: where a node finds what its machines need and did not come with nex. `nex preflight` fills it.
//!
//! ```text
//! qemu/       QEMU's packages, unpacked
//! kernel/     a kernel's package, unpacked
//! image/      the guest image
//! templates/  machines that were booted once, to be restored
//! bin/        programs put there by hand: firecracker and jailer
//! machines/   Firecracker's machines while they run
//! ```

mod qemu;
mod replacement;

use std::path::{Path, PathBuf};

pub use self::qemu::{OLDEST_QEMU, Qemu, QemuVersion};
pub(crate) use self::replacement::{Lock, Replacement};

/// A resource folder, which need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    folder: PathBuf,
}

impl Resources {
    /// The folder at this path.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where QEMU's packages are unpacked to.
    #[must_use]
    pub fn qemu_folder(&self) -> PathBuf {
        self.folder.join("qemu")
    }

    /// Where the kernel's package is unpacked to.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// The guest image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Templates of machines.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.folder.join("templates")
    }

    /// Runtime folders of nodes whose machines must be on the file system of the image.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.folder.join("machines")
    }

    /// Programs put there by hand.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Where a program is looked for, in this order: the folders of the configuration, [`programs`](Self::programs), and
    /// `PATH`. Only files that are there are listed.
    #[must_use]
    pub fn find_program(&self, name: &str, bin_path: &[PathBuf]) -> Vec<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = bin_path.iter().cloned().chain([self.programs()]);
        folders
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(name))
            .filter(|file| file.is_file())
            .collect()
    }
}
