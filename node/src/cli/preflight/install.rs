//! Installs into the resource folder. Each item appears under its name when it is complete.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::apt::Apt;
use super::check::Item;
use crate::cli::failure::Failure;
use crate::cli::rootfs;
use crate::machines::image::{GuestImage, ImageError, file_sha256, package};
use crate::machines::resources::{Qemu, Replacement, Resources};

const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Packages that stand for the newest kernel for virtual machines: Debian's, then Ubuntu's.
const KERNEL_PACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];

/// Kernels come in packages of these names.
const KERNEL_PARTS: [&str; 2] = ["linux-image-", "linux-modules-"];

/// The C library cannot be another one than the loader's, which is the system's.
const SYSTEM_PACKAGES: [&str; 2] = ["libc6_", "libc-bin_"];

/// What programs do not need.
const DOCUMENTATION: [&str; 5] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "etc",
];

/// Installs items, one after the other.
#[derive(Debug)]
pub(super) struct Installer<'a> {
    resources: &'a Resources,
    /// Made when the first package is needed, because it takes a while.
    apt: Option<Apt>,
}

impl<'a> Installer<'a> {
    pub(super) fn new(resources: &'a Resources) -> Self {
        Self { resources, apt: None }
    }

    /// Whether another process has installed this since it was found missing.
    pub(super) fn is_there(&self, item: Item) -> bool {
        match item {
            Item::Qemu => Qemu::unpacked(&self.resources.qemu_folder()).is_some_and(|qemu| qemu.check().is_ok()),
            Item::Kernel => self.resources.kernel().join("boot").is_dir(),
            Item::Image => self.image_is_current().is_ok_and(|current| current),
        }
    }

    fn image_is_current(&self) -> Result<bool, Failure> {
        let image = GuestImage::open(&self.resources.image())?;
        let recipe = rootfs::recipe(self.resources, None, None)?;
        let manifest = image.manifest();
        Ok(file_sha256(&recipe.agent)? == manifest.agent_sha256 && file_sha256(&recipe.init)? == manifest.init_sha256)
    }

    /// Installs one item.
    pub(super) fn install(&mut self, item: Item) -> Result<(), Failure> {
        match item {
            Item::Qemu => self.qemu(),
            Item::Kernel => self.kernel(),
            Item::Image => {
                rootfs::recipe(self.resources, None, None)?.build(&self.resources.image())?;
                Ok(())
            }
        }
    }

    fn qemu(&mut self) -> Result<(), Failure> {
        let packages = self
            .apt()?
            .download_with_dependencies(QEMU_PACKAGE)
            .map_err(Failure::failed)?;
        let packages = packages.into_iter().filter(|package| !is_of_the_system(package));
        let replacement = unpack(packages, &self.resources.qemu_folder(), |path| {
            !DOCUMENTATION.iter().any(|folder| path.starts_with(folder))
        })?;
        let unpacked = Qemu::unpacked(replacement.folder())
            .ok_or_else(|| Failure::failed(format_args!("the package {QEMU_PACKAGE} does not hold the program")))?;
        unpacked.check().map_err(Failure::failed)?;
        commit(replacement, &self.resources.qemu_folder())
    }

    fn kernel(&mut self) -> Result<(), Failure> {
        let apt = self.apt()?;
        let packages = kernel_packages(apt).map_err(Failure::failed)?;
        let files = apt.download(&packages).map_err(Failure::failed)?;
        let folder = self.resources.kernel();
        let replacement = unpack(files.into_iter(), &folder, package::holds_kernel)?;
        if !replacement.folder().join("boot").is_dir() {
            let names = packages.join(", ");
            return Err(Failure::failed(format_args!(
                "there is no kernel in the packages {names}"
            )));
        }
        commit(replacement, &folder)
    }

    fn apt(&mut self) -> Result<&Apt, Failure> {
        let apt = match self.apt.take() {
            Some(apt) => apt,
            None => Apt::prepare(&self.resources.folder().join("apt")).map_err(Failure::failed)?,
        };
        Ok(self.apt.insert(apt))
    }
}

/// The packages behind the name of the newest kernel.
fn kernel_packages(apt: &Apt) -> Result<Vec<String>, String> {
    let mut problem = String::new();
    for package in KERNEL_PACKAGES {
        let mut found = BTreeSet::new();
        let mut open = match apt.dependencies(package) {
            Ok(dependencies) => dependencies,
            Err(error) => {
                problem = error;
                continue;
            }
        };
        while let Some(name) = open.pop() {
            let is_part = KERNEL_PARTS.iter().any(|part| name.starts_with(part));
            if is_part && found.insert(name.clone()) {
                open.extend(apt.dependencies(&name)?);
            }
        }
        if !found.is_empty() {
            return Ok(found.into_iter().collect());
        }
    }
    Err(format!(
        "the sources of apt have none of the kernels {}; `nex rootfs --kernel FILE` takes another: {problem}",
        KERNEL_PACKAGES.join(" and ")
    ))
}

fn is_of_the_system(package: &Path) -> bool {
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    SYSTEM_PACKAGES.iter().any(|system| name.starts_with(system))
}

fn unpack(
    packages: impl Iterator<Item = PathBuf>,
    folder: &Path,
    wanted: impl Fn(&Path) -> bool,
) -> Result<Replacement, Failure> {
    let replacement = Replacement::begin(folder).map_err(|error| ImageError::file(folder, error))?;
    for package in packages {
        package::unpack(&package, replacement.folder(), &wanted)?;
    }
    Ok(replacement)
}

fn commit(replacement: Replacement, folder: &Path) -> Result<(), Failure> {
    replacement
        .commit()
        .map_err(|error| ImageError::file(folder, error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_stays_the_systems() {
        assert!(is_of_the_system(Path::new("/x/libc6_2.36-9_amd64.deb")));
        assert!(!is_of_the_system(Path::new("/x/libc6x_1_amd64.deb")));
        assert!(!is_of_the_system(Path::new("/x/libglib2.0-0_2.74_amd64.deb")));
    }
}
