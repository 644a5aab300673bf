//! What a result tells of the machines that the functions were in.

use std::time::Duration;

use serde::Serialize;

/// How one machine was started, and what it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// It is a copy of a template.
    pub(super) restored: bool,
    /// Until it was up.
    pub(super) elapsed: Duration,
    /// On its host, with its part of what it shares; 0 if unknown.
    pub(super) host_bytes: u64,
}

/// The machines there are at the end of a run: those of the namespace, and those that wait for one.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Machines {
    count: usize,
    booted: usize,
    restored: usize,
    /// Microseconds until half of them were up; `None` without machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    start_p50_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_max_us: Option<u64>,
    /// The mean of those of which it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine_host_bytes: Option<u64>,
}

impl Machines {
    /// The sum of these.
    pub(super) fn of(starts: impl Iterator<Item = Start>) -> Self {
        let starts: Vec<Start> = starts.collect();
        let restored = starts.iter().filter(|start| start.restored).count();
        let mut times: Vec<u64> = starts
            .iter()
            .map(|start| u64::try_from(start.elapsed.as_micros()).unwrap_or(u64::MAX))
            .collect();
        times.sort_unstable();
        let known: Vec<u64> = starts
            .iter()
            .map(|start| start.host_bytes)
            .filter(|&bytes| bytes > 0)
            .collect();
        Self {
            count: starts.len(),
            booted: starts.len() - restored,
            restored,
            start_p50_us: times.get(times.len().saturating_sub(1) / 2).copied(),
            start_max_us: times.last().copied(),
            machine_host_bytes: known.iter().sum::<u64>().checked_div(known.len() as u64),
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let (Some(median), Some(longest)) = (self.start_p50_us, self.start_max_us) else {
            return "none: functions run in the node's own process".to_owned();
        };
        let millis = |micros: u64| micros as f64 / 1e3;
        let memory = self.machine_host_bytes.map_or_else(String::new, |bytes| {
            format!(
                "; {:.1} MiB of the host's memory each",
                bytes as f64 / f64::from(1 << 20)
            )
        });
        format!(
            "{}: {} booted, {} restored; start p50 {:.1} ms, longest {:.1} ms{memory}",
            self.count,
            self.booted,
            self.restored,
            millis(median),
            millis(longest)
        )
    }
}

/// What machines take together; `None` if there are none, or if it is not known of all.
pub(super) fn memory(machines: impl Iterator<Item = u64>) -> Option<u64> {
    let each: Vec<u64> = machines.collect();
    (!each.is_empty() && each.iter().all(|&bytes| bytes > 0)).then(|| each.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(restored: bool, millis: u64, mib: u64) -> Start {
        Start {
            restored,
            elapsed: Duration::from_millis(millis),
            host_bytes: mib << 20,
        }
    }

    #[test]
    fn machines_are_summed_up() {
        let machines = Machines::of([start(false, 900, 30), start(true, 20, 0), start(true, 10, 10)].into_iter());
        assert_eq!(
            machines.describe(),
            "3: 1 booted, 2 restored; start p50 20.0 ms, longest 900.0 ms; 20.0 MiB of the host's memory each"
        );
        let unknown = Machines::of([start(false, 4, 0)].into_iter());
        assert_eq!(
            unknown.describe(),
            "1: 1 booted, 0 restored; start p50 4.0 ms, longest 4.0 ms"
        );
        assert!(Machines::of(std::iter::empty()).describe().starts_with("none"));
    }

    #[test]
    fn memory_is_told_if_all_of_it_is_known() {
        assert_eq!(memory([3, 4].into_iter()), Some(7));
        assert_eq!(memory([3, 0].into_iter()), None);
        assert_eq!(memory(std::iter::empty()), None);
    }
}
