//! Which hits of limits that refuse, and let the code go on, are to be reported. A function can hit them millions of times
//! a second; whoever looks after it wants to hear of it once.

use std::time::{Duration, Instant};

use crate::engine::LimitHit;

/// Time between two events for the same limit.
const INTERVAL: Duration = Duration::from_secs(1);

/// The soft limits that one instance or queue hits, each to be reported at most once a second.
#[derive(Debug, Default)]
pub(super) struct SoftLimitEvents {
    /// The hits reported last, one for each limit.
    reported: Vec<(LimitHit, Instant)>,
}

impl SoftLimitEvents {
    /// The hit, if it is to be reported.
    pub(super) fn due(&mut self, hit: LimitHit) -> Option<LimitHit> {
        self.is_due(hit, Instant::now()).then_some(hit)
    }

    fn is_due(&mut self, hit: LimitHit, now: Instant) -> bool {
        match self.reported.iter_mut().find(|(other, _)| other.limit == hit.limit) {
            Some((_, time)) if now.saturating_duration_since(*time) < INTERVAL => false,
            Some(known) => {
                *known = (hit, now);
                true
            }
            None => {
                self.reported.push((hit, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Limit;

    #[test]
    fn each_limit_is_reported_once_a_second() {
        let mut events = SoftLimitEvents::default();
        let start = Instant::now();
        let hit = |limit, measured| LimitHit {
            limit,
            allowed: 1,
            measured,
        };
        assert!(events.is_due(hit(Limit::Timers, 2), start));
        assert!(!events.is_due(hit(Limit::Timers, 3), start + INTERVAL / 2));
        assert!(events.is_due(hit(Limit::HostCalls, 2), start));
        assert!(events.is_due(hit(Limit::Timers, 4), start + INTERVAL));
    }
}
