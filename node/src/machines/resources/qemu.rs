//! QEMU: where it is, and whether it is one that can be used.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Resources;

const PROGRAM: &str = "qemu-system-x86_64";

/// The first version whose `microvm` machine, with all it needs here, was tried.
pub const OLDEST_QEMU: QemuVersion = QemuVersion(7, 2);

/// Where Debian's packages have shared libraries.
const LIBRARY_FOLDERS: [&str; 4] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib"];

/// Major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion(pub u16, pub u16);

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A QEMU that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program. It finds its firmware and its modules by its own path.
    pub program: PathBuf,
    /// `LD_LIBRARY_PATH` for it, if its libraries are unpacked with it.
    pub library_path: Option<OsString>,
}

impl Resources {
    /// The QEMUs that are there: in the folders of the configuration, in the resource folder, and on `PATH`.
    #[must_use]
    pub fn find_qemu(&self, bin_path: &[PathBuf]) -> Vec<Qemu> {
        let plain = |program| Qemu {
            program,
            library_path: None,
        };
        let unpacked = Qemu::unpacked(&self.qemu_folder());
        let configured = bin_path
            .iter()
            .map(|folder| folder.join(PROGRAM))
            .filter(|file| file.is_file());
        let others = self.find_program(PROGRAM, &[]);
        configured
            .map(plain)
            .chain(unpacked)
            .chain(others.into_iter().map(plain))
            .collect()
    }

    /// The first QEMU that can be used.
    ///
    /// # Errors
    /// Why the first one that is there cannot, or that there is none.
    pub fn qemu(&self, bin_path: &[PathBuf]) -> Result<(Qemu, QemuVersion), String> {
        let mut reason = None;
        for qemu in self.find_qemu(bin_path) {
            match qemu.check() {
                Ok(version) => return Ok((qemu, version)),
                Err(error) => _ = reason.get_or_insert(error),
            }
        }
        Err(reason.unwrap_or_else(|| format!("{PROGRAM} was not found")))
    }
}

impl Qemu {
    /// The QEMU in the folder that its packages were unpacked to.
    #[must_use]
    pub fn unpacked(folder: &Path) -> Option<Self> {
        let program = folder.join("usr/bin").join(PROGRAM);
        if !program.is_file() {
            return None;
        }
        let folders = LIBRARY_FOLDERS
            .iter()
            .map(|library| folder.join(library))
            .filter(|folder| folder.is_dir());
        Some(Self {
            program,
            library_path: std::env::join_paths(folders).ok(),
        })
    }

    /// A command that runs it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }

    /// Runs it to see that it starts, is not too old, and has the machine that guests run on.
    ///
    /// # Errors
    /// What is wrong, naming the program.
    pub fn check(&self) -> Result<QemuVersion, String> {
        let text = self.output(&["--version"])?;
        let version = parse_version(&text).ok_or_else(|| {
            format!(
                "{} does not say its version: {}",
                self.program.display(),
                first_line(&text)
            )
        })?;
        if version < OLDEST_QEMU {
            return Err(format!(
                "{} is version {version}, older than {OLDEST_QEMU}",
                self.program.display()
            ));
        }
        let machines = self.output(&["-M", "help"])?;
        if !machines.lines().any(|line| line.starts_with("microvm ")) {
            return Err(format!("{} has no machine `microvm`", self.program.display()));
        }
        Ok(version)
    }

    fn output(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command().args(arguments).output();
        let output = output.map_err(|error| format!("{}: {error}", self.program.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{} does not run: {}: {}",
            self.program.display(),
            output.status,
            first_line(&said)
        ))
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Reads `QEMU emulator version 7.2.22 (Debian 1:7.2…)`.
fn parse_version(text: &str) -> Option<QemuVersion> {
    let (_, version) = text.split_once(" version ")?;
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit());
    Some(QemuVersion(
        numbers.next()?.parse().ok()?,
        numbers.next()?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse_version(debian), Some(QemuVersion(7, 2)));
        assert!(QemuVersion(10, 0) > OLDEST_QEMU && QemuVersion(7, 1) < OLDEST_QEMU);
        assert_eq!(parse_version("qemu"), None);
    }

    #[test]
    fn what_cannot_be_used_is_passed_over_and_said() {
        let home = tempfile::tempdir().unwrap();
        let resources = Resources::new(home.path());
        let put = |version: &str, machine: &str| {
            let folder = home.path().join(version);
            std::fs::create_dir(&folder).unwrap();
            let program = folder.join(PROGRAM);
            let text = format!(
                "#!/bin/sh\n[ $1 = --version ] && echo QEMU emulator version {version}.0 || echo '{machine}  none'\n"
            );
            std::fs::write(&program, text).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            folder
        };
        let old = put("5.2", "microvm");
        let other = put("8.0", "pc");
        let good = put("9.1", "microvm");
        let found = resources.qemu(&[old.clone(), other.clone(), good.clone()]);
        assert_eq!(
            found.map(|(qemu, version)| (qemu.program, version)),
            Ok((good.join(PROGRAM), QemuVersion(9, 1)))
        );
        let reason = |folder: &PathBuf| {
            Qemu {
                program: folder.join(PROGRAM),
                library_path: None,
            }
            .check()
            .unwrap_err()
        };
        assert!(reason(&old).contains("older than 7.2"));
        assert!(reason(&other).contains("no machine `microvm`"));
    }
}
