//! Medians and percentiles.

use std::time::Duration;

/// Latencies of many calls, of all repeats of a measurement together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latencies {
    nanoseconds: Vec<u64>,
}

impl Latencies {
    pub(crate) fn record(&mut self, latency: Duration) {
        self.nanoseconds
            .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.nanoseconds.extend(other.nanoseconds);
    }

    pub(crate) fn len(&self) -> usize {
        self.nanoseconds.len()
    }

    /// Microseconds at each of these quantiles, of 1; the nearest recorded value, never an interpolated one.
    pub(crate) fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> [f64; N] {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_unstable();
        quantiles.map(|quantile| {
            let rank = (quantile * sorted.len() as f64).ceil() as usize;
            sorted
                .get(rank.saturating_sub(1))
                .map_or(f64::NAN, |&nanoseconds| nanoseconds as f64 / 1000.0)
        })
    }
}

/// Median of a few values; with an even number of them the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
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
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (low.min(value), high.max(value))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_recorded_values() {
        let mut latencies = Latencies::default();
        for microseconds in (1..=1000).rev() {
            latencies.record(Duration::from_micros(microseconds));
        }
        assert_eq!(
            latencies.quantiles([0.5, 0.99, 0.999, 1.0]),
            [500.0, 990.0, 999.0, 1000.0]
        );
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
        assert_eq!(range(&[3.0, 1.0, 2.0]), (1.0, 3.0));
    }
}
