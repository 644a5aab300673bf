//! Results in Markdown: what they were measured on, and tables.

use std::fmt::Write;

use nex_node::bench::Machine;

/// This machine, measured by this program.
pub(crate) fn machine() -> Machine {
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    Machine::describe(&format!("cargo run{profile} -p nex-benches --"))
}

/// A table under construction; the first column is aligned left, the others right.
#[derive(Debug)]
pub(crate) struct Table {
    text: String,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let rules: Vec<&str> = columns
            .iter()
            .enumerate()
            .map(|(index, _)| if index == 0 { "---" } else { "---:" })
            .collect();
        Self {
            text: format!("| {} |\n| {} |\n", columns.join(" | "), rules.join(" | ")),
        }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.text.push_str("| ");
        self.text.push_str(&cells.join(" | "));
        self.text.push_str(" |\n");
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// A heading and what stands above the figures.
pub(crate) fn heading(title: &str, facts: &[(&str, String)]) -> String {
    let mut text = format!("## {title}\n\n");
    for (name, value) in facts {
        // Writing to a string cannot fail.
        _ = writeln!(text, "- {name}: {value}");
    }
    text.push('\n');
    text
}

/// A number with separators between thousands.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(7.4), "7");
        assert_eq!(thousands(1234.0), "1,234");
        assert_eq!(thousands(123_456.0), "123,456");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
    }

    #[test]
    fn tables() {
        let mut table = Table::new(&["a", "b"]);
        table.row(&["x".to_owned(), "1".to_owned()]);
        assert_eq!(table.finish(), "| a | b |\n| --- | ---: |\n| x | 1 |\n");
    }
}
