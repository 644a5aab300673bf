//! The echo benchmark: the same requests, in turn, to a native async-nats responder, to functions inside a node's
//! process, and to functions in agents of a node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nex_host_services::nats_server::{NatsServer, Options as ServerOptions, find_binary};
use nex_node::bench::load::{Generator, Tally};
use nex_node::bench::nats::NatsTarget;
use nex_node::bench::stats::{Latencies, median, range};
use nex_node::bench::{Payload, machine, process};

use crate::Options;
use crate::contender::{Isolation, Node, Process, fixture};
use crate::report::{self, Table, thousands};

/// Requests in flight.
pub(crate) const WINDOWS: [usize; 3] = [1, 16, 256];
/// Payload bytes.
pub(crate) const SIZES: [usize; 2] = [128, 1024];
/// Longest wait for one reply.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Quantiles that the latency tables show.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// One of those compared; the first is what the others are measured against.
pub(crate) struct Contender<'a> {
    label: String,
    generator: Generator<NatsTarget>,
    process: &'a Process,
}

impl<'a> Contender<'a> {
    /// The process that answers on this subject, asked over a connection of its own.
    pub(crate) async fn new(url: &str, label: &str, subject: &str, process: &'a Process) -> Result<Self> {
        let target = NatsTarget::new(async_nats::connect(url).await?, [subject]).await?;
        Ok(Self {
            label: label.to_owned(),
            generator: Generator::new(target, Payload::echo(0), PATIENCE),
            process,
        })
    }
}

/// What the repeats of one measurement gave for one contender.
#[derive(Debug, Default, Clone)]
struct Measured {
    per_second: Vec<f64>,
    latencies: Latencies,
    calls: u64,
    processor: Duration,
}

/// Runs it all and reports in Markdown.
pub(crate) async fn run(options: &Options, rate: u32) -> Result<String> {
    let binary = find_binary()?;
    let server = NatsServer::start_with(ServerOptions {
        binary: Some(binary.clone()),
        ..ServerOptions::default()
    })?;
    let url = server.url();
    let logs = tempfile::tempdir()?;
    let classic = fixture("identity.js");
    let module = fixture("identity.mjs");

    let native = Process::native_echo(&url, "bench.native", &logs.path().join("native.log")).await?;
    let in_process = Node::start(&url, Isolation::InProcess).await?;
    in_process.deploy(&classic, "bench.in_process.classic").await?;
    in_process.deploy(&module, "bench.in_process.module").await?;
    in_process.close().await?;
    let agents = Node::start(&url, Isolation::Agent).await?;
    agents.deploy(&classic, "bench.agent.classic").await?;
    agents.deploy(&module, "bench.agent.module").await?;

    let mut contenders = Vec::new();
    for (label, subject, process) in [
        ("native async-nats echo", "bench.native", &native),
        (
            "node in process, classic form",
            "bench.in_process.classic",
            in_process.process(),
        ),
        (
            "node in process, module form",
            "bench.in_process.module",
            in_process.process(),
        ),
        ("node and agent, classic form", "bench.agent.classic", agents.process()),
        ("node and agent, module form", "bench.agent.module", agents.process()),
    ] {
        contenders.push(Contender::new(&url, label, subject, process).await?);
    }

    let mut machine = report::machine();
    machine.nats_server_version = machine::nats_server_version(&binary);
    let mut body = String::new();
    for size in SIZES {
        for window in WINDOWS {
            body += &closed_loop(options, &mut contenders, window, size).await?;
        }
        body += &paced(options, &mut contenders, rate, size).await?;
    }
    machine.finish();
    let mut facts = machine.facts();
    facts.push((
        "Measurement",
        format!(
            "{} times {} s each, contenders in turn; every reply compared with its request; throughput is the \
             median, ratios the median of each repeat's ratio to the native echo, quantiles those of \
             all repeats together; load generator, nats-server and contender share the machine",
            options.repeats, options.seconds
        ),
    ));
    Ok(report::heading("Echo over NATS request-reply", &facts) + &body)
}

