//! How the figures of several contenders are put side by side.

use nex_node::bench::Estimate;

use super::plot::Family;

/// A contender that was not measured.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) label: &'static str,
    pub(crate) reason: String,
}

/// Those that were started, in order, and those that could not be.
#[derive(Debug)]
pub(crate) struct Lineup<T> {
    pub(crate) contenders: Vec<T>,
    pub(crate) missing: Vec<Missing>,
}

impl<T> Default for Lineup<T> {
    fn default() -> Self {
        Self {
            contenders: Vec::new(),
            missing: Vec::new(),
        }
    }
}

impl<T> Lineup<T> {
    /// Takes a contender in, or notes why there is none.
    pub(crate) fn add(&mut self, label: &'static str, contender: anyhow::Result<T>) {
        match contender {
            Ok(contender) => self.contenders.push(contender),
            Err(error) => {
                eprintln!("{label} is not measured: {error:#}");
                let reason = format!("{error:#}");
                self.missing.push(Missing { label, reason });
            }
        }
    }
}

/// A name and what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) label: &'static str,
    pub(crate) family: Family,
}

/// Each repeat's ratio to the same repeat of another contender, which ran just before or after it.
pub(crate) fn ratios(own: &[f64], other: &[f64]) -> Estimate {
    Estimate::of(own.iter().zip(other).map(|(own, other)| own / other).collect())
}

/// A median with its interval, with so many digits after the point.
pub(crate) fn show(estimate: &Estimate, digits: usize) -> String {
    let median = estimate.median;
    if median.is_nan() {
        return "–".to_owned();
    }
    match estimate.ci95 {
        Some((low, high)) => format!("{median:.digits$} ({low:.digits$} – {high:.digits$})"),
        None => format!("{median:.digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn ratios_are_of_the_same_repeat() {
        let estimate = ratios(&[1.0, 4.0, 9.0], &[2.0, 4.0, 3.0]);
        assert_eq!(estimate.repeats, [0.5, 1.0, 3.0]);
        assert_eq!(estimate.median, 1.0);
    }

    #[test]
    fn estimates_are_shown_with_their_interval() {
        assert_eq!(show(&ratios(&[1.0; 5], &[4.0; 5]), 2), "0.25 (0.25 – 0.25)");
        assert_eq!(show(&Estimate::of(vec![2.0]), 1), "2.0");
        assert_eq!(show(&ratios(&[1.0], &[]), 2), "–");
    }

    #[test]
    fn who_does_not_start_is_noted() {
        let mut lineup = Lineup::default();
        lineup.add("one", Ok(1));
        lineup.add("two", Err(anyhow!("inner").context("outer")));
        assert_eq!(lineup.contenders, [1]);
        let missing = lineup.missing.first().map(|missing| (missing.label, &*missing.reason));
        assert_eq!(missing, Some(("two", "outer: inner")));
    }
}
