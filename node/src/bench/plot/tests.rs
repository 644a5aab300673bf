//! What charts show, and that they are well-formed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use super::super::Estimate;
use super::*;

fn chart(scale: Scale, points: Vec<(f64, f64)>) -> Chart {
    Chart {
        title: "Calls & <replies>".to_owned(),
        description: "How it went.".to_owned(),
        x: Axis::new("seconds", Scale::Linear),
        y: Axis::new("µs", scale),
        series: vec![Series {
            name: "one".to_owned(),
            shape: Shape::Line,
            points,
        }],
    }
}

/// Every tag that is opened is closed, in order. Enough to notice what a browser would stumble over.
#[track_caller]
fn well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{svg}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn charts_are_well_formed_whatever_the_values() {
    let awkward = [
        vec![],
        vec![(0.0, 0.0)],
        vec![(1.0, 5.0), (1.0, 5.0)],
        vec![(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 3.0)],
        vec![(0.0, 1e-9), (1.0, 1e12)],
        vec![(-5.0, -5.0), (5.0, 5.0)],
    ];
    for points in awkward {
        for scale in [Scale::FromZero, Scale::Linear, Scale::Log, Scale::Quantile] {
            let mut chart = chart(scale, points.clone());
            well_formed(&chart.svg());
            for shape in [Shape::Steps, Shape::Dots, Shape::LineDots] {
                chart.series.push(Series {
                    name: "\"more\"".to_owned(),
                    shape,
                    points: points.clone(),
                });
            }
            let svg = chart.svg();
            well_formed(&svg);
            assert!(svg.contains("&quot;more&quot;"));
            assert!(svg.contains("<title>Calls &amp; &lt;replies&gt;</title><desc>How it went.</desc>"));
        }
    }
}

#[test]
fn points_are_where_they_belong() {
    let svg = chart(Scale::Log, vec![(0.0, 10.0), (1.0, 100.0), (2.0, 1000.0)]).svg();
    let (_, path) = svg.split_once("<path").unwrap();
    let (_, path) = path.split_once(" d=\"M").unwrap();
    let (path, _) = path.split_once('"').unwrap();
    let points: Vec<(f64, f64)> = path
        .split('L')
        .map(|point| {
            let (x, y) = point.split_once(' ').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        })
        .collect();
    let [(x0, y0), (x1, y1), (x2, y2)] = points[..] else {
        panic!("{points:?}");
    };
    assert!(x0 < x1 && x1 < x2 && y0 > y1 && y1 > y2);
    assert!(((y0 - y1) - (y1 - y2)).abs() < 0.2, "decades have the same height");
}

#[test]
fn intervals_show_every_repeat() {
    let intervals = Intervals {
        title: "t".to_owned(),
        description: "d".to_owned(),
        x: Axis::new("µs", Scale::Linear),
        rows: vec![
            ("one".to_owned(), Estimate::of(vec![1.0, 2.0, 3.0])),
            ("alone".to_owned(), Estimate::of(vec![2.0])),
            ("none".to_owned(), Estimate::of(vec![])),
        ],
    };
    let svg = intervals.svg();
    well_formed(&svg);
    assert_eq!(svg.matches("<circle").count(), 4);
    assert_eq!(svg.matches("class=\"interval").count(), 1);
    assert_eq!(svg.matches("class=\"median").count(), 2);
    let alone = standalone(&svg);
    assert!(alone.contains("<style>") && alone.contains("prefers-color-scheme: dark"));
    assert!(alone.starts_with("<svg"));
}

#[test]
fn ticks_are_round() {
    let labels = |scale, values: &[f64]| -> Vec<String> {
        let fitted = Axis::new("", scale).fit(values.iter().copied(), (0.0, 100.0));
        fitted.ticks().into_iter().map(|(_, label)| label).collect()
    };
    assert_eq!(labels(Scale::FromZero, &[95.0]), ["0", "20", "40", "60", "80"]);
    assert_eq!(
        labels(Scale::Log, &[1.0, 100.0]),
        ["1", "2", "5", "10", "20", "50", "100"]
    );
    assert_eq!(labels(Scale::Log, &[1.0, 1e9]).len(), 10);
    assert_eq!(
        labels(Scale::Quantile, &[0.0, 0.99995]),
        ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
    );
}

#[test]
fn numbers_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (7.4, "7.4"),
        (0.1234, "0.123"),
        (1234.5, "1,234"),
        (1_234_567.0, "1,234,567"),
        (-1234.0, "-1,234"),
        (99.99, "99.99"),
        (99.5, "99.5"),
        (f64::NAN, "–"),
    ] {
        assert_eq!(number(value), text);
    }
}
