//! The engine alone, without NATS or node: how long a function takes to start, and what one call costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nex_host_services::memory::Memory;
use nex_host_services::{Config, Policy};
use nex_node::bench::body::{self, Form};
use nex_node::bench::stats::{Latencies, median, range};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits};
use nex_runtime::invocation::Trigger;
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::sync::mpsc::unbounded_channel;

use crate::Options;
use crate::contender::fixture;
use crate::report::{self, Table, thousands};

/// Calls in flight in the throughput measurement.
const WINDOW: usize = 256;
/// Payload bytes.
const SIZE: usize = 128;
/// Between starts, so that a blank isolate is there.
const PAUSE: Duration = Duration::from_millis(10);
/// Functions started to measure starts.
const STARTS: u32 = 100;
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Loads a function into an engine of its own.
async fn load(source: &[u8]) -> Result<Arc<dyn Function>> {
    load_into(&V8Engine::new(V8Config::default())?, source, Limits::default()).await
}

/// Loads a function into an engine.
pub(crate) async fn load_into(engine: &V8Engine, source: &[u8], limits: Limits) -> Result<Arc<dyn Function>> {
    let spec = FunctionSpec {
        id: "bench".to_owned(),
        namespace: "default".to_owned(),
        name: "bench".to_owned(),
        workload_type: "v8".to_owned(),
        source: Bytes::copy_from_slice(source),
        vars: Default::default(),
        limits,
    };
    let host = FunctionHost {
        services: Arc::new(Memory::new().services(Policy::new("default", "bench", Config::default()))),
        logs: Arc::new(|_| {}),
        events: Arc::new(|_| {}),
    };
    Ok(engine.load(spec, host).await?)
}

/// Runs it all and reports in Markdown.
pub(crate) async fn run(options: &Options) -> Result<String> {
    let mut machine = report::machine();
    let body = starts(options).await? + &starts_by_size(options).await? + &calls(options).await?;
    machine.finish();
    Ok(report::heading("Engine in process", &machine.facts()) + &body)
}

