//! An echo function everywhere: how many calls a second, how long they take, and what processor time they cost.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nex_node::bench::load::{ClosedLoop, Generator};
use nex_node::bench::nats::NatsTarget;
use nex_node::bench::stats::median;
use nex_node::bench::{Latencies, LoadError, Payload, process};
use tokio::sync::Semaphore;

use super::figures::{Lineup, Missing, Name, ratios, show};
use super::http::{HttpTarget, Pool};
use super::launch::{self, Folder, Program, Server};
use super::plot::{Bar, Family, Group, Scale, Section};
use super::setup::Rivals;
use crate::contender::{Isolation, Node, Process, fixture};
use crate::report::{Table, thousands};
use crate::{Options, echo};

const NATIVE: &str = "native async-nats echo";
const NODE: &str = "Node.js with nats.js";

/// One of those compared.
struct Contender {
    name: Name,
    driver: Driver,
    /// Whose processor time counts, with their descendants'.
    processes: Vec<u32>,
    _running: Running,
}

enum Driver {
    Nats(Generator<NatsTarget>),
    Http(Generator<HttpTarget>),
}

/// What ends with the contender.
#[allow(dead_code, reason = "only kept for what dropping it does")]
enum Running {
    Node(Box<Node>),
    Processes(Vec<Process>),
}

/// What the repeats of one measurement gave for one contender.
#[derive(Debug, Default, Clone)]
struct Measured {
    per_second: Vec<f64>,
    latencies: Latencies,
    calls: u64,
    processor: Duration,
}

/// What becomes of it in the report.
pub(crate) struct Results {
    pub(crate) markdown: String,
    pub(crate) plot: Section,
    pub(crate) missing: Vec<Missing>,
}

/// How rivals are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ring<'a> {
    /// URL of the NATS server.
    pub(crate) url: &'a str,
    pub(crate) rivals: &'a Rivals,
    pub(crate) folder: &'a Folder,
    /// Processes of each rival that runs JavaScript on a single thread.
    pub(crate) processes: usize,
}

/// Measures everybody in turn.
pub(crate) async fn run(options: &Options, ring: Ring<'_>) -> Result<Results> {
    let mut lineup = line_up(ring).await?;
    let mut markdown = String::new();
    let mut groups = Vec::new();
    for size in echo::SIZES {
        for window in echo::WINDOWS {
            let measured = measure(options, &mut lineup.contenders, size, window).await?;
            let names: Vec<Name> = lineup.contenders.iter().map(|contender| contender.name).collect();
            let title = format!("{size} B, {window} in flight");
            markdown += &format!("### {title}\n\n{}\n", table(&names, &measured));
            groups.push(group(title, &names, &measured));
        }
    }
    // In the picture, the sizes stand side by side.
    let windows = echo::WINDOWS.len();
    let groups = (0..groups.len())
        .map(|index| groups[index % echo::SIZES.len() * windows + index / echo::SIZES.len()].clone())
        .collect();
    Ok(Results {
        markdown,
        plot: Section {
            title: "Echo: calls per second, as a part of the native echo's".to_owned(),
            groups,
        },
        missing: lineup.missing,
    })
}

async fn line_up(ring: Ring<'_>) -> Result<Lineup<Contender>> {
    let mut lineup = Lineup::default();
    // Everybody is measured against this one.
    lineup.contenders.push(native(ring.url, ring.folder).await?);
    // This one takes no more workloads once it has its own, and so has to be first.
    let label = "nex in process";
    lineup.add(label, nex(ring.url, label, Isolation::InProcess).await);
    let label = "nex through agents";
    lineup.add(label, nex(ring.url, label, Isolation::Agent).await);
    lineup.add(NODE, node(ring).await);
    for (server, label) in [
        (Server::Workerd, "workerd behind a bridge"),
        (Server::Deno, "Deno behind a bridge"),
    ] {
        lineup.add(label, bridged(ring, server, label).await);
    }
    for (server, label) in [
        (Server::Workerd, "workerd over HTTP, no NATS"),
        (Server::Deno, "Deno over HTTP, no NATS"),
    ] {
        lineup.add(label, direct(ring, server, label).await);
    }
    Ok(lineup)
}

