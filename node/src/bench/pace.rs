//! Fixed arrival times: a thread of its own that waits for each to the microsecond. The timers of tokio have a
//! resolution of a millisecond, which is more than most latencies that are measured with this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::stats::Latencies;

/// Most of the time before an arrival that is spent looking at the clock instead of asleep.
const MAX_SPIN: Duration = Duration::from_micros(50);
/// Part of the interval between arrivals that this may be at most, so that it takes little of a processor.
const SPIN_PART: u32 = 20;
/// Longest sleep, after which a pacer looks whether it should end.
const NAP: Duration = Duration::from_millis(50);

/// As good as never, and still something that can be added to a time.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// When requests are due: so many a second, evenly spaced.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start: Instant,
    rate: f64,
}

impl Schedule {
    /// `rate` a second from `start` on; the rate must be positive and finite.
    #[must_use]
    pub fn new(start: Instant, rate: f64) -> Self {
        Self { start, rate }
    }

    /// When the request with this number is due, counted from the start.
    #[must_use]
    pub fn offset(&self, number: u64) -> Duration {
        Duration::try_from_secs_f64(number as f64 / self.rate)
            .unwrap_or(NEVER)
            .min(NEVER)
    }

    /// When the request with this number is due.
    #[must_use]
    pub fn due(&self, number: u64) -> Instant {
        self.start + self.offset(number)
    }

    /// How many are due within a time.
    #[must_use]
    pub fn count(&self, duration: Duration) -> u64 {
        (self.rate * duration.as_secs_f64()).ceil() as u64
    }
}

/// A running pacer; dropping it ends it.
#[derive(Debug)]
pub struct Pacer {
    stop: Arc<AtomicBool>,
    lags: oneshot::Receiver<Latencies>,
}

impl Pacer {
    /// Starts a thread that does `send` for each of `count` requests when it is due. One that cannot keep up sends late
    /// and leaves out none.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn start(schedule: Schedule, count: u64, mut send: impl FnMut(u64) + Send + 'static) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (report, lags) = oneshot::channel();
        let stopped = Arc::clone(&stop);
        thread::Builder::new().name("pacer".into()).spawn(move || {
            // Else the system may wake a thread 50 µs late, to save power. Refused, it costs accuracy, which shows.
            #[cfg(target_os = "linux")]
            {
                _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
            }
            let spin = (schedule.offset(1) / SPIN_PART).min(MAX_SPIN);
            let mut lags = Latencies::default();
            for number in 0..count {
                let due = schedule.due(number);
                wait(due, spin, &stopped);
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                lags.record(due.elapsed());
                send(number);
            }
            _ = report.send(lags);
        })?;
        Ok(Self { stop, lags })
    }

    /// How late each request was sent; `None` if the thread has ended before its time. Wait for all requests to be
    /// answered before this.
    pub async fn lags(&mut self) -> Option<Latencies> {
        (&mut self.lags).await.ok()
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn wait(due: Instant, spin: Duration, stopped: &AtomicBool) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || stopped.load(Ordering::Relaxed) {
            return;
        }
        match left.checked_sub(spin) {
            Some(sleep) if !sleep.is_zero() => thread::sleep(sleep.min(NAP)),
            _ => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn arrivals_are_evenly_spaced() {
        let schedule = Schedule::new(Instant::now(), 1000.0);
        assert_eq!(schedule.offset(0), Duration::ZERO);
        assert_eq!(schedule.offset(1500), Duration::from_millis(1500));
        assert_eq!(schedule.count(Duration::from_secs(2)), 2000);
        assert_eq!(Schedule::new(Instant::now(), 0.5).count(Duration::from_secs(1)), 1);
    }

    #[tokio::test]
    async fn nothing_is_sent_early_and_nothing_is_left_out() {
        let (sender, sent) = mpsc::channel();
        let schedule = Schedule::new(Instant::now(), 2000.0);
        let mut pacer = Pacer::start(schedule, 100, move |number| {
            sender.send((number, Instant::now())).unwrap();
        })
        .unwrap();
        assert_eq!(pacer.lags().await.unwrap().len(), 100);
        let sent: Vec<_> = sent.iter().collect();
        assert_eq!(sent.len(), 100);
        for (index, (number, at)) in sent.into_iter().enumerate() {
            assert_eq!(number, index as u64);
            assert!(at >= schedule.due(number));
        }
    }

    #[tokio::test]
    async fn a_dropped_pacer_ends() {
        let (sender, sent) = mpsc::channel();
        let schedule = Schedule::new(Instant::now() + Duration::from_secs(3600), 1.0);
        drop(
            Pacer::start(schedule, 1, move |number| {
                sender.send(number).unwrap();
            })
            .unwrap(),
        );
        // The sender is dropped with the thread.
        assert_eq!(sent.recv(), Err(mpsc::RecvError));
    }
}