/// From source to a loaded function, and on to its first reply.
async fn starts(options: &Options) -> Result<String> {
    let count = if options.quick { 3 } else { STARTS };
    let mut table = Table::new(&["start of a function", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs"]);
    for form in ["identity.js", "identity.mjs"] {
        let source = std::fs::read(fixture(form))?;
        let engine = V8Engine::new(V8Config::default())?;
        let mut loaded = Latencies::default();
        let mut answered = Latencies::default();
        for _ in 0..count {
            let start = Instant::now();
            let function = load_into(&engine, &source, Limits::default()).await?;
            loaded.record(start.elapsed());
            call(&function, b"first").await?;
            answered.record(start.elapsed());
        }
        for (what, latencies) in [("loaded", loaded), ("first reply", answered)] {
            let mut row = vec![format!("{form}, {what}")];
            row.extend(latencies.quantiles(QUANTILES).map(thousands));
            table.row(&row);
        }
    }
    Ok(format!("{}\n", table.finish()))
}

/// The same for sources of several sizes: compiled anew each time, and from compiled code that an earlier instance left.
async fn starts_by_size(options: &Options) -> Result<String> {
    let count = if options.quick { 3 } else { STARTS };
    let mut table = Table::new(&[
        "start of a function by size",
        "loaded, p50 µs",
        "p90 µs",
        "first reply, p50 µs",
        "p90 µs",
        "from code: loaded, p50 µs",
        "p90 µs",
        "first reply, p50 µs",
        "p90 µs",
        "KB of code",
    ]);
    for (form, bytes) in [
        (Form::Script, 1_000),
        (Form::Module, 1_000),
        (Form::Script, 50_000),
        (Form::Module, 50_000),
        (Form::Script, 300_000),
        (Form::Module, 300_000),
    ] {
        let source = body::echo(form, bytes, 0);
        let config = |code_cache_bytes| V8Config {
            code_cache_bytes,
            ..V8Config::default()
        };
        let bare = V8Engine::new(config(0))?;
        let cached = V8Engine::new(config(64 << 20))?;
        let function = load_into(&cached, source.as_bytes(), Limits::default()).await?;
        while cached.code_cache_stats().entries == 0 {
            call(&function, b"warm").await?;
        }
        let mut row = vec![format!("{form:?}, {} KB", source.len() / 1000)];
        let mut results = [(Latencies::default(), Latencies::default()), Default::default()];
        for _ in 0..count {
            for (engine, (loaded, answered)) in [&bare, &cached].into_iter().zip(&mut results) {
                // The pool fills up.
                tokio::time::sleep(PAUSE).await;
                let start = Instant::now();
                let function = load_into(engine, source.as_bytes(), Limits::default()).await?;
                loaded.record(start.elapsed());
                call(&function, b"first").await?;
                answered.record(start.elapsed());
            }
        }
        for (loaded, answered) in results {
            row.extend(loaded.quantiles([0.5, 0.9]).map(thousands));
            row.extend(answered.quantiles([0.5, 0.9]).map(thousands));
        }
        row.push(format!("{:.1}", cached.code_cache_stats().bytes as f64 / 1000.0));
        table.row(&row);
    }
    Ok(format!("{}\n", table.finish()))
}

/// One call after the other, and many in flight.
async fn calls(options: &Options) -> Result<String> {
    let duration = Duration::from_secs_f64(options.seconds);
    let mut table = Table::new(&[
        "calls of 128 B",
        "one at a time, p50 µs",
        "p99 µs",
        "calls/s, 256 in flight",
        "min – max",
    ]);
    for form in ["identity.js", "identity.mjs"] {
        let function = load(&std::fs::read(fixture(form))?).await?;
        let mut latencies = Latencies::default();
        let mut per_second = Vec::new();
        for _ in 0..options.repeats {
            let start = Instant::now();
            while start.elapsed() < duration {
                let sent = Instant::now();
                call(&function, &[7; SIZE]).await?;
                latencies.record(sent.elapsed());
            }
            per_second.push(throughput(&function, duration).await?);
        }
        let [p50, p99] = latencies.quantiles([0.5, 0.99]);
        let (low, high) = range(&per_second);
        table.row(&[
            form.to_owned(),
            format!("{p50:.1}"),
            format!("{p99:.1}"),
            thousands(median(&per_second)),
            format!("{} – {}", thousands(low), thousands(high)),
        ]);
    }
    Ok(table.finish())
}

async fn call(function: &Arc<dyn Function>, payload: &[u8]) -> Result<()> {
    let reply = function.call(trigger(payload)).await?;
    ensure!(reply.body == payload, "a wrong reply");
    Ok(())
}

async fn throughput(function: &Arc<dyn Function>, duration: Duration) -> Result<f64> {
    let payload = [9; SIZE];
    let (sender, mut replies) = unbounded_channel();
    for _ in 0..WINDOW {
        function.invoke(trigger(&payload), Box::new(sender.clone()));
    }
    let start = Instant::now();
    let mut calls = 0_u32;
    loop {
        let reply = replies.recv().await.context("the function is gone")??;
        ensure!(reply.body == payload[..], "a wrong reply");
        calls += 1;
        let elapsed = start.elapsed();
        if elapsed >= duration {
            // What is still in flight only drains.
            for _ in 1..WINDOW {
                replies.recv().await.context("the function is gone")??;
            }
            return Ok(f64::from(calls) / elapsed.as_secs_f64());
        }
        function.invoke(trigger(&payload), Box::new(sender.clone()));
    }
}

fn trigger(payload: &[u8]) -> Trigger {
    Trigger {
        subject: "bench".to_owned(),
        payload: Bytes::copy_from_slice(payload),
        ..Trigger::default()
    }
}
