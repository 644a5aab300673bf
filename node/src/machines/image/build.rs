//! Makes an image of its ingredients. It appears under its name when it is complete; until then, and whenever something
//! fails, the one that was there stays.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::staging::Staging;
use super::{
    Addition, FILES, FORMAT, GuestImage, INITRD, ImageError, MANIFEST, Manifest, ROOTFS, VMLINUX, elf, file_sha256,
    read_manifest, squashfs, summary,
};
use crate::machines::resources::Replacement;

/// Where the initial RAM disk has a folder to mount something on; `newroot` is for the root file system.
const INITRD_FOLDERS: [&str; 6] = ["dev", "newroot", "proc", "run", "sys", "tmp"];

const INIT: &str = "nex-init";

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The program `nex-agent`.
    pub agent: PathBuf,
    /// The program `nex-init`.
    pub init: PathBuf,
    /// A kernel: an ELF file, a `bzImage`, a Debian package, or the folder that one was unpacked to.
    pub kernel: PathBuf,
    /// The folder of the kernel's modules. Packages have their own; a file without them has everything built in.
    pub modules: Option<PathBuf>,
    /// The user's files.
    pub additions: Vec<Addition>,
    /// The user's program that changes the root file system before it is packed.
    pub script: Option<PathBuf>,
    /// The time of all files in the image, in seconds since 1970.
    pub time: u32,
}

impl Recipe {
    /// Makes the image, in place of the one that may be there.
    ///
    /// # Errors
    /// [`ImageError`]; what was there before is as it was.
    pub fn build(&self, folder: &Path) -> Result<GuestImage, ImageError> {
        check_target(folder)?;
        let replacement = Replacement::begin(folder).map_err(|source| ImageError::file(folder, source))?;
        let partial = replacement.folder();
        let kernel = Kernel::load(&self.kernel, self.modules.as_deref())?;
        let staged = partial.join("root");
        let staging = Staging::new(staged.clone(), &self.agent)?;
        for addition in &self.additions {
            staging.add(addition)?;
        }
        if let Some(script) = &self.script {
            staging.run(script)?;
        }
        squashfs::write(staging.root(), &partial.join(ROOTFS), self.time)?;
        fs::remove_dir_all(&staged).map_err(|source| ImageError::file(&staged, source))?;

        let modules: Vec<String> = kernel.modules.iter().map(|module| module.name.clone()).collect();
        let version = kernel.version.clone();
        write(&partial.join(VMLINUX), &kernel.vmlinux)?;
        write(&partial.join(INITRD), &self.initrd(kernel)?)?;
        let manifest = self.manifest(partial, version, modules)?;
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|error| ImageError::Rootfs(error.to_string()))?;
        text.push(b'\n');
        write(&partial.join(MANIFEST), &text)?;
        replacement
            .commit()
            .map_err(|source| ImageError::file(folder, source))?;
        let (manifest, id) = read_manifest(folder)?;
        Ok(GuestImage {
            folder: folder.to_owned(),
            manifest,
            id,
        })
    }

    /// The initial RAM disk: `nex-init` as `/init`, and the modules in the order of their names.
    fn initrd(&self, kernel: Kernel) -> Result<Vec<u8>, ImageError> {
        let read = |path: &Path| fs::read(path).map_err(|source| ImageError::file(path, source));
        let mut archive = Archive::default();
        archive.file("init", true, read(&self.init)?);
        for (place, library) in elf::companions(&self.init)? {
            let place = place.to_string_lossy();
            archive.file(place.trim_start_matches('/'), true, read(&library)?);
        }
        for (number, module) in kernel.modules.into_iter().enumerate() {
            archive.file(
                &format!("modules/{number:02}-{}.ko", module.name),
                false,
                module.content,
            );
        }
        for folder in INITRD_FOLDERS {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        Ok(archive.into_bytes())
    }

    fn manifest(&self, folder: &Path, kernel_version: String, modules: Vec<String>) -> Result<Manifest, ImageError> {
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = folder.join(name);
            let summary = summary(&path).map_err(|source| ImageError::file(&path, source))?;
            files.insert(name.to_owned(), summary);
        }
        let script = self.script.iter().map(|script| format!("script {}", name_of(script)));
        Ok(Manifest {
            format: FORMAT,
            nex_version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            kernel_version,
            modules,
            agent_sha256: file_sha256(&self.agent)?,
            init_sha256: file_sha256(&self.init)?,
            customised: self
                .additions
                .iter()
                .map(|addition| addition.destination().display().to_string())
                .chain(script)
                .collect(),
            files,
        })
    }
}

/// Finds `nex-init`, what runs first in a guest: beside this program, or one folder above it, where Cargo puts it for tests.
///
/// # Errors
/// [`ImageError::Missing`]
pub fn find_init_bin() -> Result<PathBuf, ImageError> {
    let this = std::env::current_exe().map_err(|source| ImageError::file(Path::new("/proc/self/exe"), source))?;
    let beside = this.with_file_name(INIT);
    let above = this.ancestors().nth(2).map(|folder| folder.join(INIT));
    let found = std::iter::once(beside.clone()).chain(above).find(|path| path.is_file());
    found.ok_or_else(|| ImageError::Missing {
        what: INIT,
        path: beside,
        hint: "it comes with nex and is looked for beside this program; `nex rootfs --init` names another".to_owned(),
    })
}

/// Refuses to put an image in the place of anything but an image.
fn check_target(folder: &Path) -> Result<(), ImageError> {
    let is_empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(source) => return Err(ImageError::file(folder, source)),
    };
    if is_empty || folder.join(MANIFEST).is_file() {
        return Ok(());
    }
    Err(ImageError::Occupied {
        path: folder.to_owned(),
    })
}

fn write(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    fs::write(path, content).map_err(|source| ImageError::file(path, source))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
