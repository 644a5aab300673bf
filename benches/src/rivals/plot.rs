//! The results as a picture: groups of horizontal bars, as SVG.

use std::fmt::Write as _;

/// What a contender belongs to, which gives its bars their colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// The ceiling.
    Native,
    /// Ours.
    Nex,
    /// A rival as somebody would use it instead of us.
    Rival,
    /// A part of a rival, for comparison.
    Part,
}

impl Family {
    fn colour(self) -> &'static str {
        match self {
            Self::Native => "#8a8f98",
            Self::Nex => "#2f6fde",
            Self::Rival => "#d9822b",
            Self::Part => "#ecc48f",
        }
    }
}

/// How long a bar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// In proportion to its value.
    Linear,
    /// To the logarithm of it.
    Log,
}

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) family: Family,
    pub(crate) value: f64,
    /// What lies around the value with 95 % certainty.
    pub(crate) interval: Option<(f64, f64)>,
    /// The value, as it is written beside the bar.
    pub(crate) text: String,
}

/// Bars with the same scale, one under the other.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) scale: Scale,
    pub(crate) bars: Vec<Bar>,
}

/// Groups beside and under each other, with a title.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) groups: Vec<Group>,
}

const COLUMNS: usize = 2;
const WIDTH: f64 = 1100.0;
const MARGIN: f64 = 24.0;
const LABELS: f64 = 210.0;
const VALUES: f64 = 70.0;
const ROW: f64 = 17.0;
const BAR: f64 = 12.0;

/// Draws it all.
pub(crate) fn svg(sections: &[Section], footer: &str) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for section in sections {
        y += 18.0;
        label(&mut body, MARGIN, y, "start", "title", &section.title);
        y += 10.0;
        for row in section.groups.chunks(COLUMNS) {
            let mut height = 0.0_f64;
            for (column, group) in row.iter().enumerate() {
                let x = MARGIN + column as f64 * column_width();
                height = height.max(draw(&mut body, group, x, y));
            }
            y += height;
        }
        y += 14.0;
    }
    label(&mut body, MARGIN, y + 8.0, "start", "small", footer);
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} \
         {height:.0}\">\n<style>text {{ font: 12px system-ui, sans-serif; fill: #22262c }} .title {{ font-size: 16px; \
         font-weight: 600 }} .group {{ font-weight: 600 }} .small {{ font-size: 11px; fill: #5b626c }}</style>\n<rect \
         width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn column_width() -> f64 {
    (WIDTH - MARGIN) / COLUMNS as f64
}

/// Draws a group and says how high it is.
fn draw(svg: &mut String, group: &Group, x: f64, y: f64) -> f64 {
    label(svg, x, y + 16.0, "start", "group", &group.title);
    let left = x + LABELS;
    let room = column_width() - LABELS - VALUES - MARGIN;
    let axis = Axis::of(group, room);
    let mut y = y + 24.0;
    for bar in &group.bars {
        let middle = y + BAR / 2.0;
        label(svg, left - 8.0, middle + 4.0, "end", "label", &bar.label);
        let length = axis.length(bar.value);
        // Writing to a string cannot fail, here and below.
        _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
            bar.family.colour()
        );
        let mut end = length;
        if let Some((low, high)) = bar.interval {
            let (low, high) = (axis.length(low), axis.length(high));
            end = end.max(high);
            _ = writeln!(
                svg,
                "<path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#22262c\"/>",
                left + low,
                left + high
            );
        }
        label(svg, left + end + 6.0, middle + 4.0, "start", "small", &bar.text);
        y += ROW;
    }
    24.0 + group.bars.len() as f64 * ROW + 14.0
}

/// From values to lengths.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    room: f64,
}

impl Axis {
    fn of(group: &Group, room: f64) -> Self {
        let values = || {
            let ends = |bar: &Bar| {
                let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
                [low, bar.value, high]
            };
            group
                .bars
                .iter()
                .flat_map(ends)
                .filter(|value| value.is_finite() && *value > 0.0)
        };
        let high = values().fold(f64::MIN_POSITIVE, f64::max);
        let low = match group.scale {
            Scale::Linear => 0.0,
            // Below the least one, so that it has a bar, too.
            Scale::Log => values().fold(high, f64::min) / 2.0,
        };
        Self {
            scale: group.scale,
            low,
            high,
            room,
        }
    }

    fn length(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => value / self.high,
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        // A value that is none has no bar.
        if part.is_nan() {
            0.0
        } else {
            part.clamp(0.0, 1.0) * self.room
        }
    }
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, value: f64) -> Bar {
        Bar {
            label: label.to_owned(),
            family: Family::Nex,
            value,
            interval: None,
            text: format!("{value:.1}"),
        }
    }

    fn group(scale: Scale, values: &[f64]) -> Group {
        Group {
            title: "one & <two>".to_owned(),
            scale,
            bars: values.iter().map(|value| bar("x", *value)).collect(),
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let linear = Axis::of(&group(Scale::Linear, &[1.0, 4.0]), 100.0);
        assert_eq!([linear.length(1.0), linear.length(4.0)], [25.0, 100.0]);
        let log = Axis::of(&group(Scale::Log, &[1.0, 10.0, 50.0]), 100.0);
        assert!((log.length(50.0) - 100.0).abs() < 1e-9);
        assert!((log.length(5.0) - 50.0).abs() < 1e-9);
        assert!(log.length(1.0) > 0.0);
        assert_eq!(log.length(f64::NAN), 0.0);
        // Whiskers count: they must not run out of the picture.
        let mut whiskers = group(Scale::Linear, &[1.0]);
        whiskers.bars[0].interval = Some((0.5, 2.0));
        assert_eq!(Axis::of(&whiskers, 100.0).length(1.0), 50.0);
    }

    #[test]
    fn pictures_are_well_formed() {
        let section = Section {
            title: "All".to_owned(),
            groups: vec![group(Scale::Log, &[1.0, f64::NAN]); 3],
        };
        let svg = svg(&[section], "a footer");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("one &amp; &lt;two>").count(), 3);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(svg.matches("<rect").count(), 1 + 3 * 2);
        assert!(!svg.contains("NaN"));
    }
}