async fn native(url: &str, folder: &Folder) -> Result<Contender> {
    let subject = "rivals.echo.native";
    let process = Process::native_echo(url, subject, &folder.log("native")).await?;
    on_nats(url, NATIVE, Family::Native, subject, vec![process]).await
}

async fn nex(url: &str, label: &'static str, isolation: Isolation) -> Result<Contender> {
    let subject = match isolation {
        Isolation::InProcess => "rivals.echo.in_process",
        Isolation::Agent => "rivals.echo.agents",
    };
    let node = Node::start(url, isolation).await?;
    node.deploy(&fixture("identity.mjs"), subject).await?;
    if isolation == Isolation::InProcess {
        node.close().await?;
    }
    let mut contender = on_nats(url, label, Family::Nex, subject, Vec::new()).await?;
    contender.processes = vec![node.process().id()?];
    contender._running = Running::Node(Box::new(node));
    Ok(contender)
}

async fn node(ring: Ring<'_>) -> Result<Contender> {
    let subject = "rivals.echo.node";
    let mut processes = Vec::new();
    for index in 0..ring.processes {
        let name = format!("node-{index}");
        processes.push(ring.rivals.node_echo(ring.url, subject, ring.folder, &name).await?);
    }
    on_nats(ring.url, NODE, Family::Rival, subject, processes).await
}

async fn bridged(ring: Ring<'_>, server: Server, label: &'static str) -> Result<Contender> {
    let name = format!("{server:?}-bridged");
    let (mut processes, sockets) = ring.serve(server, &name).await?;
    let subject = format!("rivals.echo.{name}");
    // A connection for each call there may be in flight: the bridge is never what calls wait for.
    let connections = echo::WINDOWS.into_iter().max().unwrap_or(1);
    let log = ring.folder.log(&format!("{name}-bridge"));
    processes.push(launch::bridge(ring.url, &subject, &sockets, connections, &log).await?);
    on_nats(ring.url, label, Family::Rival, &subject, processes).await
}

async fn direct(ring: Ring<'_>, server: Server, label: &'static str) -> Result<Contender> {
    let (processes, sockets) = ring.serve(server, &format!("{server:?}-direct")).await?;
    let target = HttpTarget::new(Pool::new(sockets, Semaphore::MAX_PERMITS), ["/".to_owned()]);
    Ok(Contender {
        name: Name {
            label,
            family: Family::RivalPart,
        },
        driver: Driver::Http(Generator::new(target, Payload::echo(0), echo::PATIENCE)),
        processes: processes.iter().map(Process::id).collect::<Result<_>>()?,
        _running: Running::Processes(processes),
    })
}

impl Ring<'_> {
    async fn serve(&self, server: Server, name: &str) -> Result<(Vec<Process>, Vec<PathBuf>)> {
        self.rivals
            .serve_all(server, Program::Echo, self.folder, name, self.processes)
            .await
    }
}

async fn on_nats(
    url: &str,
    label: &'static str,
    family: Family,
    subject: &str,
    processes: Vec<Process>,
) -> Result<Contender> {
    let target = NatsTarget::new(async_nats::connect(url).await?, [subject.to_owned()]).await?;
    Ok(Contender {
        name: Name { label, family },
        driver: Driver::Nats(Generator::new(target, Payload::echo(0), echo::PATIENCE)),
        processes: processes.iter().map(Process::id).collect::<Result<_>>()?,
        _running: Running::Processes(processes),
    })
}

impl Driver {
    async fn closed_loop(&mut self, size: usize, window: usize, duration: Duration) -> Result<ClosedLoop> {
        let measured: Result<ClosedLoop, LoadError> = match self {
            Self::Nats(generator) => {
                generator.set_payload(Payload::echo(size));
                generator.closed_loop(0, window, duration).await
            }
            Self::Http(generator) => {
                generator.set_payload(Payload::echo(size));
                generator.closed_loop(0, window, duration).await
            }
        };
        let measured = measured?;
        echo::faultless(&measured.tally)?;
        Ok(measured)
    }
}

