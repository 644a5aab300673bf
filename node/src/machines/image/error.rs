//! What goes wrong with guest images.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why an image cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Something it needs is not there.
    #[error("{what} is missing: {path}: {hint}", path = path.display())]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// The image is not what its manifest says, or not what this node boots.
    #[error("the guest image {folder} cannot be used: {reason}; `nex preflight` or `nex rootfs` makes a new one", folder = folder.display())]
    Broken {
        /// The image.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file or folder.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program that is to run in a guest is not one.
    #[error("{path} cannot run in a guest: {reason}", path = path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A program needs a shared library that this machine does not have.
    #[error("the shared library {name}, which {needed_by} needs, was not found; looked in {searched}", needed_by = needed_by.display())]
    Library {
        /// Its name.
        name: String,
        /// Who needs it.
        needed_by: PathBuf,
        /// The folders, separated by commas.
        searched: String,
    },
    /// The kernel or one of its modules.
    #[error("the kernel {path} cannot be used: {reason}", path = path.display())]
    Kernel {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A package of the distribution.
    #[error("the package {path} cannot be unpacked: {reason}", path = path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that the user wants in the image.
    #[error("cannot add `{addition}` to the image: {reason}")]
    Addition {
        /// As the user wrote it.
        addition: String,
        /// What is wrong.
        reason: String,
    },
    /// The user's script failed.
    #[error("the script {path} failed with {status}{output}", path = path.display())]
    Script {
        /// The script.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote, on lines of their own.
        output: String,
    },
    /// The root file system holds something that it must not, or lacks something that it must hold.
    #[error("the root file system cannot be made: {0}")]
    Rootfs(String),
    /// The folder to write to holds something else.
    #[error("{path} is there already and is no guest image; remove it, or choose another folder", path = path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
}

impl ImageError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn broken(folder: &Path, reason: String) -> Self {
        Self::Broken {
            folder: folder.to_owned(),
            reason,
        }
    }

    pub(super) fn kernel(path: &Path, reason: impl Into<String>) -> Self {
        Self::Kernel {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn program(path: &Path, reason: impl Into<String>) -> Self {
        Self::Program {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
