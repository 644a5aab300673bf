//! What was measured: figures with units in their names, each the median of some repeats.

use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::machines::Machines;
use crate::bench::load::{Failures, Tally, Timeline};
use crate::bench::{Estimate, Latencies, Machine};

/// Quantiles that are told of every latency, with their keys and what people call them.
pub(super) const QUANTILES: [(f64, &str, &str); 5] = [
    (0.5, "latency_p50_us", "p50 µs"),
    (0.9, "latency_p90_us", "p90 µs"),
    (0.99, "latency_p99_us", "p99 µs"),
    (0.999, "latency_p99_9_us", "p99.9 µs"),
    (1.0, "latency_max_us", "max µs"),
];

/// Points of a percentile curve in JSON for each halving of the distance to 100 %.
const CURVE_TICKS: u32 = 2;

/// A run of `nex bench`; what `--json` writes.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) environment: Machine,
    pub(super) settings: Settings,
    /// Where the functions were, unless they were in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) machines: Option<Machines>,
    pub(super) benchmarks: Vec<Benchmark>,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub(super) struct Settings {
    /// `in_process`, `machines` of this process, or `node`.
    pub(super) target: &'static str,
    /// What ran the functions: the name of a machine driver; `None` if the node does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_version: Option<String>,
    /// What function, and how its replies are checked.
    pub(super) function: String,
    pub(super) payload_bytes: usize,
    pub(super) repeats: u32,
    /// A call that is not answered in this time counts as this long.
    pub(super) reply_timeout_ms: u64,
    /// Unmeasured calls before each of the measurements that take a time.
    pub(super) warm_up_s: f64,
}

impl Settings {
    /// For people: names and values.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let target = match (&self.node_id, self.target) {
            (Some(id), _) => format!("node {id}"),
            (None, "machines") => "machines of this process, without NATS".to_owned(),
            (None, _) => "the engine in this process, without NATS".to_owned(),
        };
        let mut facts = vec![("Measured", target)];
        if let Some(driver) = &self.driver {
            facts.push(("Driver", driver.clone()));
        }
        if let Some(version) = &self.node_version {
            facts.push(("Node version", version.clone()));
        }
        facts.extend([
            ("Function", self.function.clone()),
            ("Payload", format!("{} bytes", self.payload_bytes)),
            (
                "Repeats",
                format!(
                    "{}; figures are their median, with its 95 % confidence interval (bootstrap)",
                    self.repeats
                ),
            ),
            (
                "Failed calls",
                format!(
                    "errors, wrong and missing replies count as {} ms each",
                    self.reply_timeout_ms
                ),
            ),
        ]);
        facts
    }
}

/// One of the benchmarks.
#[derive(Debug, Serialize)]
pub(super) struct Benchmark {
    /// As on the command line.
    pub(super) benchmark: &'static str,
    pub(super) title: String,
    /// What exactly was measured.
    pub(super) definition: String,
    /// What is not in the figures.
    pub(super) excluded: String,
    pub(super) variants: Vec<Variant>,
}

/// One of the things measured by a benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Variant {
    pub(super) name: String,
    /// Those of one group are shown in one chart.
    #[serde(skip)]
    pub(super) group: String,
    #[serde(serialize_with = "by_key")]
    pub(super) figures: Vec<Figure>,
    /// Calls in the figures.
    pub(super) calls: u64,
    pub(super) failures: Failures,
    /// What else is to be known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    /// Of all repeats together.
    #[serde(
        rename = "percentiles",
        serialize_with = "curve",
        skip_serializing_if = "Latencies::is_empty"
    )]
    pub(super) latencies: Latencies,
    /// Of each repeat.
    #[serde(serialize_with = "timelines", skip_serializing_if = "Vec::is_empty")]
    pub(super) timeline: Vec<Timeline>,
    /// Numbers of functions and bytes of memory with them, of each repeat.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) memory: Vec<Vec<MemoryPoint>>,
}

/// Memory with so many functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(super) struct MemoryPoint {
    pub(super) functions: u32,
    pub(super) pss_bytes: u64,
}

/// A figure.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// Name in JSON, with the unit.
    pub(super) key: &'static str,
    /// Name for people, with the unit.
    pub(super) label: &'static str,
    pub(super) estimate: Estimate,
}

