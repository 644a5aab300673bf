//! The kernel of the image: an uncompressed ELF file, taken as it is or out of a `bzImage`, together with its modules.

use std::fs;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::ET_EXEC;
use elf::endian::AnyEndian;

use super::ImageError;
use super::compression::{Compression, decompress};
use super::modules::{Module, Modules};
use super::package;

/// What a kernel says of itself, in its own data.
const BANNER: &[u8] = b"Linux version ";

/// Longest release name looked at.
const MAX_VERSION: usize = 64;

/// A kernel and what it has to load.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) version: String,
    pub(super) vmlinux: Vec<u8>,
    pub(super) modules: Vec<Module>,
}

impl Kernel {
    /// Reads a kernel. `source` is a file with one, a package (`.deb`) of one, or the folder that such a package was
    /// unpacked to; `modules` is the folder of its modules. A plain file without one has everything built in.
    pub(super) fn load(source: &Path, modules: Option<&Path>) -> Result<Self, ImageError> {
        if source.is_dir() {
            return Self::from_tree(source, modules);
        }
        let data = fs::read(source).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ImageError::Missing {
                what: "the kernel",
                path: source.to_owned(),
                hint: "`nex preflight --driver qemu` installs one, `nex rootfs --kernel` names another".to_owned(),
            },
            _ => ImageError::file(source, error),
        })?;
        if package::is_package(&data) {
            let unpacked = tempfile::tempdir().map_err(|error| ImageError::file(&std::env::temp_dir(), error))?;
            package::unpack(source, unpacked.path(), package::holds_kernel)?;
            return Self::from_tree(unpacked.path(), modules).map_err(|error| match error {
                // The folder is gone by the time anybody reads this.
                ImageError::Kernel { reason, .. } => ImageError::kernel(source, reason),
                other => other,
            });
        }
        let vmlinux = uncompressed(data).map_err(|reason| ImageError::kernel(source, reason))?;
        let version = version(&vmlinux).ok_or_else(|| ImageError::kernel(source, "it does not say its version"))?;
        let modules = match modules {
            Some(folder) => Modules::open(folder)?.for_guests(&version)?,
            None => Vec::new(),
        };
        Ok(Self {
            version,
            vmlinux,
            modules,
        })
    }

    fn from_tree(tree: &Path, modules: Option<&Path>) -> Result<Self, ImageError> {
        let boot = tree.join("boot");
        let mut kernels: Vec<PathBuf> = fs::read_dir(&boot)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinu"))
            })
            .collect();
        kernels.sort();
        let [kernel] = kernels.as_slice() else {
            let reason = format!("expected one file boot/vmlinuz-VERSION in it, found {}", kernels.len());
            return Err(ImageError::kernel(tree, reason));
        };
        let found;
        let modules = match modules {
            Some(folder) => folder,
            None => {
                let name = kernel.file_name().unwrap_or_default().to_string_lossy();
                let version = name.split_once('-').map_or("", |(_, version)| version);
                let candidates = ["lib/modules", "usr/lib/modules"].map(|folder| tree.join(folder).join(version));
                found = candidates.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
                    ImageError::kernel(
                        tree,
                        format!("there are no modules in it, expected lib/modules/{version}"),
                    )
                })?;
                found.as_path()
            }
        };
        Self::load(kernel, Some(modules))
    }
}

/// The ELF file in what may be a `bzImage`.
fn uncompressed(data: Vec<u8>) -> Result<Vec<u8>, String> {
    let vmlinux = match payload(&data)? {
        Some(payload) => {
            if Compression::of(payload) == Compression::None {
                return Err(
                    "it is compressed in a way that is not known here; known are gzip, xz, zstd and lz4".to_owned(),
                );
            }
            decompress(payload).map_err(|error| format!("it cannot be decompressed: {error}"))?
        }
        None => data,
    };
    if !vmlinux.starts_with(b"\x7fELF") {
        return Err("expected an ELF file (vmlinux), a bzImage or a package (.deb)".to_owned());
    }
    let header = ElfBytes::<AnyEndian>::minimal_parse(&vmlinux).map_err(|error| format!("it is damaged: {error}"))?;
    if header.ehdr.e_type != ET_EXEC {
        return Err("it is an ELF file, but no kernel".to_owned());
    }
    Ok(vmlinux)
}

