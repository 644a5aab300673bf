//! A report as one HTML page that needs nothing else: no scripts, and no styles, fonts or pictures from anywhere. It is
//! well-formed XML, too.

mod charts;

use std::fmt::{Display, Write as _};

use super::report::{Benchmark, Report, Variant};
use super::terminal::{labels, show};
use crate::bench::plot::{self, escape};

const STYLE: &str = include_str!("page/style.css");

/// The page.
pub(super) fn render(report: &Report) -> String {
    let mut page = String::new();
    let names: Vec<&str> = report.benchmarks.iter().map(|benchmark| benchmark.benchmark).collect();
    let title = format!("nex bench: {}", names.join(", "));
    put(
        &mut page,
        format_args!(
            "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
             <style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            plot::STYLE,
            title = escape(&title),
        ),
    );
    if !report.environment.release_build {
        page.push_str("<p class=\"warning\">The program was not optimised: these figures mean nothing.</p>\n");
    }
    let failures = report.failures();
    if failures.total() > 0 {
        put(
            &mut page,
            format_args!(
                "<p class=\"warning\">Calls failed: {}.</p>\n",
                escape(&failures.to_string())
            ),
        );
    }
    page.push_str("<section>\n<h2>Environment</h2>\n<table class=\"facts\">\n<tbody>\n");
    for (name, value) in report.facts() {
        let value = escape(value.trim_matches('`'));
        put(
            &mut page,
            format_args!("<tr><th scope=\"row\">{}</th><td>{value}</td></tr>\n", escape(name)),
        );
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
    for benchmark in &report.benchmarks {
        section(&mut page, benchmark);
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn section(page: &mut String, benchmark: &Benchmark) {
    put(
        page,
        format_args!(
            "<section id=\"{}\">\n<h2>{}</h2>\n<p>{}</p>\n<p>Excluded: {}.</p>\n",
            benchmark.benchmark,
            escape(&benchmark.title),
            escape(&benchmark.definition),
            escape(&benchmark.excluded),
        ),
    );
    table(page, benchmark);
    for variant in &benchmark.variants {
        for note in &variant.notes {
            put(
                page,
                format_args!("<p class=\"note\">{}: {}</p>\n", escape(&variant.name), escape(note)),
            );
        }
        if variant.failures.total() + variant.failures.duplicates > 0 {
            put(
                page,
                format_args!(
                    "<p class=\"warning\">{}: {}</p>\n",
                    escape(&variant.name),
                    escape(&variant.failures.to_string())
                ),
            );
        }
    }
    for chart in charts::of(benchmark) {
        put(page, format_args!("<figure>{chart}</figure>\n"));
    }
    page.push_str("</section>\n");
}

fn table(page: &mut String, benchmark: &Benchmark) {
    let labels = labels(benchmark);
    page.push_str("<div class=\"scroll\">\n<table>\n<caption>Medians of the repeats [95 % interval]</caption>\n<thead><tr><td></td>");
    for label in labels.iter().chain(&["calls", "failed"]) {
        put(page, format_args!("<th scope=\"col\">{}</th>", escape(label)));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for variant in &benchmark.variants {
        row(page, variant, &labels);
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}

fn row(page: &mut String, variant: &Variant, labels: &[&str]) {
    put(
        page,
        format_args!("<tr><th scope=\"row\">{}</th>", escape(&variant.name)),
    );
    for label in labels {
        let figure = variant.figures.iter().find(|figure| figure.label == *label);
        let text = figure.map_or_else(String::new, show);
        put(page, format_args!("<td>{}</td>", escape(&text)));
    }
    put(
        page,
        format_args!("<td>{}</td><td>{}</td></tr>\n", variant.calls, variant.failures.total()),
    );
}

/// Writing to a string cannot fail.
fn put(page: &mut String, text: impl Display) {
    _ = write!(page, "{text}");
}