impl Variant {
    /// A variant without figures yet.
    pub(super) fn new(name: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            group: group.into(),
            figures: Vec::new(),
            calls: 0,
            failures: Failures::default(),
            notes: Vec::new(),
            latencies: Latencies::default(),
            timeline: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// Adds a figure.
    pub(super) fn figure(&mut self, key: &'static str, label: &'static str, repeats: Vec<f64>) {
        self.figures.push(Figure {
            key,
            label,
            estimate: Estimate::of(repeats),
        });
    }

    /// Adds the latencies of the repeats, as figures for these quantiles. Those that fewer calls than each repeat has could
    /// not tell are left out: the 99th percentile of 50 calls is nothing but the longest.
    pub(super) fn latencies(&mut self, repeats: &[Tally], quantiles: &[(f64, &'static str, &'static str)]) {
        let calls = repeats.iter().map(|repeat| repeat.latencies.len()).min().unwrap_or(0);
        let told = |quantile: f64| quantile >= 1.0 || calls as f64 * (1.0 - quantile) >= 0.999;
        for &(quantile, key, label) in quantiles.iter().filter(|(quantile, ..)| told(*quantile)) {
            let values = repeats.iter().map(|repeat| repeat.latencies.quantile(quantile));
            self.figure(key, label, values.collect());
        }
        for repeat in repeats {
            self.calls += repeat.latencies.len();
            self.failures.merge(&repeat.failures);
            self.latencies.merge(&repeat.latencies);
        }
    }
}

impl Report {
    /// What it was measured on and how, for people: names and values.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = self.environment.facts();
        facts.extend(self.settings.facts());
        facts.extend(self.machines.iter().map(|machines| ("Machines", machines.describe())));
        facts
    }

    /// Calls that failed, in all benchmarks.
    pub(super) fn failures(&self) -> Failures {
        let mut failures = Failures::default();
        let variants = self.benchmarks.iter().flat_map(|benchmark| &benchmark.variants);
        variants.for_each(|variant| failures.merge(&variant.failures));
        failures
    }
}

#[derive(Serialize)]
struct EstimateReport<'a> {
    median: f64,
    ci95_low: Option<f64>,
    ci95_high: Option<f64>,
    repeats: &'a [f64],
}

fn by_key<S: Serializer>(figures: &[Figure], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(figures.len()))?;
    for Figure { key, estimate, .. } in figures {
        let report = EstimateReport {
            median: estimate.median,
            ci95_low: estimate.ci95.map(|(low, _)| low),
            ci95_high: estimate.ci95.map(|(_, high)| high),
            repeats: &estimate.repeats,
        };
        map.serialize_entry(key, &report)?;
    }
    map.end()
}

#[derive(Serialize)]
struct CurvePoint {
    quantile: f64,
    latency_us: f64,
}

fn curve<S: Serializer>(latencies: &Latencies, serializer: S) -> Result<S::Ok, S::Error> {
    let points = latencies.curve(CURVE_TICKS);
    serializer.collect_seq(points.map(|(quantile, latency_us)| CurvePoint { quantile, latency_us }))
}

#[derive(Serialize)]
struct TimelinePoint {
    repeat: usize,
    start_s: f64,
    calls: u64,
    latency_p50_us: f64,
    latency_p99_us: f64,
    latency_max_us: f64,
}

fn timelines<S: Serializer>(timelines: &[Timeline], serializer: S) -> Result<S::Ok, S::Error> {
    let points = timelines.iter().enumerate().flat_map(|(repeat, timeline)| {
        timeline.bins.iter().enumerate().map(move |(index, bin)| TimelinePoint {
            repeat: repeat + 1,
            start_s: start(timeline, index).as_secs_f64(),
            calls: bin.len(),
            latency_p50_us: bin.quantile(0.5),
            latency_p99_us: bin.quantile(0.99),
            latency_max_us: bin.max(),
        })
    });
    serializer.collect_seq(points)
}

/// When a part of a timeline begins.
pub(super) fn start(timeline: &Timeline, index: usize) -> Duration {
    timeline.bin * u32::try_from(index).unwrap_or(u32::MAX)
}
