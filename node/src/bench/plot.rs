//! Charts as SVG, written here rather than by a plotting library: those write fixed colours and sizes of text into each
//! element, while these charts take their colours from a style sheet that knows light and dark, name themselves to screen
//! readers, and tell the value of each mark to whoever points at it.

mod axis;

use std::fmt::Write as _;

pub(crate) use self::axis::number;
pub use self::axis::{Axis, Scale};

/// Style sheet of the charts; a page that holds several includes it once.
pub const STYLE: &str = include_str!("plot/style.css");

/// Colours of the style sheet; a chart with more series uses them again, dashed.
const COLORS: usize = 6;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
/// Height of a row of a chart of repeats, and of a line of the legend.
const ROW: f64 = 26.0;
const LEGEND_ROW: f64 = 18.0;
/// Width of a character of the legend on average, a little more than it has.
const CHARACTER: f64 = 6.6;

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A line from point to point.
    Line,
    /// A level from each point to the next, and the area below it: a histogram, whose points are the left edges.
    Steps,
    /// Marks.
    Dots,
    /// A line from point to point, and marks on it.
    LineDots,
}

/// Points that belong together.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// How they are drawn.
    pub shape: Shape,
    /// The points; those that are no numbers, or not on a logarithmic axis, leave a gap.
    pub points: Vec<(f64, f64)>,
}

/// A chart of series over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows; also its accessible name.
    pub title: String,
    /// A sentence for those who cannot see it.
    pub description: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
}

impl Chart {
    /// The chart as an SVG element, to be part of a page that has the [`STYLE`].
    #[must_use]
    pub fn svg(&self) -> String {
        let legend = Legend::of(self.series.iter().map(|series| series.name.as_str()));
        let top = TOP + legend.height();
        let height = HEIGHT + legend.height();
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = self.x.fit(points().map(|point| point.0), (LEFT, WIDTH - RIGHT));
        let y = self.y.fit(points().map(|point| point.1), (height - BOTTOM, top));

        let mut svg = open(&self.title, &self.description, height);
        for (value, label) in x.ticks() {
            let at = x.place(value);
            _ = write!(
                svg,
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{top:.1}" y2="{:.1}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                height - BOTTOM,
                height - BOTTOM + 16.0,
                escape(&label),
            );
        }
        for (value, label) in y.ticks() {
            let at = y.place(value);
            _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                escape(&label),
            );
        }
        x_label(&mut svg, &self.x.label, LEFT, height);
        _ = write!(
            svg,
            r#"<text class="label" transform="translate(16 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            (top + height - BOTTOM) / 2.0,
            escape(&self.y.label),
        );
        legend.draw(&mut svg);
        let floor = height - BOTTOM;
        for (index, series) in self.series.iter().enumerate() {
            let place = |&(a, b): &(f64, f64)| Some((x.place_if_any(a)?, y.place_if_any(b)?));
            let class = class(index);
            if matches!(series.shape, Shape::Line | Shape::LineDots) {
                line(&mut svg, &class, series.points.iter().map(place));
            }
            if series.shape == Shape::Steps {
                steps(&mut svg, &class, series.points.iter().filter_map(place), floor);
            }
            if matches!(series.shape, Shape::Dots | Shape::LineDots) {
                let name = escape(&series.name);
                for (point, (at_x, at_y)) in series.points.iter().filter_map(|point| Some((point, place(point)?))) {
                    let (value_x, value_y) = (number(point.0), number(point.1));
                    _ = write!(
                        svg,
                        r#"<circle class="dot {class}" cx="{at_x:.1}" cy="{at_y:.1}" r="3.5"><title>{name}: {value_x}, {value_y}</title></circle>"#,
                    );
                }
            }
        }
        svg.push_str("</svg>");
        svg
    }
}

/// Medians with their confidence intervals and the repeats they come from, one row for each.
#[derive(Debug, Clone)]
pub struct Intervals {
    /// What it shows; also its accessible name.
    pub title: String,
    /// A sentence for those who cannot see it.
    pub description: String,
    /// The horizontal axis.
    pub x: Axis,
    /// Names and figures of the rows.
    pub rows: Vec<(String, super::Estimate)>,
}