async fn measure(options: &Options, contenders: &mut [Contender], size: usize, window: usize) -> Result<Vec<Measured>> {
    let duration = Duration::from_secs_f64(options.seconds);
    let mut measured = vec![Measured::default(); contenders.len()];
    for repeat in 1..=options.repeats {
        for (contender, measured) in contenders.iter_mut().zip(&mut measured) {
            let label = contender.name.label;
            eprintln!(
                "{size} B, window {window}, repeat {repeat} of {}: {label}",
                options.repeats
            );
            let failed = || format!("{label} with {size} B, window {window}");
            // Unmeasured, so that nobody pays for whatever the previous one left behind, and compilers get their time.
            let warm_up = contender.driver.closed_loop(size, window, duration / 5).await;
            warm_up.with_context(failed)?;
            let before = processor_time(&contender.processes);
            let result = contender.driver.closed_loop(size, window, duration).await;
            let after = processor_time(&contender.processes);
            let result = result.with_context(failed)?;
            measured.per_second.push(result.per_second);
            // The last ones in flight are answered after the time is over, but their work counts.
            measured.calls += result.tally.latencies.len();
            measured.latencies.merge(&result.tally.latencies);
            measured.processor += after.saturating_sub(before);
        }
    }
    Ok(measured)
}

fn processor_time(processes: &[u32]) -> Duration {
    processes.iter().map(|pid| process::processor_time(*pid)).sum()
}

fn of<'a>(label: &str, names: &[Name], measured: &'a [Measured]) -> &'a [f64] {
    let place = names.iter().position(|name| name.label == label);
    place
        .and_then(|place| measured.get(place))
        .map_or(&[], |measured| &measured.per_second)
}

fn table(names: &[Name], measured: &[Measured]) -> String {
    let mut table = Table::new(&[
        "",
        "calls/s",
        "of native (95 %)",
        "of Node.js (95 %)",
        "p50 µs",
        "p99 µs",
        "CPU µs/call",
    ]);
    for (name, own) in names.iter().zip(measured) {
        let [p50, p99] = own.latencies.quantiles([0.5, 0.99]);
        table.row(&[
            name.label.to_owned(),
            thousands(median(&own.per_second)),
            show(&ratios(&own.per_second, of(NATIVE, names, measured)), 2),
            show(&ratios(&own.per_second, of(NODE, names, measured)), 2),
            thousands(p50),
            thousands(p99),
            format!("{:.1}", own.processor.as_secs_f64() * 1e6 / own.calls as f64),
        ]);
    }
    table.finish()
}

fn group(title: String, names: &[Name], measured: &[Measured]) -> Group {
    let native = of(NATIVE, names, measured);
    let bar = |(name, own): (&Name, &Measured)| {
        let ratio = ratios(&own.per_second, native);
        Bar {
            label: name.label.to_owned(),
            family: name.family,
            value: ratio.median,
            interval: ratio.ci95,
            text: format!("{:.2}", ratio.median),
        }
    };
    Group {
        title,
        scale: Scale::Linear,
        bars: names.iter().zip(measured).map(bar).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(per_second: &[f64]) -> Measured {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_micros(100));
        Measured {
            per_second: per_second.to_vec(),
            latencies,
            calls: 1000,
            processor: Duration::from_millis(5),
        }
    }

    #[test]
    fn rows_hold_ratios_and_costs() {
        let names = [(NATIVE, Family::Native), ("nex", Family::Nex), (NODE, Family::Rival)]
            .map(|(label, family)| Name { label, family });
        let measured = [measured(&[4000.0]), measured(&[3000.0]), measured(&[1000.0])];
        let text = table(&names, &measured);
        assert!(
            text.contains("| nex | 3,000 | 0.75 | 3.00 | 100 | 100 | 5.0 |"),
            "{text}"
        );
        // Without Node.js there is nothing to compare with.
        let text = table(&names[..2], &measured[..2]);
        assert!(text.contains("| nex | 3,000 | 0.75 | – |"), "{text}");
        let group = group("all".to_owned(), &names, &measured);
        let values: Vec<f64> = group.bars.iter().map(|bar| bar.value).collect();
        assert_eq!(values, [1.0, 0.75, 0.25]);
    }
}