/// Throughput and round-trip time with a window of requests in flight.
pub(crate) async fn closed_loop(
    options: &Options,
    contenders: &mut [Contender<'_>],
    window: usize,
    size: usize,
) -> Result<String> {
    let duration = Duration::from_secs_f64(options.seconds);
    let mut measured = vec![Measured::default(); contenders.len()];
    for repeat in 0..options.repeats {
        for (contender, measured) in contenders.iter_mut().zip(&mut measured) {
            eprintln!(
                "{size} B, window {window}, repeat {} of {}: {}",
                repeat + 1,
                options.repeats,
                contender.label
            );
            let label = &contender.label;
            let failed = || format!("{label} with {size} B, window {window}");
            // A tenth of the time, unmeasured, so that nobody pays for whatever the previous one left behind.
            contender.generator.set_payload(Payload::echo(size));
            let warm_up = contender.generator.closed_loop(0, window, duration / 10).await;
            faultless(&warm_up.with_context(failed)?.tally).with_context(failed)?;
            let before = process::processor_time(contender.process.id()?);
            let result = contender.generator.closed_loop(0, window, duration).await;
            let after = process::processor_time(contender.process.id()?);
            let result = result.with_context(failed)?;
            faultless(&result.tally).with_context(failed)?;
            measured.per_second.push(result.per_second);
            measured.calls += result.calls;
            measured.latencies.merge(&result.tally.latencies);
            measured.processor += after.saturating_sub(before);
        }
    }

    let mut table = Table::new(&[
        "",
        "calls/s",
        "min – max",
        "of native",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "p50 over native µs",
        "CPU µs/call",
    ]);
    let native = measured.first().cloned().unwrap_or_default();
    for (contender, measured) in contenders.iter().zip(&measured) {
        let (low, high) = range(&measured.per_second);
        let ratios: Vec<f64> = measured
            .per_second
            .iter()
            .zip(&native.per_second)
            .map(|(own, native)| own / native)
            .collect();
        let mut row = vec![
            contender.label.clone(),
            thousands(median(&measured.per_second)),
            format!("{} – {}", thousands(low), thousands(high)),
            format!("{:.2}", median(&ratios)),
        ];
        row.extend(latency_cells(&measured.latencies, &native.latencies));
        let cost = measured.processor.as_secs_f64() * 1e6 / measured.calls as f64;
        row.push(format!("{cost:.1}"));
        table.row(&row);
    }
    Ok(format!("### {size} B, {window} in flight\n\n{}\n", table.finish()))
}

/// A figure with failed calls in it would be a figure of something else.
pub(crate) fn faultless(tally: &Tally) -> Result<()> {
    ensure!(tally.failures.total() == 0, "{}", tally.failures);
    Ok(())
}

/// Latency of single calls with pauses between them.
async fn paced(options: &Options, contenders: &mut [Contender<'_>], rate: u32, size: usize) -> Result<String> {
    let duration = Duration::from_secs_f64(options.seconds);
    let mut measured = vec![Latencies::default(); contenders.len()];
    for repeat in 0..options.repeats {
        for (contender, measured) in contenders.iter_mut().zip(&mut measured) {
            eprintln!(
                "{size} B, {rate}/s, repeat {} of {}: {}",
                repeat + 1,
                options.repeats,
                contender.label
            );
            let label = &contender.label;
            let failed = || format!("{label} with {size} B, {rate}/s");
            contender.generator.set_payload(Payload::echo(size));
            let result = contender.generator.open_loop(0, rate.into(), duration).await;
            let tally = result.with_context(failed)?.tally;
            faultless(&tally).with_context(failed)?;
            measured.merge(&tally.latencies);
        }
    }
    let mut table = Table::new(&[
        "",
        "calls",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "p50 over native µs",
    ]);
    let native = measured.first().cloned().unwrap_or_default();
    for (contender, latencies) in contenders.iter().zip(&measured) {
        let mut row = vec![contender.label.clone(), latencies.len().to_string()];
        row.extend(latency_cells(latencies, &native));
        table.row(&row);
    }
    Ok(format!(
        "### {size} B, {rate} a second, evenly spaced (warm but idle)\n\n{}\n",
        table.finish()
    ))
}

/// The quantiles, and how far the median is above the native one.
fn latency_cells(latencies: &Latencies, native: &Latencies) -> Vec<String> {
    let quantiles = latencies.quantiles(QUANTILES);
    let over = quantiles[0] - native.quantiles([0.5])[0];
    quantiles
        .iter()
        .map(|microseconds| thousands(*microseconds))
        .chain([format!("{over:+.0}")])
        .collect()
}
