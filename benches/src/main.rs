//! Measures nex on this machine, beside what it is compared with, in one run: `echo` over NATS, `runtime` in process,
//! `machines` of each driver, and `rivals`, which are what somebody might use instead.
//! Run it in release mode on an idle machine; `--quick` only proves that it works.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark reports to standard output, its progress to standard error"
)]

mod contender;
mod echo;
mod machines;
mod memory;
mod native;
mod report;
mod rivals;
mod runtime;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tokio::runtime::Builder;

/// Benchmarks of nex.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A JavaScript echo over NATS, in agents and inside the node, beside a native echo
    Echo {
        #[command(flatten)]
        options: Options,
        /// Calls per second of the paced latency measurement
        #[arg(long, default_value_t = 100)]
        rate: u32,
    },
    /// The engine alone, without NATS: start of a function, and calls of it
    Runtime {
        #[command(flatten)]
        options: Options,
    },
    /// What functions cost in memory, and whether it is given back
    Memory {
        #[command(flatten)]
        options: Options,
        /// Only density, with the kernel merging pages that are alike, which it must have been set up to
        /// (/sys/kernel/mm/ksm)
        #[arg(long)]
        merge_memory: bool,
    },
    /// What machines cost, by driver: starts, memory, calls, replacement, and whether anything is left of them
    Machines(machines::Args),
    /// A node over machines of one driver, which `machines` starts as a process of its own
    #[command(hide = true)]
    MachineNode(machines::node::Args),
    /// Beside Node.js, workerd and Deno: an echo, and cold starts
    Rivals(rivals::Args),
    /// The bridge from NATS to HTTP, which `rivals` starts as a process of its own
    #[command(hide = true)]
    Bridge(rivals::bridge::Args),
    /// The native echo, which `echo` starts as a process of its own
    #[command(hide = true)]
    NativeEcho(native::Args),
}

/// How much to measure.
#[derive(Debug, Clone, Args)]
struct Options {
    /// Measure next to nothing: a test that the benchmark works
    #[arg(long)]
    quick: bool,
    /// Repeats of each measurement; the contenders take turns
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Append the result, as Markdown, to this file
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
}

impl Options {
    fn resolved(mut self) -> Self {
        if self.quick {
            self.repeats = 1;
            self.seconds = 0.2;
        }
        self
    }
}

fn main() -> Result<()> {
    let Cli { command } = Cli::parse();
    let mut runtime = match command {
        Command::Bridge(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(run(command))
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Echo { options, rate } => {
            let options = options.resolved();
            publish(&options, &echo::run(&options, rate).await?)
        }
        Command::Runtime { options } => {
            let options = options.resolved();
            publish(&options, &runtime::run(&options).await?)
        }
        Command::Memory { options, merge_memory } => {
            let options = options.resolved();
            publish(&options, &memory::run(&options, merge_memory).await?)
        }
        Command::Machines(args) => machines::run(args).await,
        Command::MachineNode(args) => machines::node::run(args).await,
        Command::Rivals(args) => rivals::run(args).await,
        Command::Bridge(args) => rivals::bridge::run(args).await,
        Command::NativeEcho(args) => native::run(args).await,
    }
}

fn publish(options: &Options, markdown: &str) -> Result<()> {
    let markdown = markdown.trim_end();
    println!("{markdown}");
    if let Some(path) = &options.append {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| writeln!(file, "\n{markdown}"))
            .with_context(|| format!("cannot append to {}", path.display()))?;
    }
    Ok(())
}
