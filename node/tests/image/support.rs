//! A folder with the ingredients of an image, and the command line.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use backhand::{FilesystemReader, InnerNode, NodeHeader};

/// A dynamically linked program that every Linux has. It stands for the agent and for init, which are never run here.
pub(super) const PROGRAM: &str = "/bin/sh";

/// Where a test works.
pub(super) struct Bench(tempfile::TempDir);

impl Bench {
    pub(super) fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        bench.file("vmlinux", &vmlinux());
        bench
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(super) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name, format!("#!/bin/sh\n{text}\n").as_bytes());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// `nex` in this folder, with nothing of the tester's own settings.
    pub(super) fn nex(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NEX_") || name == "SOURCE_DATE_EPOCH" {
                command.env_remove(&name);
            }
        }
        command
            .args(arguments)
            .env("HOME", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// `nex rootfs` into `image`, with arguments that outrank the usual ones.
    pub(super) fn rootfs(&self, arguments: &[&str]) -> Command {
        let mut command = self.nex(&["rootfs"]);
        let usual = [
            ["--agent", PROGRAM],
            ["--init", PROGRAM],
            ["--kernel", "vmlinux"],
            ["-o", "image"],
        ];
        for pair in usual.iter().filter(|[flag, _]| !arguments.contains(flag)) {
            command.args(pair);
        }
        command.args(arguments);
        command
    }

    /// The files of the image in a folder, and their bytes.
    pub(super) fn image(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path(folder)).unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect()
    }

    /// What is in this folder, hidden files too.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(Result::unwrap);
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The smallest ELF file that passes for a kernel.
fn vmlinux() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[20] = 1;
    elf[52] = 64;
    elf.extend_from_slice(b"Linux version 6.1.0-test (someone@somewhere)\0");
    elf
}

/// How a command ended, and what it wrote.
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

pub(super) fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran {
        code: status.code().unwrap_or_else(|| panic!("{status}")),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs a command that has to succeed.
pub(super) fn succeeds(command: &mut Command) -> String {
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// One entry of a squashfs.
pub(super) struct Entry {
    pub(super) header: NodeHeader,
    pub(super) kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Reads a squashfs as a whole.
pub(super) fn squashfs(path: &Path) -> BTreeMap<String, Entry> {
    let file = BufReader::new(fs::File::open(path).unwrap());
    let reader = FilesystemReader::from_reader(file).unwrap();
    let entries = reader.files().map(|node| {
        let kind = match &node.inner {
            InnerNode::Dir(_) => Kind::Folder,
            InnerNode::Symlink(link) => Kind::Link(link.link.clone()),
            InnerNode::File(file) => {
                let mut content = Vec::new();
                reader.file(file).reader().read_to_end(&mut content).unwrap();
                Kind::File(content)
            }
            other => panic!("{}: {other:?}", node.fullpath.display()),
        };
        let entry = Entry {
            header: node.header,
            kind,
        };
        (node.fullpath.to_str().unwrap().to_owned(), entry)
    });
    entries.collect()
}

/// The names in a cpio archive.
pub(super) fn cpio(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = bytes;
    loop {
        let (header, behind) = rest.split_at(110);
        assert_eq!(&header[..6], b"070701");
        let number = |at: usize| {
            let text = std::str::from_utf8(&header[6 + at * 8..14 + at * 8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let (size, name_size) = (number(6), number(11));
        let name = std::str::from_utf8(&behind[..name_size - 1]).unwrap().to_owned();
        if name == "TRAILER!!!" {
            return names;
        }
        names.push(name);
        let content = (110 + name_size).next_multiple_of(4) - 110;
        rest = &behind[content + size.next_multiple_of(4)..];
    }
}
