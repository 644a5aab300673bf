//! Arguments of `nex bench`: what is measured, how often, with what function, and where the result goes.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use clap::builder::TypedValueParser as _;

use super::super::args::{Output, ResourceDir, name};
use super::super::failure::Failure;
use super::cold::Cold;
use super::context::Context;
use super::density::{Density, PROBE};
use super::deploy::Deploy;
use super::steady::{self, Throughput, Warm};
use crate::bench::body;
use crate::duration;
use crate::machines::DriverKind;

/// Most calls of one repeat of an open loop: each takes a byte.
const MAX_CALLS: f64 = 100e6;

const HOUR: Duration = Duration::from_secs(3600);

const EXAMPLES: &str = "\
Functions are deployed to a running node, called over NATS, and removed at the end, also after
Ctrl-C. With --in-process or --driver no node and no NATS server is needed: with --in-process
functions run in this process, and the engine alone is measured; with --driver they run in machines
that this process starts as a node would.

Examples:
  nex bench all --in-process                     the engine, with every benchmark
  nex bench throughput --driver qemu             a virtual machine, without NATS
  nex bench warm --rate 2000 --html warm.html    a node: latency at 2,000 calls a second, with plots
  nex bench cold --functions 200 --json          cold starts of a node, for programs
  nex bench throughput --function resize.js --payload-file cat.jpg

BENCH.md of the node's sources defines what exactly each benchmark measures, and what it leaves out.

Exit status: 0 if all calls succeeded, 1 if some failed or something could not be measured, 2 for
wrong arguments, 3 if no NATS server or no node answered.";

/// Benchmarks.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) enum Command {
    /// Cold starts: calls to functions for which no isolate exists
    Cold(ColdArgs),
    /// Latency of a function that is awake, at a given rate of calls
    Warm(WarmArgs),
    /// Calls per second, with a given number in flight
    Throughput(ThroughputArgs),
    /// Memory of functions that have nothing to do, awake and hibernating
    Density(DensityArgs),
    /// Time from deploying a function until it has replied
    Deploy(DeployArgs),
    /// All of them, one after the other
    All(AllArgs),
    /// One repeat of `density`, in a process of its own
    #[command(name = PROBE, hide = true)]
    DensityProbe,
}

/// What all benchmarks take.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Measure the engine in this process, without NATS or a node; the same as --driver in_process
    #[arg(long, alias = "in_process", conflicts_with_all = ["node", "driver"])]
    in_process: bool,
    /// Measure functions in machines of this driver, which this process starts, without NATS or a node
    #[arg(long, value_name = "DRIVER", value_enum, conflicts_with = "node")]
    driver: Option<DriverKind>,
    #[command(flatten)]
    pub(super) resource_dir: ResourceDir,
    /// Node to measure (N…) [default: one that offers to run functions]
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(super) node: Option<String>,
    /// Times that everything is measured; the figures are medians
    #[arg(long, value_name = "N", default_value = "5")]
    pub(super) repeats: NonZeroU32,
    /// Unmeasured calls before each measurement that takes a time
    #[arg(long, alias = "warm_up", value_name = "DURATION", default_value = "1s", value_parser = up_to_an_hour)]
    pub(super) warm_up: Duration,
    /// Longest wait for a reply; a call that fails counts as this long
    #[arg(long, alias = "reply_timeout", value_name = "DURATION", default_value = "5s", value_parser = positive)]
    pub(super) reply_timeout: Duration,
    /// Source file of a function to measure instead of the built-in echo; its replies are checked for errors only
    #[arg(long, value_name = "FILE")]
    pub(super) function: Option<PathBuf>,
    /// Reply that is right, byte for byte, of the function that is measured
    #[arg(long, value_name = "TEXT", requires = "function", allow_hyphen_values = true)]
    pub(super) expect: Option<String>,
    /// Payload of every call [default: different bytes in each]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) payload: Option<String>,
    /// File with the payload of every call
    #[arg(long, alias = "payload_file", value_name = "FILE", conflicts_with = "payload")]
    pub(super) payload_file: Option<PathBuf>,
    /// Bytes of the payload, if it is not given
    #[arg(long, alias = "payload_size", value_name = "BYTES", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(..=64 << 20).map(to_usize),
        conflicts_with_all = ["payload", "payload_file"])]
    pub(super) payload_size: usize,
    /// Write the result with plots to this file, an HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Where the functions are that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On a running node.
    Node,
    /// In this process.
    Engine,
    /// In machines of this process.
    Machines(DriverKind),
}

impl Common {
    pub(super) fn place(&self) -> Place {
        match self.driver {
            Some(DriverKind::InProcess) => Place::Engine,
            Some(driver) => Place::Machines(driver),
            None if self.in_process => Place::Engine,
            None => Place::Node,
        }
    }
}

#[derive(Debug, clap::Args)]
struct ColdOptions {
    /// Sizes of the functions, in KB
    #[arg(long, value_name = "KB", value_delimiter = ',', default_value = "1,50,300",
        value_parser = clap::value_parser!(u32).range(1..=4096), conflicts_with = "function")]
    sizes: Vec<u32>,
}

#[derive(Debug, clap::Args)]
struct WarmOptions {
    /// Calls per second
    #[arg(long, value_name = "N", default_value_t = 1000.0, value_parser = rate)]
    rate: f64,
}

