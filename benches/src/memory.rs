//! What functions cost in memory, and whether it is given back: density of awake and of hibernated functions, churn of
//! isolates, and a burst of them. All in this process, so that the kernel's own figures tell.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use nex_host_services::memory::Memory;
use nex_host_services::{Config, Policy};
use nex_runtime::engine::{Engine, Function, FunctionHost, FunctionSpec, Limits};
use nex_runtime::invocation::Trigger;
use nex_runtime::v8::{V8Config, V8Engine};

use crate::Options;
use crate::contender::fixture;
use crate::report::{self, Table, thousands};

const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// How long an instance stays awake where it is to stay awake.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the functions of a burst stay awake: time to wake all of them.
const BURST: Duration = Duration::from_secs(20);
/// How long memory must not have changed by more than [`STEADY_BYTES`] to count as settled, and the longest wait for it: the
/// engine collects garbage after two seconds and gives memory back some seconds after that.
const STEADY: Duration = Duration::from_secs(8);
const STEADY_BYTES: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the kernel says how it merges pages.
const KSM: &str = "/sys/kernel/mm/ksm";
/// Times that it must have looked at all memory: it merges what has not changed from one look to the next.
const SCANS: u64 = 3;
/// The longest wait for that.
const SCAN_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How much of everything.
struct Scale {
    /// Awake functions at which memory is read.
    awake: Vec<usize>,
    /// Hibernated functions at which memory is read.
    hibernated: Vec<usize>,
    /// Isolates created and destroyed.
    churn: usize,
    /// Functions awake at once, and then not.
    burst: usize,
}

impl Scale {
    fn of(options: &Options) -> Self {
        if options.quick {
            Self {
                awake: vec![0, 5, 10],
                hibernated: vec![0, 20],
                churn: 40,
                burst: 10,
            }
        } else {
            Self {
                awake: vec![0, 100, 500, 1_000],
                hibernated: vec![0, 1_000, 5_000],
                churn: 10_000,
                burst: 500,
            }
        }
    }
}

/// Runs it all and reports in Markdown. With `merge_memory` only density, as it is when the kernel merges pages that are
/// alike.
pub(crate) async fn run(options: &Options, merge_memory: bool) -> Result<String> {
    let scale = Scale::of(options);
    if merge_memory {
        ensure!(
            merging("run")? == 1,
            "the kernel does not merge pages; as root: echo 1 > {KSM}/run"
        );
    }
    let mut machine = report::machine();
    // First what is spoilt by what others leave behind.
    let mut body = density(&scale, merge_memory).await?;
    if !merge_memory {
        body += &burst(&scale).await?;
        body += &churn(&scale).await?;
    }
    machine.finish();
    let title = if merge_memory {
        "Memory, with pages merged"
    } else {
        "Memory"
    };
    Ok(report::heading(title, &machine.facts()) + &body)
}

/// Functions of one engine, each loaded and called once.
struct Crowd {
    engine: V8Engine,
    source: Vec<u8>,
    limits: Limits,
    functions: Vec<Arc<dyn Function>>,
}

impl Crowd {
    fn new(hibernate_after: Duration, merge_memory: bool) -> Result<Self> {
        let config = V8Config {
            max_instances: 2_000,
            merge_memory,
            ..V8Config::default()
        };
        Ok(Self {
            engine: V8Engine::new(config)?,
            source: fs::read(fixture("identity.mjs"))?,
            limits: Limits {
                hibernate_after,
                // A busy machine must not make it two.
                instances: 1,
                ..Limits::default()
            },
            functions: Vec::new(),
        })
    }

