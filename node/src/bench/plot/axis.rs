//! Axes of charts: from values to places, and where the ticks stand.

/// Decades and their halves on a logarithmic axis may have no more ticks than this.
const MAX_LOG_TICKS: usize = 12;

/// How values are laid out along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0 on.
    FromZero,
    /// Evenly, over the range of the values.
    Linear,
    /// By their logarithm; values must be positive.
    Log,
    /// Quantiles, by the logarithm of their distance to 1: 0, 90 %, 99 %, 99.9 % and so on at equal distances.
    Quantile,
}

/// An axis of a chart.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// How values are laid out.
    pub scale: Scale,
}

impl Axis {
    /// An axis.
    pub fn new(label: impl Into<String>, scale: Scale) -> Self {
        Self {
            label: label.into(),
            scale,
        }
    }

    /// The axis for these values, between two places.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>, places: (f64, f64)) -> Fitted {
        let scale = self.scale;
        let mut range = values
            .filter(|&value| scale.shows(value))
            .fold(None, |range: Option<(f64, f64)>, value| {
                Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
            })
            .unwrap_or(match scale {
                Scale::Quantile => (0.0, 0.0),
                _ => (1.0, 10.0),
            });
        match scale {
            Scale::FromZero => range = (0.0, if range.1 > 0.0 { range.1 * 1.05 } else { 1.0 }),
            Scale::Linear => {
                let margin = ((range.1 - range.0) * 0.05)
                    .max(range.1.abs() * 0.01)
                    .max(f64::MIN_POSITIVE);
                range = (range.0 - margin, range.1 + margin);
            }
            Scale::Log => {
                range = (range.0 / 1.1, range.1 * 1.1);
                if range.1 / range.0 < 4.0 {
                    range = (range.0 / 1.6, range.1 * 1.6);
                }
            }
            Scale::Quantile => range = (0.0, range.1.max(0.9)),
        }
        Fitted { scale, range, places }
    }
}

impl Scale {
    /// Whether a value has a place on such an axis.
    fn shows(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::FromZero | Self::Linear => true,
                Self::Log => value > 0.0,
                Self::Quantile => (0.0..1.0).contains(&value),
            }
    }

    /// From values to what is laid out evenly.
    fn even(self, value: f64) -> f64 {
        match self {
            Self::FromZero | Self::Linear => value,
            Self::Log => value.log10(),
            Self::Quantile => -(1.0 - value).log10(),
        }
    }
}

/// An axis that knows its range.
pub(super) struct Fitted {
    scale: Scale,
    range: (f64, f64),
    places: (f64, f64),
}

impl Fitted {
    /// The place of a value, which need not be within the range.
    pub(super) fn place(&self, value: f64) -> f64 {
        let even = |value| self.scale.even(value);
        let (low, high) = (even(self.range.0), even(self.range.1));
        let part = (even(value) - low) / (high - low);
        self.places.0 + part * (self.places.1 - self.places.0)
    }

    /// The place of a value, if it has one.
    pub(super) fn place_if_any(&self, value: f64) -> Option<f64> {
        self.scale.shows(value).then(|| self.place(value))
    }

    /// Round values within the range, with what is written at them.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let (low, high) = self.range;
        let within = |value: &f64| (low..=high).contains(value);
        let values: Vec<f64> = match self.scale {
            Scale::FromZero | Scale::Linear => {
                let step = round_step((high - low) / 6.0);
                let first = (low / step).ceil() as i64;
                let last = (high / step).floor() as i64;
                (first..=last).map(|index| index as f64 * step).collect()
            }
            Scale::Log => {
                let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
                let fine: Vec<f64> = decades
                    .clone()
                    .flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)))
                    .filter(within)
                    .collect();
                if fine.len() <= MAX_LOG_TICKS {
                    fine
                } else {
                    decades.map(|decade| 10_f64.powi(decade)).filter(within).collect()
                }
            }
            Scale::Quantile => {
                let nines = (1..=9).map(|nines| 1.0 - 10_f64.powi(-nines));
                [0.0, 0.5].into_iter().chain(nines).filter(within).collect()
            }
        };
        values.into_iter().map(|value| (value, self.label(value))).collect()
    }

    fn label(&self, value: f64) -> String {
        match self.scale {
            Scale::Quantile => format!("{} %", number(value * 100.0)),
            _ => number(value),
        }
    }
}

/// The next 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * 0.999);
    digit.unwrap_or(10.0) * power
}

/// A number for people: separators between thousands, and no more digits than say something.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    // Four significant digits below a thousand; integers above. What ends in nines, as percentiles do, keeps them.
    let text = match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large > 99.0 && large < 100.0 => format!("{value:.7}"),
        large if large >= 100.0 => format!("{value:.1}"),
        large if large >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match part.trim_end_matches('0') {
        "" => grouped,
        part => format!("{grouped}.{part}"),
    }
}
