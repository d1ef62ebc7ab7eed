//! Charts as SVG inside the page; their colours are the page's.

use crate::report::escape;
use serde_json::Value;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 32.0;

/// A line: its name and its (x, y) points.
pub(super) type Series = (String, Vec<(f64, f64)>);

/// The points (step, `key`) of the log's lines of one kind.
pub(super) fn points(lines: &[Value], kind: &str, key: &str) -> Vec<(f64, f64)> {
    let of_kind = lines.iter().filter(|line| line["kind"] == kind);
    of_kind.filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?))).collect()
}

/// A figure of lines over the steps; empty where nothing was measured.
pub(super) fn over_steps(title: &str, series: Vec<Series>, last_step: f64) -> String {
    let values = || series.iter().flat_map(|(_, points)| points).map(|point| point.1);
    if values().next().is_none() {
        return String::new();
    }
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    let room = if high > low { 0.06 * (high - low) } else { 0.5 * high.abs().max(1e-3) };
    let low = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
    figure(title, &series, (0.0, last_step.max(1.0)), (low, high + room), "step", "")
}

/// Accuracy over confidence; on the dashed diagonal a model is right as often as it says.
pub(super) fn calibration(evaluation: &Value) -> String {
    let series = |name: &str, key: &str| {
        let bins = evaluation[key]["bins"].as_array().into_iter().flatten().filter(|bin| bin["count"].as_u64() > Some(0));
        let points = bins.filter_map(|bin| Some((bin["confidence"].as_f64()?, bin["accuracy"].as_f64()?)));
        (name.to_owned(), points.collect())
    };
    let series = [series("student", "student_calibration"), series("teacher", "teacher_calibration")];
    let (left, bottom, right) = (LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT);
    let diagonal = format!(r#"<path class="diagonal" d="M{left} {bottom}L{right} {TOP}"/>"#);
    figure("Accuracy in bins of confidence", &series, (0.0, 1.0), (0.0, 1.0), "confidence", &diagonal)
}

fn figure(title: &str, series: &[Series], (x0, x1): (f64, f64), (y0, y1): (f64, f64), x_name: &str, under: &str) -> String {
    let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let mut marks = String::new();
    for i in 0..=4 {
        let (value, at) = (y0 + f64::from(i) / 4.0 * (y1 - y0), x0 + f64::from(i) / 4.0 * (x1 - x0));
        let (line, text) = (y(value), y(value) + 4.0);
        marks.push_str(&format!(r#"<path class="grid" d="M{LEFT} {line:.1}H{:.1}"/>"#, WIDTH - RIGHT));
        marks.push_str(&format!(r#"<text x="{}" y="{text:.1}" text-anchor="end">{}</text>"#, LEFT - 6.0, tick(value)));
        let anchor = if i == 4 { "end" } else { "middle" };
        marks.push_str(&format!(r#"<text x="{:.1}" y="{}" text-anchor="{anchor}">{}</text>"#, x(at), HEIGHT - 16.0, tick(at)));
    }
    marks.push_str(&format!(r#"<text x="{}" y="{}" text-anchor="middle">{x_name}</text>"#, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 3.0));
    marks.push_str(under);
    let mut legend = String::new();
    for (number, (name, points)) in series.iter().enumerate() {
        let path: Vec<String> = points.iter().map(|point| format!("{:.1} {:.1}", x(point.0), y(point.1))).collect();
        let class = format!("s{}", number % 6);
        if !path.is_empty() {
            marks.push_str(&format!(r#"<path class="line {class}" d="M{}"/>"#, path.join("L")));
        }
        if points.len() <= 40 {
            marks.extend(points.iter().map(|p| format!(r#"<circle class="{class}" cx="{:.1}" cy="{:.1}" r="2.5"/>"#, x(p.0), y(p.1))));
        }
        if series.len() > 1 {
            legend.push_str(&format!(r#"<span class="{class}"><i></i>{}</span>"#, escape(name)));
        }
    }
    let title = escape(title);
    format!(
        "<figure><figcaption>{title}</figcaption><div class=\"legend\">{legend}</div>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{marks}</svg></figure>\n"
    )
}

/// A short label: 0, 12k, 1.5, 0.933, 5e-4.
fn tick(value: f64) -> String {
    let size = value.abs();
    if size < 1e-9 {
        "0".to_owned()
    } else if size >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 0.01 {
        format!("{}", (value * 1000.0).round() / 1000.0)
    } else {
        format!("{value:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chart_needs_points_and_escapes_its_names() {
        assert_eq!(over_steps("none", vec![("a".to_owned(), Vec::new())], 1.0), "");
        let drawn = over_steps("a<b", vec![("<x>".to_owned(), vec![(1.0, 2.0)]), ("y".to_owned(), vec![(1.0, 2.0)])], 4.0);
        assert!(drawn.contains("a&lt;b") && drawn.contains("&lt;x&gt;") && !drawn.contains("NaN"), "{drawn}");
        let lines = [json!({"kind": "step", "step": 1, "loss": 2.5}), json!({"kind": "evaluation", "step": 1, "loss": 9})];
        assert_eq!(points(&lines, "step", "loss"), [(1.0, 2.5)]);
        assert!(!calibration(&json!({})).contains("<circle"));
    }
}
