//! Programs and Python packages that are not Rust crates: found on the machine, or installed by pip from requirements
//! that pin version and SHA-256 (`xtask/requirements/`). pip refuses a file whose hash is not listed.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

const NATS_SERVER: &str = include_str!("../requirements/nats-server.txt");
const TESTS: &str = include_str!("../requirements/tests.txt");

/// Set to 1 where there can be no virtual machines.
const SKIP_VM_TESTS: &str = "NEX_SKIP_VM_TESTS";

/// The oldest nats-server that has all of JetStream that nex uses, as (major, minor).
const OLDEST_NATS_SERVER: (u32, u32) = (2, 10);

/// Finds or installs nats-server.
///
/// # Errors
/// When `NATS_SERVER_BIN` is set to something that is not a recent nats-server, or when installing fails.
pub(crate) fn nats_server(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(path) = env::var_os("NATS_SERVER_BIN") {
        let path = PathBuf::from(path);
        check_nats_server(&path).context("NATS_SERVER_BIN is no use")?;
        return Ok(std::path::absolute(path)?);
    }
    if let Some(path) = on_path("nats-server") {
        match check_nats_server(&path) {
            Ok(()) => return Ok(path),
            Err(error) => eprintln!("xtask: passing over the nats-server on PATH: {error:#}"),
        }
    }
    let installed = install(workspace, "nats-server-wheel", NATS_SERVER, "nats-server")?.join("bin/nats-server");
    let tool = workspace.tools().join("nats-server");
    replace_with_link(&tool, &installed)?;
    check_nats_server(&tool)?;
    Ok(tool)
}

/// Installs the Python packages that the tests import.
///
/// # Errors
/// When pip fails.
pub(crate) fn python_packages(workspace: &Workspace) -> Result<PathBuf> {
    install(workspace, "python", TESTS, "the tests' Python packages")
}

/// Finds or installs what virtual machines need, by the `nex` that was built before: QEMU, a kernel, and a guest image of
/// the agent beside it. `None` if their tests are to be skipped.
///
/// # Errors
/// When something is missing and cannot be installed.
pub(crate) fn machines(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if env::var_os(SKIP_VM_TESTS).is_some_and(|value| value == "1") {
        eprintln!("xtask: {SKIP_VM_TESTS} is set: no test runs a virtual machine");
        return Ok(None);
    }
    let folder = match env::var_os("NEX_RESOURCE_DIR").filter(|value| !value.is_empty()) {
        Some(folder) => std::path::absolute(folder)?,
        None => workspace.tools().join("machines"),
    };
    let mut preflight = Command::new(workspace.binary("nex"));
    preflight
        .args(["preflight", "--driver", "qemu", "--yes", "--resource-dir"])
        .arg(&folder)
        .current_dir(workspace.root());
    process::step("looking for what virtual machines need", &mut preflight).with_context(|| {
        format!(
            "virtual machines cannot be set up. It takes apt with the sources of a Debian mirror, or QEMU on PATH and an image \
             made by `nex rootfs --kernel FILE -o {}`; {SKIP_VM_TESTS}=1 runs the tests without virtual machines",
            folder.join("image").display()
        )
    })?;
    Ok(Some(folder))
}

/// `PYTHONPATH` with `first` before whatever the user has there.
///
/// # Errors
/// When a directory's name contains a colon.
pub(crate) fn prepend_python_path(first: &Path) -> Result<OsString> {
    let rest = env::var_os("PYTHONPATH").unwrap_or_default();
    let paths =
        std::iter::once(first.to_path_buf()).chain(env::split_paths(&rest).filter(|p| !p.as_os_str().is_empty()));
    env::join_paths(paths).context("PYTHONPATH cannot hold the name of the target directory")
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn check_nats_server(path: &Path) -> Result<()> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.lines().next().unwrap_or_default();
    let Some(version) = parse_version(text) else {
        bail!("{} does not tell its version, it says: {text}", path.display());
    };
    if version < OLDEST_NATS_SERVER {
        let (major, minor) = OLDEST_NATS_SERVER;
        bail!("{} is {text}, older than {major}.{minor}", path.display());
    }
    Ok(())
}

/// Reads `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().rsplit_once('v')?;
    let mut numbers = version.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Has pip install `requirements` into `tools/NAME`, unless that was done before with the same requirements.
///
/// The files appear under their final name only when they are complete, so an interrupted run leaves nothing half done.
fn install(workspace: &Workspace, name: &str, requirements: &str, what: &str) -> Result<PathBuf> {
    let directory = workspace.tools().join(name);
    let is_current = || fs::read_to_string(directory.join("requirements.txt")).is_ok_and(|text| text == requirements);
    if is_current() {
        return Ok(directory);
    }
    let partial = workspace.tools().join(format!("{name}.partial-{}", std::process::id()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let list = partial.join("requirements.txt");
    fs::write(&list, requirements)?;
    let result = process::step(&format!("installing {what}"), &mut pip_install(&list, &partial));
    if let Err(error) = result {
        let _ = fs::remove_dir_all(&partial);
        return Err(error.context(format!(
            "cannot install {what}. It needs Python 3 with pip (Debian: apt-get install python3-pip) and PyPI or a mirror; \
             for nats-server, NATS_SERVER_BIN can name one that you have"
        )));
    }
    let _ = fs::remove_dir_all(&directory);
    if let Err(error) = fs::rename(&partial, &directory) {
        let _ = fs::remove_dir_all(&partial);
        // Another xtask may have been quicker, which is as good.
        if !is_current() {
            return Err(error).with_context(|| format!("cannot create {}", directory.display()));
        }
    }
    Ok(directory)
}

/// `--target` needs no virtual environment, whose modules Debian packages separately. The variables undo user settings
/// that forbid it.
fn pip_install(requirements: &Path, directory: &Path) -> Command {
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    ])
    .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
    .arg(requirements)
    .arg("--target")
    .arg(directory)
    .env("PIP_USER", "0")
    .env("PIP_REQUIRE_VIRTUALENV", "0")
    .env("PIP_ROOT_USER_ACTION", "ignore");
    pip
}

/// Makes `link` the same file as `original`, at once: whoever runs `link` meanwhile finds the old one or the new one.
fn replace_with_link(link: &Path, original: &Path) -> Result<()> {
    let partial = link.with_extension(format!("partial-{}", std::process::id()));
    let _ = fs::remove_file(&partial);
    fs::hard_link(original, &partial).with_context(|| format!("no nats-server at {}", original.display()))?;
    fs::rename(&partial, link).with_context(|| format!("cannot replace {}", link.display()))?;
    // Renaming a file to another name of itself does nothing, and leaves both.
    let _ = fs::remove_file(&partial);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_nats_server_prints() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.12.0-RC.3\n"), Some((2, 12)));
        assert_eq!(parse_version("something else"), None);
    }
}
