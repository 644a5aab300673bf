//! The guest image: what virtual machines boot. A folder with an uncompressed kernel, an initial RAM disk around `nex-init`,
//! a read-only root file system around `nex-agent`, and a manifest that says what they were made of.
//!
//! [`Recipe::build`] makes it without root, Docker or mounts, and the same ingredients always give the same bytes.
//! [`GuestImage::open`] checks one before it is booted.

mod build;
mod compression;
mod cpio;
mod elf;
mod error;
mod kernel;
mod modules;
pub(crate) mod package;
mod squashfs;
mod staging;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::build::{Recipe, find_init_bin};
pub use self::error::ImageError;
pub use self::staging::Addition;

/// Version of the folder's layout and of what `nex-init` expects of it; a node boots no other.
pub const FORMAT: u32 = 1;

const MANIFEST: &str = "image.json";
const VMLINUX: &str = "vmlinux";
const INITRD: &str = "initrd.cpio";
const ROOTFS: &str = "rootfs.squashfs";

/// The files that machines boot.
const FILES: [&str; 3] = [VMLINUX, INITRD, ROOTFS];

/// What an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// Version of the `nex` that made it.
    pub nex_version: String,
    /// Architecture, as `uname -m` says it.
    pub architecture: String,
    /// Release of the kernel, such as `6.1.0-57-cloud-amd64`.
    pub kernel_version: String,
    /// Modules in the order in which they are loaded.
    pub modules: Vec<String>,
    /// SHA-256 of `nex-agent`.
    pub agent_sha256: String,
    /// SHA-256 of `nex-init`.
    pub init_sha256: String,
    /// Paths that the user added, and the names of scripts that were run: who makes the image anew has to repeat them.
    pub customised: Vec<String>,
    /// The files of the image.
    pub files: BTreeMap<String, FileSummary>,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSummary {
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// An image that has been checked.
#[derive(Debug, Clone)]
pub struct GuestImage {
    folder: PathBuf,
    manifest: Manifest,
    id: String,
}

impl GuestImage {
    /// Checks that the image is there, complete and undamaged; reads all of it.
    ///
    /// # Errors
    /// [`ImageError::Missing`], [`ImageError::Broken`] and [`ImageError::File`], each with what to run.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        let (manifest, id) = read_manifest(folder)?;
        for name in FILES {
            let expected = manifest
                .files
                .get(name)
                .ok_or_else(|| ImageError::broken(folder, format!("its manifest does not list {name}")))?;
            let found = summary(&folder.join(name)).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ImageError::broken(folder, format!("{name} is missing")),
                _ => ImageError::file(&folder.join(name), source),
            })?;
            if found != *expected {
                return Err(ImageError::broken(
                    folder,
                    format!(
                        "{name} is damaged: it has {} bytes with SHA-256 {}, the manifest says {} with {}",
                        found.bytes, found.sha256, expected.bytes, expected.sha256
                    ),
                ));
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            id,
        })
    }

    /// The kernel, an uncompressed ELF file.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join(VMLINUX)
    }

    /// The initial RAM disk.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.folder.join(INITRD)
    }

    /// The root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// What it was made of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Names this image and no other: a hash over its manifest, 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Reads the manifest alone, without a look at the files.
fn read_manifest(folder: &Path) -> Result<(Manifest, String), ImageError> {
    let path = folder.join(MANIFEST);
    let text = std::fs::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ImageError::Missing {
            what: "the guest image",
            path: folder.to_owned(),
            hint: "`nex preflight` or `nex rootfs` makes one".to_owned(),
        },
        _ => ImageError::file(&path, source),
    })?;
    // The format first: a manifest of another one may have other fields.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| ImageError::broken(folder, format!("{MANIFEST}: {error}"));
    let Format { format } = serde_json::from_slice(&text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(ImageError::broken(
            folder,
            format!("it has format {format}, this nex boots format {FORMAT}"),
        ));
    }
    let manifest = serde_json::from_slice(&text).map_err(unreadable)?;
    Ok((manifest, hex(&Sha256::digest(&text))))
}

/// Size and hash of a file.
fn summary(path: &Path) -> io::Result<FileSummary> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(buffer.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
    Ok(FileSummary {
        sha256: hex(&hasher.finalize()),
        bytes,
    })
}

/// SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// [`ImageError::File`]
pub fn file_sha256(path: &Path) -> Result<String, ImageError> {
    match summary(path) {
        Ok(summary) => Ok(summary.sha256),
        Err(source) => Err(ImageError::file(path, source)),
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
