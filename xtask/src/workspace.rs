//! Where things are: the checkout, Cargo's target directory (wherever it was configured to be), and the binaries.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The checkout that this xtask was built from, and what Cargo makes of it.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    bin_dir: PathBuf,
    target_dir: PathBuf,
}

impl Workspace {
    /// The target directory is read off the running executable, so that every way to configure it is honoured.
    pub(crate) fn locate() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`, not on its own")?;
        let root = Path::new(&package)
            .parent()
            .context("xtask is not inside a workspace")?
            .to_path_buf();
        let executable = env::current_exe().context("where is this executable?")?;
        let bin_dir = executable
            .parent()
            .context("this executable is in no directory")?
            .to_path_buf();
        let target_dir = bin_dir
            .parent()
            .context("this executable is not in a target directory")?
            .to_path_buf();
        Ok(Self {
            root,
            bin_dir,
            target_dir,
        })
    }

    /// The checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A binary of the workspace, which [`build_binaries`](Self::build_binaries) makes.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Where installed tools are kept; `cargo clean` removes them with the rest.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target_dir.join("tools")
    }

    /// The Cargo that runs us, in the checkout, and without the variables that it sets for a program that it runs: build
    /// scripts that look at them would run again each time the same Cargo is called from here and from a shell.
    pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args).current_dir(&self.root).env_remove("OUT_DIR");
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        cargo
    }

    /// Builds all binaries, with the profile and the features of the tests, so that nothing is compiled twice.
    pub(crate) fn build_binaries(&self) -> Result<()> {
        process::step(
            "building the workspace",
            &mut self.cargo(["build", "--workspace", "--bins"]),
        )
    }
}
