//! Kernel modules: which ones a guest needs, in the order in which they can be loaded. What a module depends on is read
//! from the module itself, because packages come without the index that `depmod` makes of it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::AnyEndian;

use super::ImageError;
use super::compression::decompress;

/// What a guest needs of its kernel, if it is not built in, and whether it can do without. `virtio_rng` may be missing: hosts
/// seed their guests; `virtio_balloon` where no balloon is configured.
const WANTED: [(&str, bool); 7] = [
    ("virtio_mmio", true),
    ("virtio_blk", true),
    ("virtio_console", true),
    ("vmw_vsock_virtio_transport", true),
    ("virtio_rng", false),
    ("virtio_balloon", false),
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
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::io::Write;

    use super::*;

    /// An ELF file with the section `.modinfo` and no more.
    fn module(depends: &str, version: &str) -> Vec<u8> {
        let information = format!("license=GPL\0depends={depends}\0vermagic={version} SMP preempt\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let (start, end) = (64, 64 + information.len());
        let table = end + names.len();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &[1, 0, 62, 0, 1]);
        put(40, &(table as u64).to_le_bytes());
        put(52, &[64, 0]);
        // Entries of 64 bytes, three of them, the names in the third.
        put(58, &[64, 0, 3, 0, 2, 0]);
        elf.extend_from_slice(information.as_bytes());
        elf.extend_from_slice(names);
        elf.extend_from_slice(&[0; 64]);
        for (name, kind, offset, size) in [(1_u32, 1_u32, start, information.len()), (10, 3, end, names.len())] {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&section);
        }
        elf
    }

    /// Modules as a kernel might have them: some compressed, some built in, names with hyphens.
    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&module("virtio_ring", "6.1")).unwrap();
        put("kernel/virtio.ko.gz", &encoder.finish().unwrap());
        put("kernel/virtio_ring.ko", &module("", "6.1"));
        put("kernel/virtio_mmio.ko", &module("virtio,virtio_ring", "6.1"));
        put("kernel/drivers/virtio_blk.ko", &module("virtio", "6.1"));
        put("kernel/virtio-console.ko", &module("virtio,core", "6.1"));
        put("kernel/vmw_vsock_virtio_transport.ko", &module("virtio", "6.1"));
        put(
            "modules.builtin",
            b"kernel/fs/squashfs/squashfs.ko\nkernel/lib/core.ko\n",
        );
        folder
    }

    fn order(folder: &Path) -> Result<Vec<String>, String> {
        let modules = Modules::open(folder).and_then(|modules| modules.for_guests("6.1"));
        let modules = modules.map_err(|error| error.to_string())?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = tree();
        let expected = [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "virtio_blk",
            "virtio_console",
            "vmw_vsock_virtio_transport",
        ];
        assert_eq!(order(folder.path()).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tree();
        let path = |name: &str| folder.path().join("kernel").join(name);
        fs::write(path("virtio_ring.ko"), module("", "5.10")).unwrap();
        assert!(
            order(folder.path())
                .unwrap_err()
                .contains("it is for 5.10, the kernel is 6.1")
        );
        fs::write(path("virtio_ring.ko"), "text").unwrap();
        assert!(
            order(folder.path())
                .unwrap_err()
                .contains("virtio_ring.ko cannot be used: it is damaged")
        );
        fs::remove_file(path("virtio_ring.ko")).unwrap();
        assert!(
            order(folder.path())
                .unwrap_err()
                .contains("the module virtio_ring is neither there nor built in")
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(order(empty.path()).unwrap_err().contains("no modules"));
    }

    #[test]
    fn names_are_alike_however_files_are_compressed() {
        for file in ["kernel/net/vmw-vsock.ko", "vmw_vsock.ko.xz", "a/b/vmw_vsock.ko.zst"] {
            assert_eq!(module_name(file).as_deref(), Some("vmw_vsock"), "{file}");
        }
        assert_eq!(module_name("modules.dep"), None);
    }
}
