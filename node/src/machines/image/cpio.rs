//! Writes the `newc` form of cpio archives, which Linux unpacks as its initial RAM disk. Entries appear sorted by path,
//! owned by root and without times, so that the same entries always give the same bytes.

use std::collections::BTreeMap;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// Adds a folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) {
        let mut end = 0;
        while let Some(next) = path.get(end..).and_then(|rest| rest.find('/')) {
            end += next;
            self.add_folder(path.get(..end).unwrap_or_default());
            end += 1;
        }
        self.add_folder(path);
    }

    fn add_folder(&mut self, path: &str) {
        if !path.is_empty() {
            self.entries.entry(path.to_owned()).or_insert(Entry {
                mode: DIRECTORY | 0o755,
                device: (0, 0),
                content: Vec::new(),
            });
        }
    }

    /// Adds a file, and the folders above it. The path has no slash in front.
    pub(super) fn file(&mut self, path: &str, executable: bool, content: Vec<u8>) {
        let permissions = if executable { 0o755 } else { 0o644 };
        self.add(path, REGULAR | permissions, (0, 0), content);
    }

    /// Adds a character device that only root may open.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, CHARACTER_DEVICE | 0o600, (major, minor), Vec::new());
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: Vec<u8>) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entries.insert(path.to_owned(), Entry { mode, device, content });
    }

    /// The archive's bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.values().map(|entry| entry.content.len() + 256).sum());
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            member(&mut bytes, number, path, entry);
        }
        let trailer = Entry {
            mode: 0,
            device: (0, 0),
            content: Vec::new(),
        };
        member(&mut bytes, 0, "TRAILER!!!", &trailer);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn member(bytes: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    // inode, mode, uid, gid, links, mtime, size, device (major, minor), own device (major, minor), length of the name
    // with its NUL, checksum
    let fields = [
        number,
        entry.mode,
        0,
        0,
        links,
        0,
        length(entry.content.len()),
        0,
        0,
        entry.device.0,
        entry.device.1,
        length(path.len() + 1),
        0,
    ];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(&entry.content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("lib/x/one", false, b"abc".to_vec());
        archive.file("init", true, b"#!".to_vec());
        archive.folder("proc");
        archive.character_device("dev/console", 5, 1);
        archive.into_bytes()
    }

    #[test]
    fn entries_are_sorted_and_nothing_varies() {
        let bytes = sample();
        assert_eq!(bytes, sample());
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        // Folders come before what is in them.
        let order = [
            "dev",
            "dev/console",
            "init",
            "lib",
            "lib/x",
            "lib/x/one",
            "proc",
            "TRAILER!!!",
        ];
        assert!(order.windows(2).all(|pair| matches!(pair, [a, b] if at(a) < at(b))));
        // The header of `init`: magic, inode 3, mode 0100755, uid 0, gid 0, one link, time 0, 2 bytes.
        let header = text.get(at("init") - 110..at("init")).unwrap();
        assert!(
            header.starts_with("07070100000003000081ed000000000000000000000001000000000000000200000000"),
            "{header}"
        );
        let console = text.get(at("dev/console") - 110..at("dev/console")).unwrap();
        assert!(
            console.contains("00002180") && console.contains("0000000500000001"),
            "{console}"
        );
    }
}
