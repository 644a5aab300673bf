//! Where the nats-server binary is: `$NATS_SERVER_BIN`, else `PATH`, else what `cargo xtask setup` has put under the
//! target directory.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::NatsServerError;

/// The oldest server that will do.
pub const MIN_VERSION: Version = Version(2, 10);

/// Major and minor version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Finds the binary of a server that is recent enough. `$NATS_SERVER_BIN` is taken as it is; on `PATH` and under the
/// target directory of a cargo build (found from this program's own path) the version is checked.
///
/// # Errors
/// [`NatsServerError::NotFound`], naming all places that were looked at.
pub fn find_binary() -> Result<PathBuf, NatsServerError> {
    let this_program = std::env::current_exe().unwrap_or_default();
    find(
        std::env::var_os("NATS_SERVER_BIN").as_deref(),
        std::env::var_os("PATH").as_deref(),
        &this_program,
    )
}

fn find(chosen: Option<&OsStr>, path: Option<&OsStr>, this_program: &Path) -> Result<PathBuf, NatsServerError> {
    let mut looked_at = Vec::new();
    if let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) {
        // Whoever sets it means it: no falling back to another server.
        return match Path::new(chosen) {
            file if file.is_file() => Ok(file.to_owned()),
            file => Err(NatsServerError::NotFound {
                looked_at: format!("NATS_SERVER_BIN ({} is no file)", file.display()),
            }),
        };
    }
    looked_at.push("NATS_SERVER_BIN (not set)".to_owned());

    let name = format!("nats-server{}", std::env::consts::EXE_SUFFIX);
    let directories = path.map(std::env::split_paths).into_iter().flatten();
    let on_path = directories
        .map(|directory| directory.join(&name))
        .find(|file| file.is_file());
    if on_path.is_none() {
        looked_at.push("PATH (none there)".to_owned());
    }
    let tools = this_program.ancestors().map(|folder| folder.join("tools").join(&name));
    let in_tools = tools.into_iter().find(|file| file.is_file());
    if in_tools.is_none() {
        looked_at.push(format!("tools/{name} in the folders above {}", this_program.display()));
    }

    for file in [on_path, in_tools].into_iter().flatten() {
        match version(&file) {
            Some(version) if version >= MIN_VERSION => return Ok(file),
            Some(version) => looked_at.push(format!("{} (version {version})", file.display())),
            None => looked_at.push(format!("{} (tells no version)", file.display())),
        }
    }
    Err(NatsServerError::NotFound {
        looked_at: looked_at.join(", "),
    })
}

fn version(file: &Path) -> Option<Version> {
    let output = Command::new(file).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `nats-server: v2.10.18` and its like.
fn parse_version(text: &str) -> Option<Version> {
    let (_, version) = text.split_once(": v")?;
    let mut parts = version.split('.');
    Some(Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn fake(directory: &Path, version: &str) -> PathBuf {
        std::fs::create_dir_all(directory).unwrap();
        let file = directory.join("nats-server");
        std::fs::write(&file, format!("#!/bin/sh\necho 'nats-server: v{version}'\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("nats-server: v2.10.18\n"), Some(Version(2, 10)));
        assert_eq!(parse_version("nats-server: v2.15.1-beta.1"), Some(Version(2, 15)));
        assert_eq!(parse_version("something else"), None);
        assert!(Version(2, 9) < MIN_VERSION && Version(3, 0) > MIN_VERSION);
    }

    #[test]
    fn order_of_places() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("target/debug/deps/test");
        let path = root.path().join("bin");
        let fails = find(None, Some(path.as_os_str()), &program).unwrap_err().to_string();
        assert!(fails.contains("PATH") && fails.contains("cargo xtask setup"), "{fails}");

        let tools = fake(&root.path().join("target/tools"), "2.12.0");
        assert_eq!(find(None, Some(path.as_os_str()), &program).unwrap(), tools);

        // One on PATH that is too old does not stand in the way.
        fake(&path, "2.9.1");
        assert_eq!(find(None, Some(path.as_os_str()), &program).unwrap(), tools);
        let recent = fake(&path, "2.10.0");
        assert_eq!(find(None, Some(path.as_os_str()), &program).unwrap(), recent);

        let chosen = fake(&root.path().join("chosen"), "1.0.0");
        assert_eq!(find(Some(chosen.as_os_str()), None, &program).unwrap(), chosen);
        let error = find(Some(OsStr::new("/nowhere")), Some(path.as_os_str()), &program);
        assert!(error.unwrap_err().to_string().contains("/nowhere is no file"));
    }
}
