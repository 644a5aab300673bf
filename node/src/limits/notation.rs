//! How limits are written on the command line, and shown to people: `cpu_time=500ms`, `heap=64MiB`, `instances=2`.

use super::{Assignment, LimitKey, Unit};
use crate::duration;

/// Units of bytes, longest spelling first, so that `MiB` is not taken for something that ends in `B`.
const BYTE_UNITS: [(&str, f64); 8] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("B", 1.0),
];

impl LimitKey {
    /// Reads `NAME=VALUE`: a [name](Self::name) with a value that has a unit, or a [key](Self::key) with a bare number.
    ///
    /// # Errors
    /// One line that says what was expected.
    pub fn parse_assignment(text: &str) -> Result<Assignment, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("expected NAME=VALUE, for example cpu_time=500ms or heap=64MiB")?;
        let limit = Self::ALL
            .into_iter()
            .find(|limit| limit.name() == name || limit.key() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("unknown limit `{name}`, expected one of {names}")
            })?;
        let unit = if name == limit.name() {
            limit.unit()
        } else {
            Unit::Count
        };
        let number = match unit {
            Unit::Milliseconds => parse_time(value),
            Unit::Bytes => parse_bytes(value),
            Unit::Count => value.parse().map_err(|_| format!("`{value}` is not a whole number")),
        };
        let number = number.map_err(|error| format!("{name}: {error}"))?;
        if limit.bounds().contains(&number) {
            return Ok(Assignment(limit, number));
        }
        let (least, most) = (limit.show(*limit.bounds().start()), limit.show(*limit.bounds().end()));
        Err(format!("{name} is {value}, possible are {least} to {most}"))
    }

    /// A value for people, in the notation of the command line: `500ms`, `30s`, `64MiB`, `1024`.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        match self.unit() {
            Unit::Count => value.to_string(),
            Unit::Milliseconds if value >= 1_000 && value.is_multiple_of(1_000) => format!("{}s", value / 1_000),
            Unit::Milliseconds => format!("{value}ms"),
            Unit::Bytes => {
                let whole = |shift: u32| value > 0 && value.trailing_zeros() >= shift;
                match () {
                    () if whole(30) => format!("{}GiB", value >> 30),
                    () if whole(20) => format!("{}MiB", value >> 20),
                    () if whole(10) => format!("{}KiB", value >> 10),
                    () => format!("{value}B"),
                }
            }
        }
    }
}

fn parse_time(text: &str) -> Result<u64, String> {
    let time = duration::parse(text)?;
    // Decimal fractions of seconds have no exact binary form; half a microsecond is nothing to quarrel about.
    let milliseconds = (time.as_secs_f64() * 1e3).round();
    if (time.as_secs_f64() * 1e3 - milliseconds).abs() > 5e-4 {
        return Err(format!("`{text}` is not a whole number of milliseconds"));
    }
    Ok(milliseconds as u64)
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a number of bytes; expected something like 64MiB, 1.5GiB or 500kB");
    let (number, scale) = BYTE_UNITS
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))
        .ok_or_else(wrong)?;
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.contains(|c: char| c != '.' && !c.is_ascii_digit()) {
        return Err(wrong());
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if bytes.fract() != 0.0 || bytes > 2_f64.powi(53) {
        return Err(wrong());
    }
    Ok(bytes as u64)
}