/// The compressed kernel in a `bzImage`, by the fields of its header (Linux's Documentation/arch/x86/boot.rst); `None` if
/// the data is something else.
fn payload(data: &[u8]) -> Result<Option<&[u8]>, String> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PROTOCOL: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    /// The first version of the protocol that tells where the payload is.
    const OLDEST_PROTOCOL: u16 = 0x0208;

    if data.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Ok(None);
    }
    let truncated = || "it is truncated".to_owned();
    let word = |at: usize| {
        let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes
            .map(|bytes| u32::from_le_bytes(*bytes) as usize)
            .ok_or_else(truncated)
    };
    if word(PROTOCOL)? & 0xffff < usize::from(OLDEST_PROTOCOL) {
        return Err("its boot protocol is older than 2.08".to_owned());
    }
    // 0 means 4, for kernels of long ago.
    let sectors = match data.get(SETUP_SECTORS).copied().unwrap_or_default() {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let payload = data
        .get(start..)
        .and_then(|rest| rest.get(..word(PAYLOAD_LENGTH).ok()?));
    payload.map(Some).ok_or_else(truncated)
}

/// The release that a kernel says it is.
fn version(vmlinux: &[u8]) -> Option<String> {
    let mut rest = vmlinux;
    while let Some(at) = find(rest, BANNER) {
        rest = rest.get(at + BANNER.len()..)?;
        let text = rest.get(..MAX_VERSION.min(rest.len()))?;
        // Not a format string.
        if text.first().is_some_and(u8::is_ascii_digit) {
            let end = text
                .iter()
                .position(|byte| !byte.is_ascii_graphic())
                .unwrap_or(text.len());
            return Some(String::from_utf8_lossy(text.get(..end)?).into_owned());
        }
    }
    None
}

/// Where `needle` begins. Looks for its first byte, which the standard library does fast.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::io::Write;

    use super::*;

    /// The smallest ELF file that passes for a kernel.
    fn vmlinux() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[20] = 1;
        elf[52] = 64;
        elf.extend_from_slice(b"Linux version %s\0Linux version 6.1.0-test (someone@somewhere)\0");
        elf
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206] = 0x0f;
        image[0x207] = 0x02;
        image[0x248] = 16;
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// A block of literals, with the length of the whole behind it as in a kernel.
    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0, u8::try_from(data.len() - 15).unwrap()];
        block.extend_from_slice(data);
        let mut file = vec![0x02, 0x21, 0x4c, 0x18];
        file.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
        file.extend_from_slice(&block);
        file.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        file
    }

    #[test]
    fn a_kernel_is_found_in_a_bz_image() {
        assert_eq!(uncompressed(vmlinux()), Ok(vmlinux()));
        assert_eq!(uncompressed(bz_image(&gzip(&vmlinux()))), Ok(vmlinux()));
        assert_eq!(uncompressed(bz_image(&lz4(&vmlinux()))), Ok(vmlinux()));
        assert_eq!(version(&vmlinux()).as_deref(), Some("6.1.0-test"));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let reason = |data: Vec<u8>| uncompressed(data).unwrap_err();
        assert!(reason(b"text".to_vec()).contains("vmlinux"));
        assert!(reason(bz_image(b"BZh9")).contains("gzip, xz, zstd and lz4"));
        assert!(reason(bz_image(&gzip(b"text"))).contains("vmlinux"));
        let image = bz_image(&gzip(&vmlinux()));
        assert!(reason(image[..image.len() - 1].to_vec()).contains("truncated"));
        let mut shared = vmlinux();
        shared[16] = 3;
        assert!(reason(shared).contains("no kernel"));
        assert_eq!(version(b"Linux version %s"), None);
    }
}
