//! The root file system while it is put together: a folder that looks like the guest's root. nex's own files go in first,
//! then the user's, then the user's script may change what is left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use super::{ImageError, elf, file_sha256};

/// Where the agent is in the guest.
const AGENT: &str = "usr/bin/nex-agent";

/// Where the guest mounts something, so that nothing in the image would be seen there.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

const PASSWD: &str = "root:x:0:0:root:/:/usr/sbin/nologin\nnex:x:1000:1000:nex:/:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnex:x:1000:\n";

/// Tells the script which folder to change.
const ROOTFS_VARIABLE: &str = "NEX_ROOTFS";

/// A file or folder that the user wants in the image: `SOURCE:DEST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    source: PathBuf,
    /// Relative to the root, without `.` and `..`.
    destination: PathBuf,
    text: String,
}

impl FromStr for Addition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected SOURCE:DEST, DEST being an absolute path in the image";
        let (source, destination) = text.rsplit_once(':').ok_or(expected)?;
        let Some(relative) = destination.strip_prefix('/') else {
            return Err(expected.to_owned());
        };
        let mut place = PathBuf::new();
        for component in Path::new(relative).components() {
            match component {
                Component::Normal(name) => place.push(name),
                Component::CurDir => {}
                _ => return Err(format!("{destination} leads out of the image: `..` is not possible")),
            }
        }
        if source.is_empty() || place.as_os_str().is_empty() {
            return Err(expected.to_owned());
        }
        Ok(Self {
            source: PathBuf::from(source),
            destination: place,
            text: text.to_owned(),
        })
    }
}

impl Addition {
    /// Where it goes, from the root.
    #[must_use]
    pub fn destination(&self) -> PathBuf {
        Path::new("/").join(&self.destination)
    }

    fn refused(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Addition {
            addition: self.text.clone(),
            reason: reason.into(),
        }
    }
}

/// The folder, and what in it is nex's own.
#[derive(Debug)]
pub(super) struct Staging {
    root: PathBuf,
    /// Hashes by the path in the guest.
    own: BTreeMap<PathBuf, String>,
}

impl Staging {
    /// Makes the folder with the agent, its libraries, and what every guest has.
    pub(super) fn new(root: PathBuf, agent: &Path) -> Result<Self, ImageError> {
        let mut staging = Self {
            root,
            own: BTreeMap::new(),
        };
        for folder in MOUNT_POINTS {
            staging.make_folder(&staging.root.join(folder))?;
        }
        staging.own_file(Path::new(AGENT), agent)?;
        for (place, library) in elf::companions(agent)? {
            staging.own_file(place.strip_prefix("/").unwrap_or(&place), &library)?;
        }
        for (place, content) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
            let path = staging.root.join(place);
            staging.make_folder(path.parent().unwrap_or(&staging.root))?;
            fs::write(&path, content).map_err(|source| ImageError::file(&path, source))?;
            staging.own.insert(PathBuf::from(place), file_sha256(&path)?);
        }
        Ok(staging)
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn own_file(&mut self, place: &Path, source: &Path) -> Result<(), ImageError> {
        let target = self.root.join(place);
        self.make_folder(target.parent().unwrap_or(&self.root))?;
        fs::copy(source, &target).map_err(|error| ImageError::file(source, error))?;
        self.own.insert(place.to_owned(), file_sha256(&target)?);
        Ok(())
    }

    fn make_folder(&self, path: &Path) -> Result<(), ImageError> {
        fs::create_dir_all(path).map_err(|source| ImageError::file(path, source))
    }

    /// Adds a file or folder of the user.
    pub(super) fn add(&self, addition: &Addition) -> Result<(), ImageError> {
        let place = &addition.destination;
        if let Some(mount) = MOUNT_POINTS.iter().find(|mount| place.starts_with(mount)) {
            return Err(addition.refused(format!("the guest mounts something over /{mount}")));
        }
        // Only folders on the way: what is written through a symbolic link could be anywhere.
        let mut parent = self.root.clone();
        for name in place.parent().into_iter().flat_map(Path::iter) {
            parent.push(name);
            match fs::symlink_metadata(&parent) {
                Ok(metadata) if !metadata.is_dir() => {
                    let shown = parent.strip_prefix(&self.root).unwrap_or(&parent);
                    return Err(addition.refused(format!("/{} is not a folder", shown.display())));
                }
                _ => {}
            }
        }
        self.make_folder(&parent)?;
        self.copy(addition, &addition.source, &self.root.join(place))
    }

