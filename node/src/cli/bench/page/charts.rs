//! The charts of a benchmark: latencies as histograms, over percentiles and over time, the repeats behind the figures,
//! and memory over numbers of functions.

use super::super::report::{Benchmark, Variant, start};
use crate::bench::plot::{Axis, Chart, Intervals, Scale, Series, Shape};
use crate::bench::{Latencies, stats};

/// Ranges of a histogram in each factor of ten.
const RANGES_PER_DECADE: f64 = 20.0;
/// Points of a percentile curve for each halving of the distance to 100 %.
const CURVE_TICKS: u32 = 8;
/// Figures whose repeats are shown: the first of each kind.
const SHOWN_FIGURES: usize = 2;

/// Values with a larger factor between them than this are shown by their logarithms.
const FAR_APART: f64 = 8.0;

/// All charts of a benchmark, as SVG.
pub(super) fn of(benchmark: &Benchmark) -> Vec<String> {
    let mut charts = Vec::new();
    for group in groups(benchmark) {
        let measured: Vec<&Variant> = group
            .iter()
            .copied()
            .filter(|variant| !variant.latencies.is_empty())
            .collect();
        let title = |what: &str| match group.first().map_or("", |variant| variant.group.as_str()) {
            "" => format!("{}: {what}", benchmark.title),
            group => format!("{}, {group}: {what}", benchmark.title),
        };
        if !measured.is_empty() {
            charts.push(histogram(title("histogram of latencies"), &measured));
            charts.push(percentiles(title("latency by percentile"), &measured));
        }
    }
    for variant in benchmark.variants.iter().filter(|variant| !variant.timeline.is_empty()) {
        charts.push(over_time(benchmark, variant));
    }
    charts.extend(
        benchmark
            .variants
            .iter()
            .filter(|variant| !variant.memory.is_empty())
            .map(memory),
    );
    charts.extend(repeats(benchmark));
    charts
}

/// Variants that are shown together.
fn groups(benchmark: &Benchmark) -> Vec<Vec<&Variant>> {
    let mut groups: Vec<Vec<&Variant>> = Vec::new();
    for variant in &benchmark.variants {
        match groups
            .iter_mut()
            .find(|group| group.first().is_some_and(|first| first.group == variant.group))
        {
            Some(group) => group.push(variant),
            None => groups.push(vec![variant]),
        }
    }
    groups
}

/// The name of a variant without what all in its group have in common.
fn short(variant: &Variant) -> String {
    let name = variant.name.strip_prefix(&variant.group).unwrap_or(&variant.name);
    name.trim_start_matches([',', ' ']).to_owned()
}

fn histogram(title: String, variants: &[&Variant]) -> String {
    let low = variants
        .iter()
        .map(|variant| variant.latencies.min())
        .fold(f64::INFINITY, f64::min)
        .max(0.001);
    let high = variants
        .iter()
        .map(|variant| variant.latencies.max())
        .fold(low, f64::max);
    // The same ranges for all, so that they can be compared, and an empty one at each end.
    let first = (low.log10() * RANGES_PER_DECADE).floor() as i32 - 1;
    let last = (high.log10() * RANGES_PER_DECADE).ceil() as i32 + 2;
    let edges: Vec<f64> = (first..=last)
        .map(|edge| 10_f64.powf(f64::from(edge) / RANGES_PER_DECADE))
        .collect();
    let series = |variant: &&Variant| {
        let counts = variant.latencies.counts(&edges);
        let all = variant.latencies.len() as f64;
        Series {
            name: short(variant),
            shape: Shape::Steps,
            points: edges
                .iter()
                .zip(counts)
                .map(|(&edge, count)| (edge, 100.0 * count as f64 / all))
                .collect(),
        }
    };
    Chart {
        title,
        description: format!(
            "How large a part of the calls had which latency. {}",
            variants
                .iter()
                .map(|variant| summary(&short(variant), &variant.latencies))
                .collect::<String>()
        ),
        x: Axis::new("latency, µs", Scale::Log),
        y: Axis::new("% of calls", Scale::FromZero),
        series: variants.iter().map(series).collect(),
    }
    .svg()
}

