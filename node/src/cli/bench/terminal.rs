//! A report for people, on the terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::super::failure::Failure;
use super::super::output;
use super::report::{Benchmark, Figure, Report};
use crate::bench::plot::number;

/// Writes the report.
pub(super) fn write(report: &Report) -> Result<(), Failure> {
    output::columns("Environment", &report.facts())?;
    for benchmark in &report.benchmarks {
        output::line("")?;
        output::line(format_args!("{} (median [95 % interval])", benchmark.title))?;
        output::line(table(benchmark))?;
        for variant in &benchmark.variants {
            for note in &variant.notes {
                output::line(format_args!("{}: {note}", variant.name))?;
            }
            if variant.failures.total() + variant.failures.duplicates > 0 {
                output::line(format_args!("⚠️ {}: {}", variant.name, variant.failures))?;
            }
        }
        output::line(format_args!("Excluded: {}.", benchmark.excluded))?;
    }
    if !report.environment.release_build {
        output::line("\n⚠️ This program is not optimised: these figures mean nothing.")?;
    }
    Ok(())
}

/// One row for each variant; a benchmark of few variants with many figures is easier to read the other way round.
fn table(benchmark: &Benchmark) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED.with_rounded_corners())
        .set_content_arrangement(ContentArrangement::Disabled);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let labels = labels(benchmark);
    let cell = |figures: &[Figure], label: &str| {
        let figure = figures.iter().find(|figure| figure.label == label);
        right(figure.map_or_else(String::new, show))
    };
    if benchmark.variants.len() <= 2 {
        let names = benchmark.variants.iter().map(|variant| Cell::new(&variant.name));
        table.set_header(std::iter::once(Cell::new("")).chain(names));
        for label in labels {
            let cells = benchmark.variants.iter().map(|variant| cell(&variant.figures, label));
            table.add_row(std::iter::once(Cell::new(label)).chain(cells));
        }
        let calls = benchmark.variants.iter().map(|variant| right(calls(variant)));
        table.add_row(std::iter::once(Cell::new("calls, failed")).chain(calls));
    } else {
        table.set_header([""].into_iter().chain(labels.iter().copied()).chain(["calls, failed"]));
        for variant in &benchmark.variants {
            let cells = labels.iter().map(|label| cell(&variant.figures, label));
            let row = std::iter::once(Cell::new(&variant.name)).chain(cells);
            table.add_row(row.chain([right(calls(variant))]));
        }
    }
    table
}

fn calls(variant: &super::report::Variant) -> String {
    format!("{}, {}", variant.calls, variant.failures.total())
}

/// Labels of all figures, each once, in order.
pub(super) fn labels(benchmark: &Benchmark) -> Vec<&'static str> {
    let mut labels = Vec::new();
    for figure in benchmark.variants.iter().flat_map(|variant| &variant.figures) {
        if !labels.contains(&figure.label) {
            labels.push(figure.label);
        }
    }
    labels
}

/// Median and interval.
pub(super) fn show(figure: &Figure) -> String {
    let median = number(figure.estimate.median);
    match figure.estimate.ci95 {
        Some((low, high)) => format!("{median} [{} – {}]", number(low), number(high)),
        None => median,
    }
}
