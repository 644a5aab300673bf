//! What commands write: tables for people, JSON for programs, diagnostics to standard error.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::failure::Failure;

/// Writes one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value).map_err(Failure::failed)?;
    text.push(b'\n');
    raw(&text)
}

/// Writes one JSON document on one line, for streams.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec(value).map_err(Failure::failed)?;
    text.push(b'\n');
    raw(&text)
}

/// Writes one line.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// Writes one line to standard error. If that is closed there is nobody left to tell.
pub(super) fn diagnostic(text: &str) {
    _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a table under a title.
pub(super) fn table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    line(render_table(title, columns, rows))
}

/// The table as text.
pub(super) fn render_table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED.with_rounded_corners())
        // IDs are there to be copied: a row is rather too long than broken in the middle of one.
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns);
    for row in rows {
        table.add_row(row);
    }
    let body = table.trim_fmt();
    let width = body.lines().next().map_or(0, |line| line.chars().count());
    let indent = width.saturating_sub(title.chars().count()) / 2;
    format!("{:indent$}{title}\n{body}", "")
}

/// Writes a heading and aligned `key: value` lines.
pub(super) fn columns(title: &str, rows: &[(&str, String)]) -> Result<(), Failure> {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    line(title)?;
    line("")?;
    for (key, value) in rows {
        // A row without a key continues the one before it.
        let colon = if key.is_empty() { ' ' } else { ':' };
        line(format_args!("{key:>indent$}{colon} {value}", indent = width + 2))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_a_title_and_keep_long_ids_whole() {
        let id = "N".repeat(200);
        let text = render_table("Nodes", ["ID", "Name"], [[id.clone(), "a".to_owned()]]);
        let mut lines = text.lines();
        assert_eq!(lines.next().map(str::trim), Some("Nodes"));
        assert!(lines.next().is_some_and(|line| line.starts_with('╭')));
        assert!(text.contains(&id));
    }
}
