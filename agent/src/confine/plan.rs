//! All that is needed to get inside, put together beforehand: behind the launcher, in a copy of a process that may have
//! had other threads, nothing may be allocated.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{ConfineError, ConfineOptions, INSIDE, Layer, files};

/// User and group of the agent as it sees them itself.
pub(super) const INNER_ID: u32 = 1000;

/// What a set of namespaces is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To run the agent.
    Agent,
    /// To see whether it could be run.
    Probe,
}

/// How to get inside.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) purpose: Purpose,
    /// User and group outside.
    pub(super) outer: (u32, u32),
    /// Whether the launcher is root.
    pub(super) as_root: bool,
    /// Folders of the new root, parents first, relative to it.
    pub(super) folders: Vec<CString>,
    /// What there is in them. The first is the binary.
    pub(super) files: Vec<File>,
    pub(super) arguments: Pointers,
    pub(super) environment: Pointers,
}

/// A file to be seen inside at the path it has outside.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: CString,
    pub(super) is_device: bool,
    /// A mount of it that is not attached anywhere. Root makes it while it still may read any folder; others cannot and
    /// make it inside.
    pub(super) tree: Option<OwnedFd>,
}

impl File {
    /// The path relative to a root.
    pub(super) fn relative(&self) -> &CStr {
        let bytes = self.path.as_bytes_with_nul();
        CStr::from_bytes_with_nul(bytes.get(1..).unwrap_or_default()).unwrap_or_default()
    }
}

/// Strings as `execve` wants them.
#[derive(Debug)]
pub(super) struct Pointers {
    pointers: Vec<*const c_char>,
    /// What they point to.
    _strings: Vec<CString>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr());
        Self {
            pointers: pointers.chain([ptr::null()]).collect(),
            _strings: strings,
        }
    }

    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

impl Plan {
    pub(super) fn new(options: &ConfineOptions, purpose: Purpose) -> Result<Self, ConfineError> {
        let uid = rustix::process::geteuid();
        let outer = if uid.is_root() {
            (options.confine_uid, options.confine_gid)
        } else {
            (uid.as_raw(), rustix::process::getegid().as_raw())
        };
        let error = |source| ConfineError::step(Layer::Namespaces, "look at this program", source);
        let binary = files::binary().map_err(error)?;
        let mut paths = BTreeSet::from([binary.clone()]);
        let mut files = vec![File::new(binary, false)];
        for library in files::libraries() {
            if paths.insert(library.clone()) {
                files.push(File::new(library, false));
            }
        }
        files.extend(files::DEVICES.map(|device| File::new(device.to_owned(), true)));
        let arguments = std::env::args_os().skip(1).map(OsStringExt::into_vec);
        let arguments = [INSIDE.as_bytes().to_vec()].into_iter().chain(arguments);
        let environment = std::env::vars_os().map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            entry
        });
        Ok(Self {
            purpose,
            outer,
            as_root: uid.is_root(),
            folders: folders_of(&files).map_err(error)?,
            files,
            arguments: strings(arguments).map_err(error)?,
            environment: strings(environment).map_err(error)?,
        })
    }

    pub(super) fn binary(&self) -> &CStr {
        self.files.first().map_or(c"", |file| file.path.as_c_str())
    }

    /// The path of a file, for people.
    pub(super) fn path(&self, file: usize) -> Option<&str> {
        self.files.get(file)?.path.to_str().ok()
    }
}

impl File {
    fn new(path: CString, is_device: bool) -> Self {
        // It fails for whom it is not meant, and for files that are not there, of which we hear inside.
        let tree = clone_tree(&path).ok();
        Self { path, is_device, tree }
    }
}

/// Makes a mount of one file that is not attached anywhere.
pub(super) fn clone_tree(path: &CStr) -> rustix::io::Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
}

fn folders_of(files: &[File]) -> io::Result<Vec<CString>> {
    // In this order, a parent comes before what is in it.
    let mut folders = BTreeSet::from([b"proc".to_vec()]);
    for file in files {
        let path = file.relative().to_bytes();
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            folders.extend(path.get(..end).map(<[u8]>::to_vec));
        }
    }
    folders
        .into_iter()
        .map(|folder| CString::new(folder).map_err(io::Error::other))
        .collect()
}

fn strings(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Pointers> {
    let strings: Result<_, _> = strings.map(CString::new).collect();
    strings.map(Pointers::new).map_err(io::Error::other)
}
