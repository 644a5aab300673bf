//! What machines cost, by driver, in one run: how they start, what they take, how calls go through them, how soon one that
//! fails is replaced, and whether anything is left of those that have ended.

mod churn;
mod lab;
mod memory;
pub(crate) mod node;
mod replacement;
mod service;
mod starts;

use std::time::Duration;

use anyhow::{Result, ensure};
use nex_host_services::nats_server::{NatsServer, Options as ServerOptions, find_binary};
use nex_node::bench::machine;
use nex_node::machines::DriverKind;

use self::lab::{Ground, Lab};
use crate::report::Table;
use crate::{Options, publish, report};

/// Longest wait for whatever must happen: an emulated machine takes its time on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Drivers to measure; functions in the node's own process are measured beside them
    #[arg(long, value_enum, value_delimiter = ',', default_value = "process,qemu")]
    drivers: Vec<DriverKind>,
    /// Machines of each driver that are started and ended again, to see whether anything is left
    #[arg(long, value_name = "N", default_value_t = 200)]
    rounds: usize,
    #[command(flatten)]
    place: lab::Place,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Confined processes started of each kind.
    processes: usize,
    /// Virtual machines booted.
    boots: usize,
    /// Virtual machines restored for each of those.
    restores: usize,
    /// Machines whose memory is read.
    memory: usize,
    /// Deployments into namespaces without a machine.
    deploys: usize,
    /// Machines that crash, and machines that hang.
    faults: usize,
    /// Machines started and ended to see what is left.
    rounds: usize,
}

impl Scale {
    fn of(args: &Args) -> Self {
        if args.options.quick {
            return Self {
                processes: 2,
                boots: 1,
                restores: 1,
                memory: 2,
                deploys: 2,
                faults: 1,
                rounds: args.rounds.min(5),
            };
        }
        let repeats = args.options.repeats;
        Self {
            processes: 10 * repeats,
            boots: repeats,
            restores: 5,
            memory: 4,
            deploys: 4 * repeats,
            faults: 2 * repeats,
            rounds: args.rounds,
        }
    }
}

/// Runs it all, reports, and fails if anything is left of a machine.
pub(crate) async fn run(mut args: Args) -> Result<()> {
    args.options = args.options.resolved();
    ensure!(
        !args.drivers.contains(&DriverKind::InProcess),
        "the driver in_process has no machines; it is measured beside the others anyway"
    );
    let scale = Scale::of(&args);
    let lab = Lab::new(args.place)?;
    let mut grounds = Vec::new();
    for &kind in &args.drivers {
        grounds.push(Ground::new(&lab, kind).await?);
    }
    let binary = find_binary()?;
    let mut machine = report::machine();
    machine.nats_server_version = machine::nats_server_version(&binary);

    let mut body = String::new();
    for ground in &grounds {
        body += &starts::run(&lab, ground, scale).await?;
    }
    body += &memory::run(&lab, &grounds, scale.memory).await?;
    let server = NatsServer::start_with(ServerOptions {
        binary: Some(binary),
        ..ServerOptions::default()
    })?;
    body += &service::run(&lab, &args.drivers, &server.url(), &args.options, scale).await?;
    drop(server);
    let (table, left) = churn::run(&lab, &grounds, scale.rounds).await?;
    body += &table;
    machine.finish();

    let mut facts = machine.facts();
    facts.extend(
        grounds
            .iter()
            .map(|ground| (ground.kind.as_str(), ground.about.clone())),
    );
    facts.push((
        "Measurement",
        format!(
            "everything in one run, drivers and kinds of starts in turn; medians; calls: {} times {} s each, every reply \
             compared with its request; load generator, nats-server, nodes and machines share the host",
            args.options.repeats, args.options.seconds
        ),
    ));
    publish(&args.options, &(report::heading("Machines", &facts) + &body))?;
    ensure!(
        left.is_empty(),
        "something is left of machines that have ended: {}",
        left.join("; ")
    );
    Ok(())
}

/// Times of the same thing, again and again.
#[derive(Debug, Default, Clone)]
struct Times(Vec<Duration>);

impl Times {
    fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Milliseconds at this quantile, of 1; the nearest rank, so that it is one of the times. Not a number if there are
    /// none.
    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        let time = sorted.get(rank.saturating_sub(1));
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn max(&self) -> f64 {
        self.quantile(1.0)
    }
}

/// Milliseconds with as many decimals as they deserve.
fn millis(value: f64) -> String {
    match value {
        value if value.is_nan() => "–".to_owned(),
        value if value < 100.0 => format!("{value:.1}"),
        value => report::thousands(value),
    }
}

/// A part of the report.
fn section(title: &str, about: &str, table: Table) -> String {
    format!("### {title}\n\n{about}\n\n{}\n", table.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times = Times((1..=20).rev().map(Duration::from_millis).collect());
        assert_eq!(times.median(), 10.0);
        assert_eq!(times.quantile(0.95), 19.0);
        assert_eq!(times.max(), 20.0);
        assert!(Times::default().median().is_nan());
        assert_eq!(Times(vec![Duration::from_millis(7)]).median(), 7.0);
    }

    #[test]
    fn milliseconds_for_people() {
        assert_eq!(millis(12.34), "12.3");
        assert_eq!(millis(1234.5), "1,234");
        assert_eq!(millis(f64::NAN), "–");
    }
}
