//! What was measured, as a table.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use nex_runtime::engine::Limit;

use crate::expected::Fate;
use crate::load::Calls;

/// File that the tables are appended to.
const FILE: &str = "NEX_HOSTILE_REPORT";

/// An attack that went as it must.
#[derive(Debug)]
pub struct Row {
    pub title: String,
    /// What the offender's caller got.
    pub answer: String,
    pub limit: Option<Limit>,
    /// From the call to its answer.
    pub took: Duration,
    pub fate: Fate,
    /// From the call until the victims were together on another agent.
    pub replaced: Option<Duration>,
    /// The victims' calls meanwhile.
    pub calls: Calls,
}

/// The table of a suite, in Markdown.
pub fn table(suite: &str, idle: &Calls, rows: &[Row]) -> String {
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
    let (p50, p99) = (idle.percentile(50), idle.percentile(99));
    let mut table = format!(
        "\n## Hostile functions, {suite}: victims' p50 {} ms, p99 {} ms undisturbed ({} calls)\n\n\
         | attack | answer | limit | answered, ms | agent | replaced, ms | victims' calls | errors | p50, ms | p99, ms | p99 / idle p99 |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        ms(p50),
        ms(p99),
        idle.count(),
    );
    for row in rows {
        let calls = &row.calls;
        _ = writeln!(
            table,
            "| {} | {} | {} | {} | {:?} | {} | {} | {} | {} | {} | {:.1} |",
            row.title,
            row.answer,
            row.limit.map_or("-", Limit::as_str),
            ms(row.took),
            row.fate,
            row.replaced.map_or_else(|| "-".to_owned(), ms),
            calls.count(),
            calls.errors.len(),
            ms(calls.percentile(50)),
            ms(calls.percentile(99)),
            calls.percentile(99).as_secs_f64() / p99.as_secs_f64().max(f64::EPSILON),
        );
    }
    table
}

/// Prints a table, and appends it to the file that the environment names.
#[allow(clippy::print_stderr, reason = "the figures of a test run")]
pub fn publish(table: &str) {
    eprintln!("{table}");
    if let Some(path) = std::env::var_os(FILE) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(table.as_bytes()).unwrap();
    }
}
