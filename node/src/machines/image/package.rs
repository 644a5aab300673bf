//! Unpacks Debian packages without dpkg: an `ar` archive with the files in a compressed `tar` archive.

use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path};

use super::ImageError;
use super::compression::Compression;

const MAGIC: &[u8] = b"!<arch>\n";

/// Length of what stands before each member.
const HEADER: usize = 60;

/// Whether this is the beginning of a package.
pub(super) fn is_package(data: &[u8]) -> bool {
    data.starts_with(MAGIC)
}

/// The files of a kernel's package that an image can use.
pub(crate) fn holds_kernel(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let boot = text
        .strip_prefix("boot/")
        .is_some_and(|name| name.starts_with("vmlinu"));
    boot || text.starts_with("lib/modules/") || text.starts_with("usr/lib/modules/")
}

/// Unpacks the files that `wanted` says yes to; it is asked with paths relative to the root. They belong to whoever runs
/// this.
///
/// # Errors
/// [`ImageError::Package`], [`ImageError::File`]
pub(crate) fn unpack(package: &Path, folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<(), ImageError> {
    let data = fs::read(package).map_err(|source| ImageError::file(package, source))?;
    let failed = |reason: String| ImageError::Package {
        path: package.to_owned(),
        reason,
    };
    let files = member(&data, "data.tar").map_err(failed)?;
    let reader = Compression::of(files)
        .reader(files)
        .map_err(|error| failed(error.to_string()))?;
    extract(reader, folder, wanted).map_err(|error| failed(error.to_string()))
}

/// The content of the first member whose name begins like this.
fn member<'a>(data: &'a [u8], name: &str) -> Result<&'a [u8], String> {
    let mut rest = data
        .strip_prefix(MAGIC)
        .ok_or("it is no package: it is not an ar archive")?;
    while !rest.is_empty() {
        let (header, behind) = rest.split_at_checked(HEADER).ok_or("it is truncated")?;
        let field = |range: std::ops::Range<usize>| {
            let bytes = header.get(range).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim_end().to_owned()
        };
        let length: usize = field(48..58)
            .parse()
            .map_err(|_| "it is damaged: a member has no length")?;
        let content = behind.get(..length).ok_or("it is truncated")?;
        if field(0..16).starts_with(name) {
            return Ok(content);
        }
        // Members begin at even places.
        rest = behind.get(length.next_multiple_of(2)..).unwrap_or_default();
    }
    Err(format!("it has no member {name}"))
}

fn extract(reader: impl Read, folder: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_mtime(false);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let relative: std::path::PathBuf = path
            .components()
            .filter(|component| matches!(component, Component::Normal(_)))
            .collect();
        if !wanted(&relative) {
            continue;
        }
        // Refuses to write outside of the folder, be it by `..` or through a symbolic link.
        if !entry.unpack_in(folder)? {
            return Err(io::Error::other(format!("{} leads out of the package", path.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::io::Write;

    use super::*;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, content) in members {
            writeln!(
                bytes,
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`",
                0,
                0,
                0,
                100_644,
                content.len()
            )
            .unwrap();
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(2), b'\n');
        }
        bytes
    }

    fn package() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in [("./boot/vmlinuz-1", "kernel"), ("./usr/share/doc/x", "text")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar.into_inner().unwrap()).unwrap();
        let data = encoder.finish().unwrap();
        ar(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            ("data.tar.gz", &data),
        ])
    }

    fn unpacked(bytes: &[u8], folder: &Path) -> Result<(), String> {
        let file = folder.join("x.deb");
        fs::write(&file, bytes).unwrap();
        unpack(&file, &folder.join("out"), holds_kernel).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wanted_is_unpacked_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        unpacked(&package(), folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("out/boot/vmlinuz-1")).unwrap(), b"kernel");
        assert!(!folder.path().join("out/usr").exists());
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        let whole = package();
        for length in [20, 100, whole.len() - 10] {
            let error = unpacked(&whole[..length], folder.path()).unwrap_err();
            assert!(
                error.contains("x.deb") && error.contains("truncated"),
                "{length}: {error}"
            );
        }
        assert!(unpacked(b"text", folder.path()).unwrap_err().contains("ar archive"));
        assert!(
            unpacked(&ar(&[("debian-binary", b"2.0\n")]), folder.path())
                .unwrap_err()
                .contains("data.tar")
        );
        assert!(unpacked(&ar(&[("data.tar.xz", b"\xfd7zXZ\0rest")]), folder.path()).is_err());
    }
}
