//! Packages from this machine's apt sources, downloaded and not installed. apt checks their signatures as ever; all that
//! it writes is in a folder of ours, so that the system is left as it is and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machines::resources::Replacement;

/// What the system thinks is installed.
const STATUS: &str = "/var/lib/dpkg/status";

/// Of these the resource folder is to have its own, installed on the system or not.
const OWN: [&str; 3] = ["qemu-", "seabios", "ipxe-qemu"];

/// apt with a state of its own. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Apt {
    folder: Replacement,
}

impl Apt {
    /// Fetches the lists of packages. `folder` is where apt may write meanwhile.
    ///
    /// # Errors
    /// What is wrong, with what to do where there is no apt.
    pub(super) fn prepare(folder: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        let status = fs::read_to_string(STATUS).map_err(|error| {
            format!(
                "packages can only be had on Debian and its relatives, by apt ({STATUS}: {error}); elsewhere install \
                 qemu-system-x86_64 by your system's means, and make the image with `nex rootfs --kernel FILE`"
            )
        })?;
        let apt = Self {
            folder: Replacement::begin(folder).map_err(failed)?,
        };
        let place = apt.folder.folder().to_owned();
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(place.join(name)).map_err(failed)?;
        }
        fs::write(place.join("status"), without_own(&status)).map_err(failed)?;
        fs::write(place.join("apt.conf"), configuration(&place)?).map_err(failed)?;
        // A third party's source that does not answer is no reason to give up: what matters is whether the packages are
        // found, and that says so itself.
        if let Err(error) = apt.run("apt-get", &["-qq", "update"]) {
            tracing::warn!("{error}");
        }
        Ok(apt)
    }

    /// Downloads a package with all it needs that the system does not have.
    pub(super) fn download_with_dependencies(&self, package: &str) -> Result<Vec<PathBuf>, String> {
        self.run("apt-get", &["-qq", "--download-only", "install", package])?;
        packages_in(&self.folder.folder().join("cache/archives"))
    }

    /// Downloads packages alone.
    pub(super) fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>, String> {
        let mut arguments = vec!["-qq", "download"];
        arguments.extend(packages.iter().map(String::as_str));
        self.run("apt-get", &arguments)?;
        packages_in(self.folder.folder())
    }

    /// The names of the packages that this one depends on.
    pub(super) fn dependencies(&self, package: &str) -> Result<Vec<String>, String> {
        let text = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        Ok(dependencies_in(&text))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let place = self.folder.folder();
        let output = Command::new(program)
            .arg("-c")
            .arg(place.join("apt.conf"))
            .args(arguments)
            .current_dir(place)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => format!("there is no {program} on this machine to get packages with"),
                _ => format!("{program}: {error}"),
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("E:")).take(3).collect();
        Err(format!(
            "`{program} {}` failed with {}: {}",
            arguments.join(" "),
            output.status,
            lines.join(" ")
        ))
    }
}

/// apt's settings. The hooks of the system are not run: some clean up after installations that we do not make.
fn configuration(folder: &Path) -> Result<String, String> {
    let place = folder.display().to_string();
    if place.contains(['"', '\n', ';']) {
        return Err(format!("apt cannot write to a folder with this name: {place}"));
    }
    Ok(format!(
        "Dir::State::Lists \"{place}/lists\";\n\
         Dir::State::status \"{place}/status\";\n\
         Dir::Cache \"{place}/cache\";\n\
         Dir::Cache::archives \"{place}/cache/archives\";\n\
         Debug::NoLocking \"true\";\n\
         APT::Sandbox::User \"root\";\n\
         APT::Install-Recommends \"false\";\n\
         APT::Install-Suggests \"false\";\n\
         APT::Get::Assume-Yes \"true\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n"
    ))
}

/// The status file without the packages that we want ourselves.
fn without_own(status: &str) -> String {
    let is_own = |stanza: &&str| {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: "));
        name.is_some_and(|name| OWN.iter().any(|own| name.starts_with(own)))
    };
    let mut kept: String = status.split("\n\n").filter(|stanza| !is_own(stanza)).fold(
        String::with_capacity(status.len()),
        |mut kept, stanza| {
            kept.push_str(stanza.trim_matches('\n'));
            kept.push_str("\n\n");
            kept
        },
    );
    kept.truncate(kept.trim_end().len());
    kept.push_str("\n\n");
    kept
}

/// The first alternative of each dependency in a package's description.
fn dependencies_in(description: &str) -> Vec<String> {
    let fields = description.lines().filter_map(|line| {
        let depends = line.strip_prefix("Depends: ");
        depends.or_else(|| line.strip_prefix("Pre-Depends: "))
    });
    fields
        .flat_map(|field| field.split(','))
        .filter_map(|dependency| dependency.split(['|', '(', ':']).next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut packages = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    packages.sort();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_has_of_ours_counts_for_nothing() {
        let status = "Package: libc6\nVersion: 2\n\nPackage: qemu-system-x86\nVersion: 7\n\nPackage: seabios\n\nPackage: zlib1g\n";
        assert_eq!(without_own(status), "Package: libc6\nVersion: 2\n\nPackage: zlib1g\n\n");
    }

    #[test]
    fn dependencies_are_read_from_a_description() {
        let text = "Package: a\nDepends: linux-image-6.1.0-57-cloud-amd64 (= 6.1.192-3), kmod | busybox,\nSuggests: x\nPre-Depends: libc6:amd64";
        assert_eq!(
            dependencies_in(text),
            ["linux-image-6.1.0-57-cloud-amd64", "kmod", "libc6"]
        );
    }

    #[test]
    fn a_folder_that_would_end_a_setting_is_refused() {
        assert!(configuration(Path::new("/a/b")).is_ok_and(|text| text.contains("\"/a/b/lists\"")));
        assert!(configuration(Path::new("/a\"/b")).is_err());
    }
}
