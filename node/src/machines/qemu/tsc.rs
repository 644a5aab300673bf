//! The rate of the processor's time-stamp counter. A guest that QEMU emulates reads the host's counter, and has nothing to
//! find its rate by: without being told, it does not start.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// How long it is measured.
const SPAN: Duration = Duration::from_millis(50);

/// Readings tried at each end, of which the least disturbed counts.
const READINGS: usize = 20;

/// Ticks per millisecond. Takes 50 ms.
pub(super) async fn khz() -> u32 {
    let (start, first) = reading();
    tokio::time::sleep(SPAN).await;
    let (end, last) = reading();
    let ticks = u128::from(last.wrapping_sub(first));
    let nanos = end.duration_since(start).as_nanos().max(1);
    u32::try_from(ticks * 1_000_000 / nanos).unwrap_or(u32::MAX)
}

/// Time and counter at one moment.
fn reading() -> (Instant, u64) {
    let mut best: Option<(Duration, Instant, u64)> = None;
    for _ in 0..READINGS {
        let before = Instant::now();
        #[allow(unsafe_code, reason = "an instruction")]
        // SAFETY: every x86-64 processor has it, and Linux lets processes use it.
        let counter = unsafe { _rdtsc() };
        let took = before.elapsed();
        if best.is_none_or(|(least, ..)| took < least) {
            best = Some((took, before + took / 2, counter));
        }
    }
    best.map_or_else(|| (Instant::now(), 0), |(_, at, counter)| (at, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_measurements_agree() {
        let (first, second) = (khz().await, khz().await);
        assert!(first > 100_000, "{first} kHz");
        assert!(first.abs_diff(second) < first / 1_000, "{first} and {second} kHz");
    }
}
