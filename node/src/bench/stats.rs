//! Percentiles of latencies, and medians of repeats with their confidence intervals.

use std::time::Duration;

use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// Decimal digits that are kept of a latency: every figure is right to 0.1 %.
const DIGITS: u8 = 3;
/// Samples that a confidence interval is made from.
const RESAMPLES: usize = 10_000;
/// Makes the samples the same every time: the same repeats give the same interval.
const SEED: u64 = 0x6e65_785f_6265_6e63;

/// Latencies of many calls, in memory that does not grow with their number; right to 0.1 %.
#[derive(Debug, Clone)]
pub struct Latencies {
    nanoseconds: Histogram<u64>,
    /// Exact, unlike the histogram: what is known of the worst call should not be rounded up.
    longest: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        #[allow(clippy::expect_used, reason = "the number of digits is a constant that it takes")]
        let nanoseconds = Histogram::new(DIGITS).expect("up to five digits are possible");
        Self {
            nanoseconds,
            longest: 0,
        }
    }
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if self.nanoseconds.record(nanoseconds).is_err() {
            self.nanoseconds.saturating_record(nanoseconds);
        }
        self.longest = self.longest.max(nanoseconds);
    }

    /// Adds those of another measurement.
    pub fn merge(&mut self, other: &Self) {
        // It grows as needed and fails for none that could be recorded.
        _ = self.nanoseconds.add(&other.nanoseconds);
        self.longest = self.longest.max(other.longest);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nanoseconds.is_empty()
    }

    /// Microseconds at each of these quantiles, of 1: so large a part of the latencies is no longer than this. Not a
    /// number if there are none.
    #[must_use]
    pub fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> [f64; N] {
        quantiles.map(|quantile| self.quantile(quantile))
    }

    /// Microseconds at one quantile.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> f64 {
        if self.is_empty() {
            return f64::NAN;
        }
        microseconds(self.nanoseconds.value_at_quantile(quantile).min(self.longest))
    }

    /// The longest, in microseconds.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The shortest, in microseconds.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// Quantiles and microseconds, ever denser towards the end, as diagrams of percentiles show them. Each halving of the
    /// distance to 1 has `ticks` points.
    pub fn curve(&self, ticks: u32) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.nanoseconds.iter_quantiles(ticks).map(|step| {
            (
                step.quantile(),
                microseconds(step.value_iterated_to().min(self.longest)),
            )
        })
    }

    /// How many latencies lie in each of these ranges; `edges` are microseconds, rising. Those outside of them are in
    /// none.
    #[must_use]
    pub fn counts(&self, edges: &[f64]) -> Vec<u64> {
        edges
            .windows(2)
            .map(|edges| match edges {
                [low, high] => self
                    .nanoseconds
                    .count_between((low * 1000.0) as u64, ((high * 1000.0) as u64).saturating_sub(1)),
                _ => 0,
            })
            .collect()
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

/// The median of some repeats, and how sure it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Median of the repeats.
    pub median: f64,
    /// 95 % confidence interval of the median; `None` for a single repeat.
    pub ci95: Option<(f64, f64)>,
    /// What each repeat gave, in order.
    pub repeats: Vec<f64>,
}

impl Estimate {
    /// Of these repeats; not a number if there are none.
    ///
    /// The interval is a bootstrap: the range of medians that repeats drawn from these, with replacement, would have had,
    /// without the outermost 2.5 % at each end. With five repeats that is their whole range.
    #[must_use]
    pub fn of(repeats: Vec<f64>) -> Self {
        Self {
            median: median(&repeats),
            ci95: interval(&repeats),
            repeats,
        }
    }
}

