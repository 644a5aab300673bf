//! Kernel modules: which ones a guest needs, in the order in which they can be loaded. What a module depends on is read
//! from the module itself, because packages come without the index that `depmod` makes of it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::AnyEndian;

use super::ImageError;
use super::compression::decompress;

/// What a guest needs of its kernel, if it is not built in. `virtio_rng` may be missing: hosts seed their guests.
const WANTED: [(&str, bool); 6] = [
    ("virtio_mmio", true),
    ("virtio_blk", true),
    ("virtio_console", true),
    ("vmw_vsock_virtio_transport", true),
    ("virtio_rng", false),
    ("squashfs", true),
];

const EXTENSIONS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Modules {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: HashSet<String>,
}

/// A module as it goes into the image.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

impl Modules {
    /// Looks through a folder such as `/lib/modules/6.1.0`.
    pub(super) fn open(folder: &Path) -> Result<Self, ImageError> {
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        if files.is_empty() {
            return Err(ImageError::kernel(folder, "it holds no modules (*.ko)"));
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        Ok(Self {
            folder: folder.to_owned(),
            files,
            built_in: list.lines().filter_map(module_name).collect(),
        })
    }

    /// The modules that a guest needs, those that others depend on first.
    pub(super) fn for_guests(&self, kernel_version: &str) -> Result<Vec<Module>, ImageError> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for (name, required) in WANTED {
            if required || self.files.contains_key(name) {
                self.add(name, kernel_version, &mut seen, &mut order)?;
            }
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        kernel_version: &str,
        seen: &mut HashSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), ImageError> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| {
            ImageError::kernel(&self.folder, format!("the module {name} is neither there nor built in"))
        })?;
        let data = fs::read(path).map_err(|source| ImageError::file(path, source))?;
        let content = decompress(&data).map_err(|error| ImageError::kernel(path, error.to_string()))?;
        let information = Information::read(&content).map_err(|reason| ImageError::kernel(path, reason))?;
        if information.kernel_version != kernel_version {
            let reason = format!(
                "it is for {}, the kernel is {kernel_version}",
                information.kernel_version
            );
            return Err(ImageError::kernel(path, reason));
        }
        for needed in &information.depends {
            self.add(needed, kernel_version, seen, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

/// What a module says of itself.
#[derive(Debug)]
struct Information {
    depends: Vec<String>,
    kernel_version: String,
}

impl Information {
    fn read(content: &[u8]) -> Result<Self, String> {
        let damaged = |error: elf::ParseError| format!("it is damaged: {error}");
        let file = ElfBytes::<AnyEndian>::minimal_parse(content).map_err(damaged)?;
        let section = file.section_header_by_name(".modinfo").map_err(damaged)?;
        let section = section.ok_or("it is no kernel module: it has no section .modinfo")?;
        let (data, _) = file.section_data(&section).map_err(damaged)?;
        let text = String::from_utf8_lossy(data);
        let value = |key: &str| text.split('\0').find_map(|entry| entry.strip_prefix(key));
        Ok(Self {
            depends: value("depends=")
                .unwrap_or_default()
                .split(',')
                .filter(|name| !name.is_empty())
                .map(underscored)
                .collect(),
            kernel_version: value("vermagic=")
                .and_then(|magic| magic.split(' ').next())
                .unwrap_or_default()
                .to_owned(),
        })
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let failed = |source| ImageError::file(folder, source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Not what symbolic links lead to: in an installed tree, `build` and `source` lead to the kernel's sources.
        if entry.file_type().map_err(failed)?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The name of the module in a file.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    EXTENSIONS
        .iter()
        .find_map(|extension| file.strip_suffix(extension))
        .map(underscored)
}

/// Modules go by the same name with hyphens and with underscores.
fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alike_however_files_are_compressed() {
        for file in ["kernel/net/vmw-vsock.ko", "vmw_vsock.ko.xz", "a/b/vmw_vsock.ko.zst"] {
            assert_eq!(module_name(file).as_deref(), Some("vmw_vsock"), "{file}");
        }
        assert_eq!(module_name("modules.dep"), None);
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(Information::read(b"text").is_err_and(|reason| reason.contains("damaged")));
        let folder = tempfile::tempdir().map_err(|error| error.to_string());
        let opened = folder.map(|folder| Modules::open(folder.path()).map_err(|error| error.to_string()));
        assert!(matches!(opened, Ok(Err(reason)) if reason.contains("no modules")));
    }
}
