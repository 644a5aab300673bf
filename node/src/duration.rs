//! Durations as operators of NATS tools write them: `2s`, `750ms`, `1m30s`, `1.5h`.

use std::time::Duration;

/// Units, longest spelling first, so that `ms` is not taken for `m`.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Parses a duration.
///
/// # Errors
/// One line that says what was expected.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; expected something like 2s, 750ms or 1m30s");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (unit, scale) = UNITS
            .iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(wrong)?;
        seconds += number * scale;
        rest = &tail[unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        let cases = [
            ("2s", 2_000),
            ("750ms", 750),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            ("1h", 3_600_000),
            ("0s", 0),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("10µs"), Ok(Duration::from_micros(10)));
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "",
            "2",
            "s",
            "-1s",
            "2 s",
            "1.2.3s",
            "2x",
            "1e3s",
            "9999999999999999999999h",
        ] {
            let error = parse(text).err().unwrap_or_default();
            assert!(error.contains("750ms"), "{text:?}: {error}");
        }
    }
}
