//! The command line `nex`: the tree of commands, and how each run ends.
//!
//! One file per command under `cli/`. A command returns `Ok(())` or a `Failure`, which becomes one line on standard
//! error and an exit status: nothing fails silently, and nothing but results goes to standard output.

mod args;
mod bench;
mod control;
mod deploy;
mod devrun;
mod events;
mod failure;
mod invoke;
mod keys;
mod logging;
mod logs;
mod node;
mod output;
mod preflight;
mod rootfs;
mod run;
mod source;
mod stop;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::args::Global;
use self::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  nex invoke echo.js --subject greet --payload hello   run a function here, with no server
  nex node up --dev                                    start a NATS server and a node on it
  nex devrun echo.js --trigger_subject greet           deploy a function, or its next version
  nats request greet hello                             call it
  nex logs                                             follow what functions write
  nex node ls                                          list the nodes, and
  nex node info NODE                                   what runs on one of them
  nex preflight --driver qemu                          install what virtual machines need
  nex bench all --in-process                           measure the engine on this machine

Exit status:
  0  it worked
  1  it was tried and failed: the function threw, a node refused, nothing matched
  2  the command line, a setting or a file it names is wrong
  3  no NATS server or no node answered";

/// Run functions on NATS: start nodes, deploy functions to them, and see what they do.
#[derive(Debug, Parser)]
#[command(name = "nex", version, after_help = EXAMPLES, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start nodes and look at them
    #[command(subcommand)]
    Node(node::Command),
    /// Deploy an artefact that is in an object store to a node
    Run(run::Args),
    /// Deploy a file: uploads and signs it, finds a node, and replaces its older version
    #[command(visible_alias = "yeet")]
    Devrun(devrun::Args),
    /// Stop a workload
    Stop(stop::Args),
    /// Make a node refuse new workloads from now on
    Lameduck(node::LameduckArgs),
    /// Follow the log lines of workloads
    Logs(logs::Args),
    /// Follow the events of nodes and workloads
    Events(events::Args),
    /// Run a function once, in this process and with in-memory host services; needs no server
    Invoke(invoke::Args),
    /// Make the image that virtual machines boot
    #[command(visible_alias = "fs")]
    Rootfs(rootfs::Args),
    /// Look whether this machine has what the node's machines need, and install what is missing
    Preflight(preflight::Args),
    /// Measure cold starts, latency, throughput, memory and deployments, of a node or of the engine in this process
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Runs the program with the arguments of this process.
pub async fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Also help and version, which go to standard output with status 0.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    logging::init(&global, matches!(command, Command::Node(node::Command::Up(_))));
    match command {
        Command::Node(node::Command::Up(args)) => up::run(&global, args).await,
        Command::Node(command) => node::run(&global, command).await,
        Command::Run(args) => run::run(&global, args).await,
        Command::Devrun(args) => devrun::run(&global, args).await,
        Command::Stop(args) => stop::run(&global, args).await,
        Command::Lameduck(args) => node::lameduck(&global, args).await,
        Command::Logs(args) => logs::run(&global, args).await,
        Command::Events(args) => events::run(&global, args).await,
        Command::Invoke(args) => invoke::run(&global, args).await,
        Command::Rootfs(args) => rootfs::run(args).await,
        Command::Preflight(args) => preflight::run(args).await,
        Command::Bench(command) => bench::run(&global, command).await,
    }
}

/// Parses arguments without running them, for tests.
#[cfg(test)]
fn parse<I, T>(arguments: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    Cli::try_parse_from(arguments)
}

#[cfg(test)]
mod tests;
