//! Bounds how much a function may say: the runtime by the function's own limit, an agent and a node once more behind it,
//! because neither takes the word of the one before it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::logs::{LogLevel, LogLine, LogSink};

/// The time that a limit of log lines is for.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Characters of a line that are free; each full number of them costs as much as a further line.
const CHARACTERS_PER_LINE: usize = 1_000;

/// Parts of the window, and the one that is just being filled.
const PARTS: usize = 11;

/// So many lines in any ten seconds, and a count of those refused. A long line costs one more line for each full 1,000
/// characters, so that a limit of lines is a limit of volume, too.
#[derive(Debug)]
pub struct Throttle {
    limit: u64,
    /// What was let through in each of the last seconds.
    spent: [u64; PARTS],
    /// The second that `spent[second % PARTS]` is about.
    second: u64,
    start: Instant,
    refused: u64,
}

impl Throttle {
    /// Lets through `limit` lines in any ten seconds.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: [0; PARTS],
            second: 0,
            start: Instant::now(),
            refused: 0,
        }
    }

    /// Whether a line may pass; if not, it is counted as refused. One that passes must be [charged](Self::charge).
    pub fn open(&mut self) -> bool {
        self.open_at(Instant::now())
    }

    fn open_at(&mut self, now: Instant) -> bool {
        let open = self.has_room(now);
        if !open {
            self.refused += 1;
        }
        open
    }

    /// Charges for a line of so many characters. Its length is known only now, so the last line before the limit may
    /// go beyond it with its length; those after it wait the longer.
    pub fn charge(&mut self, characters: usize) {
        let part = usize::try_from(self.second).unwrap_or(0) % PARTS;
        self.spent[part] += 1 + (characters / CHARACTERS_PER_LINE) as u64;
    }

    /// Whether a line of so many characters may pass, charging for it or counting it as refused.
    pub fn admit(&mut self, characters: usize) -> bool {
        let open = self.open();
        if open {
            self.charge(characters);
        }
        open
    }

    /// Counts a line refused for another reason.
    pub fn refuse(&mut self) {
        self.refused += 1;
    }

    /// Lines refused since the last report.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many were refused since the last report, once lines may pass again.
    pub fn report(&mut self) -> Option<u64> {
        self.report_at(Instant::now())
    }

    fn report_at(&mut self, now: Instant) -> Option<u64> {
        (self.refused > 0 && self.has_room(now)).then(|| self.take_refused())
    }

    /// How many were refused since the last report, whether lines may pass again or not.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.start).as_secs();
        // Never backwards: `now` was taken before the lock and may be older than another's.
        while self.second < second {
            let skip = (second - self.second).saturating_sub(PARTS as u64);
            self.second += 1 + skip;
            let part = usize::try_from(self.second).unwrap_or(0) % PARTS;
            self.spent[part] = 0;
            if skip > 0 {
                self.spent = [0; PARTS];
            }
        }
        self.spent.iter().sum::<u64>() < self.limit
    }
}

/// The line that stands for lines which were dropped.
#[must_use]
pub fn dropped_line(dropped: u64, limit: u64) -> LogLine {
    let window = WINDOW.as_secs();
    LogLine {
        level: LogLevel::Warn,
        text: format!("{dropped} log lines dropped: the limit is {limit} in {window} s"),
    }
}

/// The log of one function with its limit: drops what goes beyond it and says how much, with the next line that may pass
/// and at the end.
pub struct LimitedLog {
    sink: Arc<dyn LogSink>,
    throttle: Mutex<Throttle>,
}

impl LimitedLog {
    /// Lets `limit` lines through to the sink in any ten seconds.
    #[must_use]
    pub fn new(sink: Arc<dyn LogSink>, limit: u32) -> Self {
        Self {
            sink,
            throttle: Mutex::new(Throttle::new(limit.into())),
        }
    }