impl Intervals {
    /// The chart as an SVG element, to be part of a page that has the [`STYLE`].
    #[must_use]
    pub fn svg(&self) -> String {
        let longest = self
            .rows
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let left = (longest as f64 * CHARACTER + 16.0).clamp(LEFT, WIDTH / 2.0);
        let floor = TOP + ROW * self.rows.len() as f64;
        let height = floor + BOTTOM;
        let values = self.rows.iter().flat_map(|(_, estimate)| &estimate.repeats).copied();
        let x = self.x.fit(values, (left, WIDTH - RIGHT));
        let mut svg = open(&self.title, &self.description, height);
        for (value, label) in x.ticks() {
            let at = x.place(value);
            _ = write!(
                svg,
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{floor:.1}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                floor + 16.0,
                escape(&label),
            );
        }
        x_label(&mut svg, &self.x.label, left, height);
        for (index, (name, estimate)) in self.rows.iter().enumerate() {
            let middle = TOP + ROW * (index as f64 + 0.5);
            let class = class(index);
            _ = write!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                left - 8.0,
                middle + 4.0,
                escape(name),
            );
            let name = escape(name);
            if let Some((low, high)) = estimate.ci95
                && let (Some(from), Some(to)) = (x.place_if_any(low), x.place_if_any(high))
            {
                _ = write!(
                    svg,
                    r#"<line class="interval {class}" x1="{from:.1}" x2="{to:.1}" y1="{middle:.1}" y2="{middle:.1}"><title>{name}: 95 % interval {} – {}</title></line>"#,
                    number(low),
                    number(high),
                );
            }
            for (value, at) in estimate
                .repeats
                .iter()
                .filter_map(|&value| Some((value, x.place_if_any(value)?)))
            {
                _ = write!(
                    svg,
                    r#"<circle class="dot {class}" cx="{at:.1}" cy="{middle:.1}" r="3.5"><title>{name}: {}</title></circle>"#,
                    number(value),
                );
            }
            if let Some(at) = x.place_if_any(estimate.median) {
                _ = write!(
                    svg,
                    r#"<line class="median" x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{:.1}"><title>{name}: median {}</title></line>"#,
                    middle - 9.0,
                    middle + 9.0,
                    number(estimate.median),
                );
            }
        }
        svg.push_str("</svg>");
        svg
    }
}

/// An SVG element as a file of its own, with the style it needs.
#[must_use]
pub fn standalone(svg: &str) -> String {
    match svg.split_once('>') {
        Some((open, rest)) => format!("{open}><style>{STYLE}</style>{rest}\n"),
        None => svg.to_owned(),
    }
}

/// Text as it may stand in HTML and SVG, between tags and in attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters may not stand in XML at all.
            character if character.is_control() && !character.is_whitespace() => escaped.push('\u{fffd}'),
            character => escaped.push(character),
        }
    }
    escaped
}

fn open(title: &str, description: &str, height: f64) -> String {
    let (title, description) = (escape(title), escape(description));
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0}" aria-label="{title}"><title>{title}</title><desc>{description}</desc><text class="title" x="{LEFT}" y="18">{title}</text>"#
    )
}

fn x_label(svg: &mut String, label: &str, left: f64, height: f64) {
    _ = write!(
        svg,
        r#"<text class="label" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        (left + WIDTH - RIGHT) / 2.0,
        height - 8.0,
        escape(label),
    );
}

fn class(index: usize) -> String {
    let dashed = if (index / COLORS).is_multiple_of(2) {
        ""
    } else {
        " dashed"
    };
    format!("s{}{dashed}", index % COLORS)
}

fn line(svg: &mut String, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
    let mut path = String::new();
    let mut pen_is_down = false;
    for point in points {
        if let Some((x, y)) = point {
            _ = write!(path, "{}{x:.1} {y:.1}", if pen_is_down { 'L' } else { 'M' });
        }
        pen_is_down = point.is_some();
    }
    _ = write!(svg, r#"<path class="line {class}" d="{path}"/>"#);
}

fn steps(svg: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>, floor: f64) {
    let mut path = String::new();
    let mut last = None;
    for (x, y) in points {
        match last {
            None => _ = write!(path, "M{x:.1} {floor:.1}V{y:.1}"),
            Some(_) => _ = write!(path, "H{x:.1}V{y:.1}"),
        }
        last = Some(x);
    }
    if last.is_some() {
        _ = write!(path, "V{floor:.1}Z");
    }
    _ = write!(svg, r#"<path class="steps {class}" d="{path}"/>"#);
}

/// Names of the series, in as many rows as they need. One alone needs none: the title says what it is.
struct Legend<'a> {
    rows: Vec<Vec<(usize, &'a str)>>,
}

impl<'a> Legend<'a> {
    fn of(names: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let mut rows: Vec<Vec<(usize, &str)>> = Vec::new();
        if names.len() < 2 {
            return Self { rows };
        }
        let mut room = 0.0;
        for (index, name) in names.enumerate() {
            let width = Self::width(name);
            match rows.last_mut().filter(|_| width <= room) {
                Some(row) => row.push((index, name)),
                None => {
                    rows.push(vec![(index, name)]);
                    room = WIDTH - LEFT - RIGHT;
                }
            }
            room -= width;
        }
        Self { rows }
    }

    fn width(name: &str) -> f64 {
        name.chars().count() as f64 * CHARACTER + 38.0
    }

    fn height(&self) -> f64 {
        self.rows.len() as f64 * LEGEND_ROW
    }

    fn draw(&self, svg: &mut String) {
        for (row, names) in self.rows.iter().enumerate() {
            let y = TOP + LEGEND_ROW * row as f64;
            let mut x = LEFT;
            for (index, name) in names {
                _ = write!(
                    svg,
                    r#"<line class="key {}" x1="{x:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}">{}</text>"#,
                    class(*index),
                    x + 18.0,
                    x + 24.0,
                    y + 4.0,
                    escape(name),
                );
                x += Self::width(name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
