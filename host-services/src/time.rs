//! The two things this crate needs of time: RFC 3339 text, and a sleep that works on any executor.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::{Builder, Runtime};

/// Now, as RFC 3339 in UTC with nanoseconds.
pub(crate) fn now_rfc3339() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
}

/// A Unix time as RFC 3339 in UTC with nanoseconds, for years 0 to 9999.
pub(crate) fn rfc3339(seconds: i64, nanoseconds: u32) -> String {
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    // Howard Hinnant's civil_from_days: eras of 400 years that begin on 1 March, so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanoseconds:09}Z",
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    )
}

/// Sleeps, whatever executor polls it: the in-memory services have no runtime of their own, and the isolate's thread
/// that polls them need not have a timer. One thread serves all sleepers of the process; it starts with the first.
/// Returns at once if that thread cannot be started.
pub(crate) async fn sleep(duration: Duration) {
    static CLOCK: OnceLock<Option<Runtime>> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("nex-clock")
            .enable_time()
            .build()
            .inspect_err(|error| tracing::error!(%error, "no clock thread"))
            .ok()
    });
    if let Some(clock) = clock {
        let sleeper = clock.spawn(async move { tokio::time::sleep(duration).await });
        // Fails only if the task panicked or was cancelled, and nothing does either.
        _ = tokio_util::task::AbortOnDropHandle::new(sleeper).await;
    }
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn known_instants() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            assert_eq!(rfc3339(seconds, 5), format!("{text}.000000005Z"));
        }
    }
}