#[derive(Debug, clap::Args)]
struct ThroughputOptions {
    /// Calls in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    window: u32,
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct Timing {
    /// Seconds of each repeat
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ColdArgs {
    /// Functions of each kind, each called once in each repeat
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    functions: u32,
    #[command(flatten)]
    cold: ColdOptions,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct WarmArgs {
    #[command(flatten)]
    warm: WarmOptions,
    #[command(flatten)]
    timing: Timing,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ThroughputArgs {
    #[command(flatten)]
    throughput: ThroughputOptions,
    #[command(flatten)]
    timing: Timing,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DensityArgs {
    /// Awake functions; four times as many hibernate
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    functions: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeployArgs {
    /// Functions deployed in each repeat
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    functions: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct AllArgs {
    /// Functions of cold, density and deploy [default: 50, 200 and 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=100_000))]
    functions: Option<u32>,
    #[command(flatten)]
    cold: ColdOptions,
    #[command(flatten)]
    warm: WarmOptions,
    #[command(flatten)]
    throughput: ThroughputOptions,
    #[command(flatten)]
    timing: Timing,
    #[command(flatten)]
    common: Common,
}

/// What a run is to measure.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) common: Common,
    pub(super) cold: Option<Cold>,
    pub(super) warm: Option<Warm>,
    pub(super) throughput: Option<Throughput>,
    pub(super) density: Option<Density>,
    pub(super) deploy: Option<Deploy>,
}

impl Plan {
    fn of(common: Common) -> Self {
        Self {
            common,
            cold: None,
            warm: None,
            throughput: None,
            density: None,
            deploy: None,
        }
    }

    /// Steps of the progress bar.
    pub(super) fn steps(&self, context: &Context) -> u64 {
        let engine = self.common.place() == Place::Engine;
        let cold = self.cold.as_ref().map(|cold| cold.steps(context, engine));
        let warm = self.warm.map(|_| steady::steps(context));
        let throughput = self.throughput.map(|_| steady::steps(context));
        let density = self.density.map(|density| density.steps(context));
        let deploy = self.deploy.map(|deploy| deploy.steps(context));
        [cold, warm, throughput, density, deploy].into_iter().flatten().sum()
    }
}

impl Command {
    /// What is to be measured; `None` for the process that measures density for another.
    pub(super) fn plan(self) -> Result<Option<Plan>, Failure> {
        let plan = match self {
            Self::Cold(args) => Plan {
                cold: Some(args.cold.plan(args.functions)),
                ..Plan::of(args.common)
            },
            Self::Warm(args) => Plan {
                warm: Some(args.warm.plan(args.timing, &args.common)?),
                ..Plan::of(args.common)
            },
            Self::Throughput(args) => Plan {
                throughput: Some(args.throughput.plan(args.timing)),
                ..Plan::of(args.common)
            },
            Self::Density(args) => Plan {
                density: Some(Density {
                    functions: args.functions,
                }),
                ..Plan::of(args.common)
            },
            Self::Deploy(args) => Plan {
                deploy: Some(Deploy {
                    functions: args.functions,
                }),
                ..Plan::of(args.common)
            },
            Self::All(args) => Plan {
                cold: Some(args.cold.plan(args.functions.unwrap_or(50))),
                warm: Some(args.warm.plan(args.timing, &args.common)?),
                throughput: Some(args.throughput.plan(args.timing)),
                density: Some(Density {
                    functions: args.functions.unwrap_or(200),
                }),
                deploy: Some(Deploy {
                    functions: args.functions.unwrap_or(20),
                }),
                common: args.common,
            },
            Self::DensityProbe => return Ok(None),
        };
        Ok(Some(plan))
    }
}

impl ColdOptions {
    fn plan(&self, functions: u32) -> Cold {
        let bytes = |kilobytes: &u32| (to_usize(*kilobytes) << 10).max(body::MIN_BYTES);
        Cold {
            functions,
            sizes: self.sizes.iter().map(bytes).collect(),
        }
    }
}

impl WarmOptions {
    fn plan(&self, timing: Timing, common: &Common) -> Result<Warm, Failure> {
        let seconds = timing.seconds.max(common.warm_up.as_secs_f64());
        if self.rate * seconds > MAX_CALLS {
            return Err(Failure::usage(format_args!(
                "{} calls a second for {seconds} s are more than {} million calls",
                self.rate,
                MAX_CALLS / 1e6
            )));
        }
        Ok(Warm {
            rate: self.rate,
            duration: timing.duration(),
        })
    }
}

impl ThroughputOptions {
    fn plan(&self, timing: Timing) -> Throughput {
        Throughput {
            window: to_usize(self.window),
            duration: timing.duration(),
        }
    }
}

impl Timing {
    fn duration(self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn rate(text: &str) -> Result<f64, String> {
    between(text, 0.001, 1e6, "calls per second")
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, 0.001, 86_400.0, "seconds")
}

fn between(text: &str, least: f64, most: f64, what: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("expected {least} to {most} {what}")),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match up_to_an_hour(text)? {
        Duration::ZERO => Err("expected more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn up_to_an_hour(text: &str) -> Result<Duration, String> {
    duration::parse(text).and_then(|duration| {
        (duration <= HOUR)
            .then_some(duration)
            .ok_or("expected an hour at most".to_owned())
    })
}