    fn copy(&self, addition: &Addition, source: &Path, target: &Path) -> Result<(), ImageError> {
        let failed = |error: std::io::Error| addition.refused(format!("{}: {error}", source.display()));
        // The source itself may be a link, what is in a folder is taken as it is.
        let metadata = if source == addition.source {
            fs::metadata(source)
        } else {
            fs::symlink_metadata(source)
        };
        let kind = metadata.map_err(failed)?.file_type();
        let there = fs::symlink_metadata(target).ok();
        if kind.is_dir() && there.as_ref().is_none_or(fs::Metadata::is_dir) {
            self.make_folder(target)?;
            for entry in fs::read_dir(source).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                self.copy(addition, &source.join(&name), &target.join(&name))?;
            }
            return Ok(());
        }
        if there.is_some() {
            let shown = target.strip_prefix(&self.root).unwrap_or(target);
            let owner = if self.own.contains_key(shown) {
                " and belongs to nex"
            } else {
                ""
            };
            return Err(addition.refused(format!("/{} is there already{owner}", shown.display())));
        }
        if kind.is_symlink() {
            let leads_to = fs::read_link(source).map_err(failed)?;
            std::os::unix::fs::symlink(leads_to, target).map_err(failed)
        } else if kind.is_file() {
            fs::copy(source, target).map(drop).map_err(failed)
        } else {
            Err(addition.refused(format!("{} is neither a file nor a folder", source.display())))
        }
    }

    /// Runs the user's script in the folder, and checks that it left alone what is nex's.
    pub(super) fn run(&self, script: &Path) -> Result<(), ImageError> {
        let failed = |source| ImageError::file(script, source);
        let program = script.canonicalize().map_err(failed)?;
        let output = Command::new(program)
            .env(ROOTFS_VARIABLE, &self.root)
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if !output.status.success() {
            let said = said.trim_end();
            return Err(ImageError::Script {
                path: script.to_owned(),
                status: output.status,
                output: if said.is_empty() {
                    String::new()
                } else {
                    format!(":\n{said}")
                },
            });
        }
        for line in said.lines() {
            tracing::info!(script = %script.display(), "{line}");
        }
        self.check(script.file_name().unwrap_or_default())
    }

    fn check(&self, script: &OsStr) -> Result<(), ImageError> {
        let script = script.to_string_lossy();
        for (place, hash) in &self.own {
            let path = self.root.join(place);
            let is_same = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file())
                && file_sha256(&path).is_ok_and(|found| found == *hash);
            if !is_same {
                let reason = format!("the script {script} changed /{}, which belongs to nex", place.display());
                return Err(ImageError::Rootfs(reason));
            }
        }
        for mount in MOUNT_POINTS {
            if !fs::symlink_metadata(self.root.join(mount)).is_ok_and(|metadata| metadata.is_dir()) {
                let reason =
                    format!("the script {script} removed the folder /{mount}, where the guest mounts something");
                return Err(ImageError::Rootfs(reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn additions_name_a_source_and_an_absolute_destination() {
        let addition: Addition = "./a:b:/etc/./x".parse().unwrap();
        assert_eq!(addition.source, Path::new("./a:b"));
        assert_eq!(addition.destination(), Path::new("/etc/x"));
        for (text, part) in [
            ("a", "SOURCE:DEST"),
            ("a:b", "absolute"),
            (":/b", "SOURCE:DEST"),
            ("a:/", "SOURCE:DEST"),
            ("a:/etc/../../x", "leads out"),
            ("a:/..", "leads out"),
        ] {
            let error = text.parse::<Addition>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
