//! `nex preflight`: whether this machine has what a node's machines need, item by item, and the installation of what is
//! missing and can be had. Installing goes into the resource folder and nowhere else, and needs no root.

mod apt;
mod check;
mod install;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::check::{Check, Item, State};
use self::install::Installer;
use super::args::{Output, ResourceDir};
use super::failure::{Failure, Status};
use super::{output, up};
use crate::machines::DriverKind;
use crate::machines::resources::{Lock, Resources};

const HELP: &str = "\
QEMU and the kernel come from the Debian packages of this machine's apt sources. They are unpacked into the resource folder;
the system is left as it is, and no root is needed. Firecracker is in no package registry: get a release from
https://github.com/firecracker-microvm/firecracker/releases and put `firecracker` and `jailer` into PATH or `bin` in the
resource folder.

Exit status:
  0  everything is there, or was installed
  1  something is missing: --check was given, you said no, it cannot be installed, or installing failed
  2  the command line or the environment is wrong

Examples:
  nex preflight --driver qemu           look, and ask before each installation
  nex preflight --driver qemu --yes     for scripts
  nex preflight --all --check --json    only look, for programs";

/// Arguments of `nex preflight`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Driver of machines to look for [default: the configured one]
    #[arg(long, value_name = "DRIVER", value_enum, conflicts_with = "all")]
    driver: Option<DriverKind>,
    /// All drivers
    #[arg(long)]
    all: bool,
    /// Configuration file of the node, JSON [default: ./config.json if there is one, else the defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only look
    #[arg(long, conflicts_with_all = ["yes", "force"])]
    check: bool,
    /// Install without asking
    #[arg(short, long)]
    yes: bool,
    /// Install anew what is there already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    resource_dir: ResourceDir,
    #[command(flatten)]
    output: Output,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report<'a> {
    satisfied: bool,
    resource_dir: &'a Path,
    installed: &'a [Item],
    checks: &'a [Check],
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    tokio::task::spawn_blocking(move || preflight(&args))
        .await
        .map_err(Failure::failed)?
}

fn preflight(args: &Args) -> Result<(), Failure> {
    let config = up::load(args.config.as_deref())?;
    let resources = args.resource_dir.or(config.default_resource_dir.as_deref())?;
    let drivers = if args.all {
        vec![DriverKind::Process, DriverKind::Qemu, DriverKind::Firecracker]
    } else {
        vec![args.driver.unwrap_or(config.machine_driver)]
    };
    let looked = check::Places {
        resources: &resources,
        bin_path: &config.bin_path,
    };
    let mut installed = Vec::new();
    let mut checks = looked.all(&drivers, &mut |found| show(args, found))?;
    let mut failure = None;
    if !args.check {
        match install(args, &resources, &checks) {
            Ok(items) => installed = items,
            Err((items, error)) => {
                installed = items;
                failure = Some(error);
            }
        }
    }
    if !installed.is_empty() {
        checks = looked.all(&drivers, &mut |found| show(args, found))?;
    }
    let satisfied = failure.is_none() && checks.iter().all(Check::is_satisfied);
    if args.output.json {
        output::json(&Report {
            satisfied,
            resource_dir: resources.folder(),
            installed: &installed,
            checks: &checks,
        })?;
    }
    match failure {
        Some(failure) => Err(failure),
        None if satisfied => Ok(()),
        None => Err(Failure::silent(Status::Failed)),
    }
}

/// Installs what is missing, in an order in which each item finds what it is made of. Tells what was installed, also when
/// something failed.
fn install(args: &Args, resources: &Resources, checks: &[Check]) -> Result<Vec<Item>, (Vec<Item>, Failure)> {
    let mut items: Vec<Item> = checks
        .iter()
        .filter(|check| args.force || !check.is_satisfied())
        .filter_map(|check| check.item)
        .collect();
    items.sort();
    items.dedup();
    let mut done = Vec::new();
    if items.is_empty() {
        return Ok(done);
    }
    // One at a time: another one may be installing just what is missing here.
    let lock = Lock::acquire(&resources.folder().join(".lock"));
    let _lock = match lock {
        Ok(lock) => lock,
        Err(error) => {
            let message = format!(
                "cannot write to the resource folder {}: {error}",
                resources.folder().display()
            );
            return Err((done, Failure::usage(message)));
        }
    };
    let mut installer = Installer::new(resources);
    for item in items {
        if !args.force && installer.is_there(item) {
            continue;
        }
        let allowed = args.yes || (!args.output.json && ask(item));
        if !allowed {
            continue;
        }
        output::diagnostic(&format!("⏳ Installing {item} …"));
        match installer.install(item) {
            Ok(()) => done.push(item),
            Err(failure) => {
                return Err((
                    done,
                    failure.map(|message| format!("{item} was not installed: {message}")),
                ));
            }
        }
    }
    Ok(done)
}

/// Asks on the terminal. Where there is none, nobody says yes.
fn ask(item: Item) -> bool {
    let mut stderr = std::io::stderr().lock();
    let prompt = format!("⛔ You are missing required dependencies for [{item}], do you want to install? [y/N] ");
    if !std::io::stdin().is_terminal() {
        _ = writeln!(
            stderr,
            "{prompt}\nThere is no terminal to answer on; --yes installs without asking."
        );
        return false;
    }
    _ = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let answered = std::io::stdin().lock().read_line(&mut answer);
    answered.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

fn show(args: &Args, check: &Check) -> Result<(), Failure> {
    if args.output.json {
        return Ok(());
    }
    match &check.state {
        State::Satisfied => {
            let path = check
                .path
                .as_deref()
                .map(|path| format!("{} ", path.display()))
                .unwrap_or_default();
            output::line(format_args!("✅ Dependency Satisfied - {path}[{}]", check.what))?;
        }
        State::Missing => output::line(format_args!("⛔ Dependency Missing - {}", check.what))?,
    }
    for line in &check.details {
        output::line(format_args!("   {line}"))?;
    }
    Ok(())
}
