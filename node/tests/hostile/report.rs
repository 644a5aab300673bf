//! What was measured: a line for each attack, and a table for the record.

use std::fmt::{self, Write as _};
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

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = &self.calls;
        write!(
            f,
            "{}: {} after {} ms, agent {:?}{}; victims: {} calls, {} errors, p99 {} ms",
            self.title,
            self.answer,
            ms(self.took),
            self.fate,
            self.replaced
                .map_or_else(String::new, |time| format!(" (replaced after {} ms)", ms(time))),
            calls.count(),
            calls.errors.len(),
            ms(calls.percentile(99)),
        )
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// A line about one attack, as it ends.
#[allow(clippy::print_stderr, reason = "the progress of a test run")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints what was measured, and appends it as a Markdown table to the file that the environment names.
pub fn publish(suite: &str, idle: &Calls, rows: &[Row]) {
    let p99 = idle.percentile(99);
    say(&format!(
        "{suite}: {} attacks; victims undisturbed: p99 {} ms",
        rows.len(),
        ms(p99)
    ));
    let Some(path) = std::env::var_os(FILE) else { return };
    let mut table = format!(
        "\n### Hostile functions, {suite}\n\nVictims undisturbed: {} calls, p50 {} ms, p99 {} ms.\n\n\
         | attack | answer | limit | answered, ms | agent | replaced, ms | victims' calls | errors | p50, ms | p99, ms | p99 / idle p99 |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        idle.count(),
        ms(idle.percentile(50)),
        ms(p99),
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
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(table.as_bytes()).unwrap();
}
