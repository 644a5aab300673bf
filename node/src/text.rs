//! Durations and instants as the control interface writes them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Uptime for people, as the NATS server writes it: `1y2d3h4m5s`, from the largest unit that is not zero.
pub(crate) fn uptime(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let (s, m, h, years) = (seconds % 60, minutes % 60, hours % 24, days / 365);
    if years > 0 {
        format!("{years}y{}d{h}h{m}m{s}s", days % 365)
    } else if days > 0 {
        format!("{days}d{h}h{m}m{s}s")
    } else if hours > 0 {
        format!("{hours}h{m}m{s}s")
    } else if minutes > 0 {
        format!("{minutes}m{s}s")
    } else {
        format!("{s}s")
    }
}

/// Execution time for people: nanoseconds, milliseconds, or as an uptime.
pub(crate) fn runtime(duration: Duration) -> String {
    if duration < Duration::from_micros(1) {
        format!("{}ns", duration.as_nanos())
    } else if duration < Duration::from_secs(1) {
        format!("{}ms", duration.as_millis())
    } else {
        uptime(duration)
    }
}

/// Now, as RFC 3339 in UTC.
pub(crate) fn now() -> String {
    rfc3339(OffsetDateTime::now_utc())
}

/// An instant for people, as RFC 3339 in UTC to the second.
pub(crate) fn instant(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    rfc3339(at.replace_nanosecond(0).unwrap_or(at))
}

fn rfc3339(at: OffsetDateTime) -> String {
    // Years beyond 9999 are the only ones it cannot write.
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3_661, "1h1m1s"),
            (90_061, "1d1h1m1s"),
            (366 * 86_400 + 5, "1y1d0h0m5s"),
        ] {
            assert_eq!(uptime(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(runtime(Duration::from_nanos(999)), "999ns");
        assert_eq!(runtime(Duration::from_nanos(1_000)), "0ms");
        assert_eq!(runtime(Duration::from_millis(999)), "999ms");
        assert_eq!(runtime(Duration::from_secs(61)), "1m1s");
    }

    #[test]
    fn instants() {
        let now = now();
        assert!(
            now.len() >= "2024-01-01T00:00:00Z".len() && now.ends_with('Z') && now.contains('T'),
            "{now}"
        );
        let instant = instant(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_999));
        assert_eq!(instant, "2023-11-14T22:13:20Z");
    }
}