    /// Loads one more function and calls it.
    async fn one(&self) -> Result<Arc<dyn Function>> {
        let number = self.functions.len();
        let spec = FunctionSpec {
            id: format!("memory-{number}"),
            namespace: "default".to_owned(),
            name: "memory".to_owned(),
            workload_type: "v8".to_owned(),
            source: Bytes::copy_from_slice(&self.source),
            vars: Default::default(),
            limits: self.limits.clone(),
        };
        let host = FunctionHost {
            services: Arc::new(Memory::new().services(Policy::new("default", "memory", Config::default()))),
            logs: Arc::new(|_| {}),
            events: Arc::new(|_| {}),
        };
        let function = self.engine.load(spec, host).await?;
        call(&function).await?;
        Ok(function)
    }

    async fn grow_to(&mut self, count: usize) -> Result<()> {
        while self.functions.len() < count {
            let function = self.one().await?;
            self.functions.push(function);
        }
        Ok(())
    }

    fn awake(&self) -> u32 {
        let states = self.functions.iter().filter_map(|function| function.state());
        states.map(|state| state.instances).sum()
    }

    /// Waits until as many functions are awake.
    async fn wait_for(&self, awake: u32) -> Result<()> {
        let start = Instant::now();
        while self.awake() != awake {
            ensure!(
                start.elapsed() < PATIENCE,
                "{} functions are awake, not {awake}",
                self.awake()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

async fn call(function: &Arc<dyn Function>) -> Result<()> {
    let payload = Bytes::from_static(b"are you there?");
    let trigger = Trigger {
        subject: "memory".to_owned(),
        payload: payload.clone(),
        ..Trigger::default()
    };
    ensure!(function.call(trigger).await?.body == payload, "a wrong reply");
    Ok(())
}

/// Memory of this process by the number of functions in it, awake and hibernated.
async fn density(scale: &Scale, merge_memory: bool) -> Result<String> {
    let mut table = Table::new(&["functions", "PSS MiB", "KiB each more", "per GiB", "threads"]);
    let mut crowd = Crowd::new(FOR_EVER, merge_memory)?;
    let mut points = Vec::new();
    for &count in &scale.awake {
        crowd.grow_to(count).await?;
        if merge_memory {
            merged().await?;
        }
        let bytes = settled().await?;
        points.push((count, bytes));
        table.row(&density_row("awake", &points, count)?);
    }
    ensure!(
        crowd.awake() as usize == crowd.functions.len(),
        "a function hibernates that should not"
    );
    let start = Instant::now();
    try_join_all(crowd.functions.iter().map(call)).await?;
    let verified = format!(
        "All {} awake functions answered a call, {:.0} ms for all.\n",
        crowd.functions.len(),
        start.elapsed().as_secs_f64() * 1e3
    );
    drop(crowd);
    let mut crowd = Crowd::new(Duration::from_millis(100), merge_memory)?;
    let mut points = Vec::new();
    for &count in &scale.hibernated {
        crowd.grow_to(count).await?;
        crowd.wait_for(0).await?;
        let bytes = settled().await?;
        points.push((count, bytes));
        table.row(&density_row("hibernated", &points, count)?);
    }
    let mut wakes = Vec::new();
    for function in crowd.functions.iter().take(100) {
        let start = Instant::now();
        call(function).await?;
        wakes.push(start.elapsed().as_secs_f64() * 1e3);
    }
    wakes.sort_by(f64::total_cmp);
    let median = wakes.get(wakes.len() / 2).copied().unwrap_or_default();
    let woken = format!(
        "A hibernated function answers after {median:.2} ms (median of {}).\n\n",
        wakes.len()
    );
    Ok(format!("### Density\n\n{}\n{verified}{woken}", table.finish()))
}

/// The cells for the last point; what a function costs is the slope from the first.
fn density_row(what: &str, points: &[(usize, u64)], count: usize) -> Result<Vec<String>> {
    let (first, from) = points.first().copied().context("no point")?;
    let (last, to) = points.last().copied().context("no point")?;
    let (each, per_gib) = if last > first && to > from {
        let each = (to - from) as f64 / (last - first) as f64;
        (format!("{:.0}", each / 1024.0), thousands(GIB / each))
    } else {
        // None yet, or so little that it does not show among other changes.
        (String::new(), String::new())
    };
    Ok(vec![
        format!("{} {what}", thousands(count as f64)),
        format!("{:.1}", to as f64 / MIB),
        each,
        per_gib,
        threads()?.to_string(),
    ])
}

/// Many functions awake at once, and then hibernated.
async fn burst(scale: &Scale) -> Result<String> {
    let mut table = Table::new(&["", "RSS MiB", "threads", "file descriptors"]);
    let mut row = |what: &str, bytes: u64| -> Result<()> {
        table.row(&[
            what.to_owned(),
            format!("{:.1}", bytes as f64 / MIB),
            threads()?.to_string(),
            descriptors()?.to_string(),
        ]);
        Ok(())
    };
    let mut crowd = Crowd::new(BURST, false)?;
    crowd.grow_to(1).await?;
    crowd.wait_for(0).await?;
    settled().await?;
    let before = resident()?;
    row("before", before)?;
    for round in 1..=3 {
        crowd.grow_to(scale.burst).await?;
        // One after the other, as they were started: each has the processor to itself.
        for function in &crowd.functions {
            call(function).await?;
        }
        crowd.wait_for(u32::try_from(scale.burst)?).await?;
        row(&format!("round {round}: {} awake", scale.burst), resident()?)?;
        crowd.wait_for(0).await?;
        settled().await?;
        let after = resident()?;
        let more = (after as f64 / before as f64 - 1.0) * 100.0;
        row(&format!("round {round}: hibernated ({more:+.0} %)"), after)?;
    }
    Ok(format!("### A burst\n\n{}\n", table.finish()))
}

/// Isolates created and destroyed, one after the other, a few at a time.
async fn churn(scale: &Scale) -> Result<String> {
    let mut table = Table::new(&[
        "isolates created and destroyed",
        "RSS MiB",
        "threads",
        "file descriptors",
    ]);
    let crowd = Crowd::new(FOR_EVER, false)?;
    let step = (scale.churn / 10).max(1);
    let mut alive = VecDeque::new();
    for number in 0..=scale.churn {
        if number % step == 0 {
            table.row(&[
                thousands(number as f64),
                format!("{:.1}", resident()? as f64 / MIB),
                threads()?.to_string(),
                descriptors()?.to_string(),
            ]);
        }
        alive.push_back(crowd.one().await?);
        if alive.len() > 4 {
            alive.pop_front();
        }
    }
    Ok(format!("### Churn\n\n{}\n", table.finish()))
}

/// PSS of this process once it no longer changes.
async fn settled() -> Result<u64> {
    let start = Instant::now();
    let mut last = (Instant::now(), pss()?);
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = pss()?;
        if now.abs_diff(last.1) > STEADY_BYTES {
            last = (Instant::now(), now);
        }
        if last.0.elapsed() >= STEADY || start.elapsed() >= PATIENCE {
            return Ok(now);
        }
    }
}

/// Waits until the kernel has looked at all memory a few times.
async fn merged() -> Result<()> {
    let start = Instant::now();
    let before = merging("full_scans")?;
    while merging("full_scans")? < before + SCANS {
        ensure!(
            start.elapsed() < SCAN_PATIENCE,
            "the kernel merges pages too slowly; raise {KSM}/pages_to_scan"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

fn merging(name: &str) -> Result<u64> {
    let file = format!("{KSM}/{name}");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    Ok(text.trim().parse()?)
}

/// Proportional set size of this process, in bytes.
fn pss() -> Result<u64> {
    kilobytes("/proc/self/smaps_rollup", "Pss:")
}

/// Resident set size of this process, in bytes.
fn resident() -> Result<u64> {
    kilobytes("/proc/self/status", "VmRSS:")
}

fn threads() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn descriptors() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

fn kilobytes(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let value = value.with_context(|| format!("{file} has no {name}"))?;
    Ok(value.parse::<u64>()? * 1024)
}
