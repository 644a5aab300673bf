//! Which Firecracker it is, and what that version cannot do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::machines::MachineError;
use crate::machines::child::bare_command;

/// A version of Firecracker or of its jailer. Pre-releases (`1.17.0-dev`) count as the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

impl Version {
    /// The oldest one the driver works with.
    pub(super) const OLDEST: Self = Self::new(1, 14, 0);
    /// The first with transparent huge pages.
    pub(super) const TRANSPARENT_HUGE_PAGES: Self = Self::new(1, 17, 0);

    pub(super) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Whether a machine hears nothing on its vsock any more once it was paused and resumed (Firecracker's pull request
    /// 6100): new in 1.16.0, mended in 1.17.0.
    pub(super) fn loses_vsock_on_resume(self) -> bool {
        (Self::new(1, 16, 0)..Self::new(1, 17, 0)).contains(&self)
    }

    /// Whether a restored guest may be connected before it has reset its vsock, and lose the connection by it (pull request
    /// 5882): mended in 1.16.0.
    pub(super) fn resets_vsock_late(self) -> bool {
        self < Self::new(1, 16, 0)
    }

    /// Asks a program for its version, which must not be too old.
    ///
    /// # Errors
    /// When it is not there, does not say, says something else, or is too old.
    pub(super) async fn of(program: &Path, what: &'static str) -> Result<Self, MachineError> {
        let mut command = bare_command(program);
        command.arg("--version").kill_on_drop(true);
        let output = match tokio::time::timeout(PATIENCE, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(MachineError::Missing {
                    what,
                    path: program.to_owned(),
                    hint: "install a release of Firecracker, or say where it is".to_owned(),
                });
            }
            Ok(Err(source)) => {
                return Err(MachineError::Spawn {
                    program: program.to_owned(),
                    source,
                });
            }
            Err(_) => {
                let program = program.display();
                return Err(MachineError::Unsupported(format!(
                    "`{program} --version` did not answer within {PATIENCE:?}"
                )));
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().unwrap_or_default();
        let program = program.display();
        let Some(version) = Self::parse(first) else {
            let said: String = first.chars().take(80).collect();
            return Err(MachineError::Unsupported(format!(
                "`{program} --version` printed {said:?}, which names no version; expected something like {what} v{}",
                Self::OLDEST
            )));
        };
        if version < Self::OLDEST {
            let oldest = Self::OLDEST;
            return Err(MachineError::Unsupported(format!(
                "{program} is {what} {version}; {oldest} or newer is needed"
            )));
        }
        Ok(version)
    }

    /// Finds it in a line like `Firecracker v1.14.0`.
    fn parse(line: &str) -> Option<Self> {
        let number = line.split_whitespace().nth(1)?.strip_prefix('v')?;
        let release = number.split_once('-').map_or(number, |(release, _)| release);
        let mut parts = release.split('.').map(str::parse);
        let version = Self::new(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_programs_print() {
        let parse = Version::parse;
        assert_eq!(parse("Firecracker v1.14.0"), Some(Version::new(1, 14, 0)));
        assert_eq!(parse("Jailer v1.17.0-dev"), Some(Version::new(1, 17, 0)));
        for wrong in [
            "",
            "Firecracker",
            "Firecracker 1.14.0",
            "Firecracker v1.14",
            "Firecracker v1.14.0.1",
            "x vx.y.z",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert!(Version::new(1, 9, 9) < Version::OLDEST);
    }

    #[test]
    fn knows_which_lose_the_vsock() {
        for (version, loses) in [
            ((1, 15, 9), false),
            ((1, 16, 0), true),
            ((1, 16, 1), true),
            ((1, 17, 0), false),
        ] {
            let version = Version::new(version.0, version.1, version.2);
            assert_eq!(version.loses_vsock_on_resume(), loses, "{version}");
        }
    }
}