    /// Whether a line may pass, so that one that may not need not be written at all.
    ///
    /// # Errors
    /// Lines dropped since the last one that passed, this one included.
    pub fn open(&self) -> Result<(), u64> {
        let mut throttle = self.throttle.lock();
        if throttle.open() {
            Ok(())
        } else {
            Err(throttle.refused())
        }
    }

    /// Writes a line for which [`open`](Self::open) has said that it may pass.
    pub fn write(&self, line: LogLine) {
        let report = {
            let mut throttle = self.throttle.lock();
            let report = throttle.report();
            throttle.charge(line.text.chars().count());
            report.map(|dropped| self.dropped(&mut throttle, dropped))
        };
        if let Some(report) = report {
            self.sink.log(report);
        }
        self.sink.log(line);
    }

    /// Says what was dropped and has not been said yet, whether lines may pass or not: nothing may come after this.
    pub fn flush(&self) {
        let report = {
            let mut throttle = self.throttle.lock();
            let dropped = throttle.take_refused();
            (dropped > 0).then(|| self.dropped(&mut throttle, dropped))
        };
        if let Some(report) = report {
            self.sink.log(report);
        }
    }

    fn dropped(&self, throttle: &mut Throttle, dropped: u64) -> LogLine {
        throttle.charge(0);
        dropped_line(dropped, throttle.limit())
    }
}

impl LogSink for LimitedLog {
    fn log(&self, line: LogLine) {
        if self.open().is_ok() {
            self.write(line);
        }
    }
}

impl Drop for LimitedLog {
    fn drop(&mut self) {
        self.flush();
    }
}

impl fmt::Debug for LimitedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedLog").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(throttle: &mut Throttle, attempts: usize, now: Instant) -> usize {
        (0..attempts)
            .filter(|_| {
                let open = throttle.open_at(now);
                if open {
                    throttle.charge(10);
                }
                open
            })
            .count()
    }

    #[test]
    fn no_ten_seconds_have_more_than_the_limit() {
        let mut throttle = Throttle::new(100);
        let start = throttle.start;
        let mut passed = Vec::new();
        // A flood that comes every tenth of a second for a minute.
        for tick in 0..600 {
            let now = start + Duration::from_millis(100) * tick;
            for _ in 0..admitted(&mut throttle, 7, now) {
                passed.push(now);
            }
        }
        for (index, first) in passed.iter().enumerate() {
            let within = passed[index..]
                .iter()
                .take_while(|time| **time - *first < WINDOW)
                .count();
            assert!(within <= 100, "{within}");
        }
        assert!(passed.len() >= 500, "{}", passed.len());
    }

    #[test]
    fn refusals_are_reported_once_lines_pass_again() {
        let mut throttle = Throttle::new(3);
        let start = throttle.start;
        assert_eq!(admitted(&mut throttle, 10, start), 3);
        assert_eq!(throttle.report_at(start), None);
        let later = start + Duration::from_secs(3600);
        assert_eq!(throttle.report_at(later), Some(7));
        assert_eq!(throttle.report_at(later), None);
        assert_eq!(admitted(&mut throttle, 10, later), 3);
    }

    #[test]
    fn long_lines_cost_more() {
        let mut throttle = Throttle::new(10);
        let now = throttle.start;
        assert!(throttle.open_at(now));
        throttle.charge(9_999);
        assert!(!throttle.open_at(now));
    }

    #[test]
    fn a_limit_of_none_lets_nothing_through() {
        let mut throttle = Throttle::new(0);
        assert!(!throttle.admit(1));
    }

    #[test]
    fn the_report_comes_before_the_next_line_and_at_the_end() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let line = |text: &str| LogLine {
            level: LogLevel::Info,
            text: text.into(),
        };
        let log = LimitedLog::new(Arc::new(move |line: LogLine| sink.lock().push(line.text)), 2);
        for text in ["one", "two", "three", "four"] {
            log.log(line(text));
        }
        assert_eq!(*lines.lock(), ["one", "two"]);
        drop(log);
        assert_eq!(lines.lock()[2..], ["2 log lines dropped: the limit is 2 in 10 s"]);
    }
}