fn percentiles(title: String, variants: &[&Variant]) -> String {
    let series = |variant: &&Variant| {
        // The last of n calls stands for what one in n exceeds.
        let end = 1.0 - 0.5 / variant.latencies.len() as f64;
        Series {
            name: short(variant),
            shape: Shape::Line,
            points: variant
                .latencies
                .curve(CURVE_TICKS)
                .map(|(quantile, latency)| (quantile.min(end), latency))
                .collect(),
        }
    };
    Chart {
        title,
        description: format!(
            "The latency that so large a part of the calls did not exceed. {}",
            variants
                .iter()
                .map(|variant| summary(&short(variant), &variant.latencies))
                .collect::<String>()
        ),
        x: Axis::new("percentile", Scale::Quantile),
        y: Axis::new("latency, µs", Scale::Log),
        series: variants.iter().map(series).collect(),
    }
    .svg()
}

fn over_time(benchmark: &Benchmark, variant: &Variant) -> String {
    let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];
    let series = quantiles.map(|(name, quantile)| {
        let mut points = Vec::new();
        let mut begin = 0.0;
        for timeline in &variant.timeline {
            for (index, bin) in timeline.bins.iter().enumerate() {
                let middle = start(timeline, index) + timeline.bin / 2;
                points.push((begin + middle.as_secs_f64(), bin.quantile(quantile)));
            }
            begin += start(timeline, timeline.bins.len()).as_secs_f64();
            // A gap: between repeats nothing was measured.
            points.push((begin, f64::NAN));
        }
        Series {
            name: name.to_owned(),
            shape: Shape::Line,
            points,
        }
    });
    Chart {
        title: format!("{}: latency over time, {}", benchmark.title, variant.name),
        description: format!(
            "Percentiles of the calls that were due in short times one after the other, in {} repeats.",
            variant.timeline.len()
        ),
        x: Axis::new("time measured, s", Scale::FromZero),
        y: Axis::new("latency, µs", Scale::Log),
        series: series.into(),
    }
    .svg()
}

fn memory(variant: &Variant) -> String {
    let series = variant.memory.iter().enumerate().map(|(repeat, points)| Series {
        name: format!("repeat {}", repeat + 1),
        shape: Shape::LineDots,
        points: points
            .iter()
            .map(|point| (f64::from(point.functions), point.pss_bytes as f64 / f64::from(1 << 20)))
            .collect(),
    });
    Chart {
        title: format!("Memory with {} functions", variant.name),
        description: "Memory by the number of functions, a line for each repeat.".to_owned(),
        x: Axis::new("functions", Scale::FromZero),
        y: Axis::new("PSS, MiB", Scale::FromZero),
        series: series.collect(),
    }
    .svg()
}

/// The repeats of the first figures, one chart for each figure, with a row for each variant.
fn repeats(benchmark: &Benchmark) -> Vec<String> {
    let labels = super::labels(benchmark);
    labels
        .into_iter()
        .take(SHOWN_FIGURES)
        .filter_map(|label| {
            let rows: Vec<_> = benchmark
                .variants
                .iter()
                .filter_map(|variant| {
                    let figure = variant.figures.iter().find(|figure| figure.label == label)?;
                    Some((variant.name.clone(), figure.estimate.clone()))
                })
                .collect();
            // Cold starts with and without what makes them fast are far apart.
            let medians = rows
                .iter()
                .map(|(_, estimate)| estimate.median)
                .filter(|median| *median > 0.0);
            let (low, high) = stats::range(&medians.collect::<Vec<_>>());
            let scale = if high / low > FAR_APART {
                Scale::Log
            } else {
                Scale::Linear
            };
            let several = rows.iter().any(|(_, estimate)| estimate.repeats.len() > 1);
            several.then(|| {
                Intervals {
                    title: format!("{}: repeats of {label}", benchmark.title),
                    description: "Each repeat as a mark, their median as a line, its 95 % interval as a band."
                        .to_owned(),
                    x: Axis::new(label, scale),
                    rows,
                }
                .svg()
            })
        })
        .collect()
}

/// The chart in a few words.
fn summary(name: &str, latencies: &Latencies) -> String {
    let [p50, p99, max] = latencies.quantiles([0.5, 0.99, 1.0]);
    format!(
        "{name}: {} calls, median {p50:.0} µs, 99 % {p99:.0} µs, longest {max:.0} µs. ",
        latencies.len()
    )
}
