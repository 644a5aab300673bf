//! Bounds how much a function may say. The agent throttles so that chatter stays off the link, the node throttles
//! again because it does not take the agent's word for it.

use std::time::{Duration, Instant};

/// A token bucket that counts what it refuses. One log line costs one token and one more per 256 bytes.
#[derive(Debug)]
pub struct Throttle {
    tokens: f64,
    burst: f64,
    per_second: f64,
    last: Instant,
    refused: u64,
    reported: Instant,
}

/// Bytes of text for one token.
const CHARGE: usize = 256;

/// Tokens that may be used at once, and that come back each second, on the agent. The node allows twice as much, so that
/// what an honest agent lets pass is never refused there for having arrived in a lump.
const BURST: f64 = 10_000.0;
const PER_SECOND: f64 = 2_000.0;

/// How often refusals are reported while they go on.
const REPORT_EVERY: Duration = Duration::from_secs(1);

impl Throttle {
    /// The agent's throttle.
    #[must_use]
    pub fn agent() -> Self {
        Self::new(BURST, PER_SECOND)
    }

    /// The node's throttle.
    #[must_use]
    pub fn node() -> Self {
        Self::new(2.0 * BURST, 2.0 * PER_SECOND)
    }

    fn new(burst: f64, per_second: f64) -> Self {
        let now = Instant::now();
        Self {
            tokens: burst,
            burst,
            per_second,
            last: now,
            refused: 0,
            reported: now,
        }
    }

    /// Whether something of this many bytes may pass; if not, it is counted.
    pub fn admit(&mut self, bytes: usize) -> bool {
        self.admit_at(bytes, Instant::now())
    }

    fn admit_at(&mut self, bytes: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.last);
        self.last = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.burst);
        let cost = 1.0 + (bytes / CHARGE) as f64;
        let admitted = self.tokens >= cost;
        if admitted {
            self.tokens -= cost;
        } else {
            self.refuse();
        }
        admitted
    }

    /// Counts something refused for another reason.
    pub fn refuse(&mut self) {
        self.refused += 1;
    }

    /// How many were refused since the last report, if it is time for one.
    pub fn report(&mut self) -> Option<u64> {
        self.report_at(Instant::now())
    }

    fn report_at(&mut self, now: Instant) -> Option<u64> {
        if self.refused == 0 || now.saturating_duration_since(self.reported) < REPORT_EVERY {
            return None;
        }
        self.reported = now;
        Some(std::mem::take(&mut self.refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_flood_and_reports_it_once_a_second() {
        let mut throttle = Throttle::new(3.0, 1.0);
        let start = throttle.last;
        let admitted = (0..10).filter(|_| throttle.admit_at(10, start)).count();
        assert_eq!(admitted, 3);
        assert_eq!(throttle.report_at(start), None);
        let later = start + Duration::from_secs(2);
        assert_eq!(throttle.report_at(later), Some(7));
        assert_eq!(throttle.report_at(later + Duration::from_secs(2)), None);
        assert!(throttle.admit_at(10, later));
        assert!(throttle.admit_at(10, later));
        assert!(!throttle.admit_at(10, later));
    }

    #[test]
    fn long_texts_cost_more() {
        let mut throttle = Throttle::new(10.0, 1.0);
        let now = throttle.last;
        assert!(throttle.admit_at(9 * CHARGE, now));
        assert!(!throttle.admit_at(0, now));
    }
}