fn interval(repeats: &[f64]) -> Option<(f64, f64)> {
    if repeats.len() < 2 {
        return None;
    }
    let mut random = StdRng::seed_from_u64(SEED);
    let mut sample = vec![0.0; repeats.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for place in &mut sample {
                *place = repeats[random.random_range(..repeats.len())];
            }
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let outer = RESAMPLES / 40;
    Some((medians[outer], medians[RESAMPLES - 1 - outer]))
}

/// Median of a few values; with an even number of them the mean of the middle two.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(low), Some(high)) if sorted.len().is_multiple_of(2) => (low + high) / 2.0,
        (_, Some(value)) => *value,
        _ => f64::NAN,
    }
}

/// Smallest and largest value.
#[must_use]
pub fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (low.min(value), high.max(value))
        })
}

/// Slope of the straight line with the least squared distance from points `(x, y)`; not a number for fewer than two
/// different x.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        (
            above + (point.0 - x) * (point.1 - y),
            below + (point.0 - x) * (point.0 - x),
        )
    });
    above / below
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    /// Within the 0.1 % that a histogram may be off.
    #[track_caller]
    fn close(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() <= expected / 1000.0,
            "{actual} instead of {expected}"
        );
    }

    fn to_a_thousand() -> Latencies {
        let mut latencies = Latencies::default();
        for microseconds in (1..=1000).rev() {
            latencies.record(Duration::from_micros(microseconds));
        }
        latencies
    }

    #[test]
    fn quantiles_are_those_of_the_latencies() {
        let latencies = to_a_thousand();
        for (quantile, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            close(latencies.quantile(quantile), expected);
        }
        close(latencies.min(), 1.0);
        assert_eq!(latencies.max(), 1000.0);
        assert!(Latencies::default().quantile(0.5).is_nan());
    }

    #[test]
    fn merging_is_recording_together() {
        let mut merged = to_a_thousand();
        let mut other = Latencies::default();
        // Longer than all before: the histogram has to grow.
        other.record(Duration::from_secs(60));
        other.record(Duration::MAX);
        merged.merge(&other);
        assert_eq!(merged.len(), 1002);
        close(merged.quantile(0.5), 501.0);
        close(merged.quantile(1001.0 / 1002.0), 60e6);
        assert!(merged.max() > 60e6);
    }

    #[test]
    fn curves_and_counts() {
        let latencies = to_a_thousand();
        let curve: Vec<_> = latencies.curve(2).collect();
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1), "{curve:?}");
        close(curve.last().unwrap().1, 1000.0);
        assert_eq!(latencies.counts(&[0.5, 10.5, 500.5, 2000.0]), [10, 490, 500]);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
        assert_eq!(range(&[3.0, 1.0, 2.0]), (1.0, 3.0));
    }

    #[test]
    fn intervals_hold_the_median_and_narrow_with_more_repeats() {
        assert_eq!(Estimate::of(vec![5.0]).ci95, None);
        let five = Estimate::of(vec![10.0, 11.0, 9.0, 20.0, 10.5]);
        assert_eq!(five.median, 10.5);
        // The chance that three or more of five draws are the smallest is 5.8 %, so that no value is left out.
        assert_eq!(five.ci95, Some((9.0, 20.0)));
        assert_eq!(Estimate::of(five.repeats.clone()), five);

        let many: Vec<f64> = (0..200).map(|index| f64::from(index * 7919 % 200)).collect();
        let many = Estimate::of(many);
        let (low, high) = many.ci95.unwrap();
        assert!(low <= many.median && many.median <= high);
        // The order statistics of a binomial say 86 and 114 of 200.
        assert!(
            (80.0..92.0).contains(&low) && (108.0..120.0).contains(&high),
            "{low} {high}"
        );
        assert_eq!(Estimate::of(vec![3.0; 9]).ci95, Some((3.0, 3.0)));
    }

    #[test]
    fn slopes() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), 2.0);
        assert!((slope(&[(0.0, 0.0), (1.0, 3.0), (2.0, 3.0), (3.0, 6.0)]) - 1.8).abs() < 1e-9);
        assert!(slope(&[(1.0, 1.0)]).is_nan());
    }
}
