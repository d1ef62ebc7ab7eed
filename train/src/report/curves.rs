//! The training curves as one self-contained SVG file that a person opens in a browser, readable on a light and on a dark page.

use crate::evaluate::Figure;
use crate::evaluate::figures::charts;
use crate::loss::{Objective, Part};
use crate::metrics::{EvaluationMetrics, Line, StepMetrics};
use logitcache::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

/// The file's name within the student's directory.
pub const CURVES_FILE: &str = "curves.svg";

const PANEL: (u32, u32) = (460, 280);
const HEADING: u32 = 40;
const FONT: &str = "sans-serif";

/// A colour on a light page and the one a dark page replaces it with.
struct Colour {
    light: RGBColor,
    dark: RGBColor,
}

const fn colour(light: (u8, u8, u8), dark: (u8, u8, u8)) -> Colour {
    Colour { light: RGBColor(light.0, light.1, light.2), dark: RGBColor(dark.0, dark.1, dark.2) }
}

const PAGE: Colour = colour((255, 255, 255), (21, 24, 28));
const TEXT: Colour = colour((36, 41, 47), (221, 227, 234));
const GRID: Colour = colour((226, 230, 235), (46, 52, 59));
const BLUE: Colour = colour((31, 111, 178), (108, 182, 255));
const ORANGE: Colour = colour((194, 87, 12), (255, 166, 87));
const GREEN: Colour = colour((46, 125, 50), (126, 231, 135));
const PURPLE: Colour = colour((123, 63, 160), (210, 168, 255));
const RED: Colour = colour((190, 40, 50), (255, 123, 114));
const TEAL: Colour = colour((0, 121, 128), (86, 211, 214));
const PINK: Colour = colour((176, 42, 120), (247, 143, 201));
const BROWN: Colour = colour((120, 84, 50), (214, 176, 140));
const GREY: Colour = colour((110, 118, 128), (150, 160, 170));

/// Of the figures of one panel: the student's and, where it has one, the teacher's.
const FIGURES: [(&Colour, &Colour); 3] = [(&BLUE, &PURPLE), (&ORANGE, &GREY), (&GREEN, &BROWN)];

/// A line of a panel: `points` are (step, value).
struct Series {
    name: String,
    colour: &'static Colour,
    points: Vec<(f64, f64)>,
    dots: bool,
}

struct Panel {
    title: &'static str,
    series: Vec<Series>,
}

/// Draws a run of `steps` steps. `heading` stands on top; the parts of `objective` are drawn as they enter the total.
///
/// # Errors
/// [`Error::Invalid`] where the drawing fails.
pub fn draw(heading: &str, lines: &[Line], objective: &Objective, steps: u64) -> Result<String> {
    let mut text = String::new();
    draw_panels(&mut text, heading, &panels(lines, objective, steps))
        .map_err(|error| Error::invalid("curves", "a drawing", error.to_string()))?;
    Ok(for_both_pages(&text))
}

/// The name and colour of a part.
fn look(part: Part) -> (&'static str, &'static Colour) {
    match part {
        Part::Ce => ("soft targets", &ORANGE),
        Part::ReverseKl => ("reverse KL", &RED),
        Part::Jsd => ("Jensen-Shannon", &TEAL),
        Part::Tvd => ("total variation", &PINK),
        Part::LogitMse => ("logits", &BROWN),
        Part::Mlm => ("masked tokens", &GREEN),
        Part::Cos => ("cosine", &PURPLE),
        Part::HiddenMse => ("hidden states", &GREY),
        Part::Gold => ("gold labels", &GREEN),
        Part::EmbeddingCos => ("direction of vectors", &ORANGE),
        Part::EmbeddingMse => ("vectors", &BROWN),
    }
}

fn panels(lines: &[Line], objective: &Objective, steps: u64) -> Vec<Panel> {
    let step = |name: &str, colour, value: &dyn Fn(&StepMetrics) -> f64| {
        let point = |line: &Line| if let Line::Step(step) = line { Some((step.step as f64, value(step))) } else { None };
        let name = name.to_owned();
        Series { name, colour, points: lines.iter().filter_map(point).collect(), dots: false }
    };
    // Not a number where a part was not computed, which is not drawn.
    let part = |part: Part| {
        let (name, colour) = look(part);
        let weight = |line: &StepMetrics| objective.weights_at(line.step.saturating_sub(1), steps).get(part);
        step(name, colour, &|line| weight(line) * line.parts.get(part).unwrap_or(f64::NAN))
    };
    let parts = std::iter::once(step("total", &BLUE, &|line| line.loss)).chain(objective.parts().map(part)).collect();
    let alone = |title, series| Panel { title, series: vec![series] };
    let mut panels = vec![Panel { title: "Loss and its weighted parts", series: parts }];
    panels.extend(figure_panels(lines));
    panels.extend([
        alone("Gradient norm before clipping", step("", &BLUE, &|line| line.gradient_norm)),
        alone("Learning rate", step("", &BLUE, &|line| line.learning_rate)),
        alone("Training tokens per second", step("", &BLUE, &|line| line.tokens_per_second)),
    ]);
    panels
}

/// The charts of the evaluations' figures; of each figure as far as it was known.
fn figure_panels(lines: &[Line]) -> Vec<Panel> {
    let evaluations = || lines.iter().filter_map(|line| if let Line::Evaluation(found) = line { Some(found) } else { None });
    let points = |key: &str, value: &dyn Fn(&Figure) -> Option<f64>| {
        let point = |found: &EvaluationMetrics| {
            let figure = found.evaluation.figures().into_iter().find(|figure| figure.key == key)?;
            Some((found.step as f64, value(&figure)?))
        };
        evaluations().filter_map(point).collect::<Vec<_>>()
    };
    let last = evaluations().next_back().map_or_else(Vec::new, |last| last.evaluation.figures());
    let panel = |(title, figures): (&'static str, Vec<(&'static str, Figure)>)| {
        let mut series = Vec::new();
        for (number, (name, figure)) in figures.into_iter().enumerate() {
            let (colour, teacher) = FIGURES[number % FIGURES.len()];
            let of_both = figure.teacher.is_some();
            let called = if of_both { format!("{name}, student") } else { name.to_owned() };
            series.push(Series { name: called, colour, points: points(figure.key, &|figure| Some(figure.student)), dots: true });
            if of_both {
                let points = points(figure.key, &|figure| figure.teacher);
                series.push(Series { name: format!("{name}, teacher"), colour: teacher, points, dots: true });
            }
        }
        Panel { title, series }
    };
    charts(&last).into_iter().map(panel).collect()
}

type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw_panels(text: &mut String, heading: &str, panels: &[Panel]) -> Drawn {
    let rows = panels.len().div_ceil(2);
    let size = (2 * PANEL.0, HEADING + rows as u32 * PANEL.1);
    let root = SVGBackend::with_string(text, size).into_drawing_area();
    root.fill(&PAGE.light)?;
    root.draw(&Text::new(heading.to_owned(), (16, 14), (FONT, 20).into_font().style(FontStyle::Bold).color(&TEXT.light)))?;
    let (_, below) = root.split_vertically(HEADING);
    let last_step =
        panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points).map(|point| point.0).fold(1.0, f64::max);
    for (area, panel) in below.split_evenly((rows, 2)).iter().zip(panels) {
        draw_panel(area, panel, last_step)?;
    }
    root.present()
}

/// All panels have the same steps, 0 to `last_step`, so that they can be read against each other.
fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel, last_step: f64) -> Drawn {
    area.draw(&Text::new(panel.title, (16, 6), (FONT, 17).into_font().color(&TEXT.light)))?;
    let points = || panel.series.iter().flat_map(|series| series.points.iter().copied()).filter(|point| point.1.is_finite());
    if points().next().is_none() {
        return area.draw(&Text::new("nothing measured", (16, 40), (FONT, 15).into_font().color(&GREY.light)));
    }
    let (low, high) = points().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let room = if high > low { 0.06 * (high - low) } else { 0.5 * high.abs().max(1e-3) };
    let mut chart = ChartBuilder::on(area)
        .margin_right(18)
        .margin_top(if panel.series.len() > 1 { 50 } else { 32 })
        .x_label_area_size(38)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..last_step, low - room..high + room)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID.light)
        .light_line_style(TRANSPARENT)
        .axis_style(GREY.light)
        .x_labels(6)
        .y_labels(5)
        .x_desc("step")
        .axis_desc_style((FONT, 14).into_font().color(&GREY.light))
        .label_style((FONT, 14).into_font().color(&TEXT.light))
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .draw()?;
    for series in &panel.series {
        let finite = || series.points.iter().copied().filter(|point| point.1.is_finite());
        chart.draw_series(LineSeries::new(finite(), series.colour.light.stroke_width(2)))?;
        if series.dots {
            chart.draw_series(finite().map(|point| Circle::new(point, 3, series.colour.light.filled())))?;
        }
    }
    draw_legend(area, panel)
}

/// The names of the series in their colours, in one row under the title.
fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel) -> Drawn {
    if panel.series.len() < 2 {
        return Ok(());
    }
    let mut x = 16;
    for series in &panel.series {
        area.draw(&PathElement::new(vec![(x, 36), (x + 14, 36)], series.colour.light.stroke_width(3)))?;
        area.draw(&Text::new(series.name.clone(), (x + 19, 29), (FONT, 15).into_font().color(&series.colour.light)))?;
        // An SVG leaves the font to the viewer, so the width of a text is an estimate, on the wide side.
        x += 36 + 7 * series.name.chars().count() as i32;
    }
    Ok(())
}

/// A short label: 0, 12k, 1.5, 0.933, 5e-4.
fn tick(value: f64) -> String {
    let size = value.abs();
    if size < 1e-9 {
        "0".to_owned()
    } else if size >= 10_000.0 {
        format!("{}k", (value / 100.0).round() / 10.0)
    } else if size >= 0.01 {
        format!("{}", (value * 1000.0).round() / 1000.0)
    } else {
        format!("{value:.1e}").replace(".0e", "e")
    }
}

/// A style sheet inside the file swaps each colour where the page is dark; without it the colours of the drawing stand.
fn for_both_pages(svg: &str) -> String {
    let hex = |colour: &RGBColor| format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
    let mut rules = String::new();
    for Colour { light, dark } in [PAGE, TEXT, GRID, BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, PINK, BROWN, GREY] {
        let (light, dark) = (hex(&light), hex(&dark));
        rules.push_str(&format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}"));
    }
    let style = format!("<style>text{{font-family:system-ui,sans-serif}}@media(prefers-color-scheme:dark){{{rules}}}</style>");
    match svg.find("<svg").and_then(|start| svg[start..].find('>').map(|end| start + end + 1)) {
        Some(end) => format!("{}\n{style}{}", &svg[..end], &svg[end..]),
        None => svg.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::masked_lm::MaskedLm;
    use crate::evaluate::{Evaluation, Measures};
    use crate::loss::PartValues;

    fn lines() -> Vec<Line> {
        let mut lines = Vec::new();
        for step in (0..=300u64).step_by(10) {
            let x = step as f64 / 300.0;
            if step > 0 {
                let (ce_nats, mlm_nats, cos_distance) = (1.2 * (-3.0 * x).exp(), 0.5 + (-2.0 * x).exp(), 0.3 - 0.2 * x);
                let loss = 5.0 * ce_nats + 2.0 * mlm_nats + cos_distance;
                let (gradient_norm, tokens_per_second) = (8.0 * (-x).exp(), 1900.0 + 100.0 * (9.0 * x).sin());
                let learning_rate = 5e-4 * (1.0 - x);
                let elapsed_seconds = step as f64;
                let parts = PartValues::of(&[(Part::Ce, ce_nats), (Part::Mlm, mlm_nats), (Part::Cos, cos_distance)]);
                let of = StepMetrics { step, parts, loss, gradient_norm, ..StepMetrics::default() };
                lines.push(Line::Step(StepMetrics { tokens_per_second, learning_rate, elapsed_seconds, ..of }));
            }
            if step % 100 == 0 {
                let (student_teacher_top1, kl_nats) = (0.93 - 0.14 * (-4.0 * x).exp(), 0.19 + 0.6 * (-4.0 * x).exp());
                let golds = MaskedLm { teacher_gold_top1: 0.91, student_gold_top1: student_teacher_top1 - 0.03, ..MaskedLm::default() };
                let measures = Measures::MaskedLm(MaskedLm { student_teacher_top1, kl_nats, ..golds });
                let evaluation = Evaluation { sequences: 7, measures };
                lines.push(Line::Evaluation(EvaluationMetrics { step, epoch: x, evaluation, evaluation_seconds: 1.0, elapsed_seconds: x }));
            }
        }
        lines
    }

    #[test]
    fn every_panel_is_drawn_and_nothing_is_fetched() {
        let svg = draw("A student of 6 layers", &lines(), &Objective::default(), 300).unwrap();
        for panel in panels(&lines(), &Objective::default(), 300) {
            assert!(svg.contains(panel.title), "no panel {}", panel.title);
        }
        assert!(panels(&lines(), &Objective::default(), 300).len() == 6 && svg.contains("gold, teacher"));
        assert!(svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.matches("http").count(), 1, "the name space alone");
    }

    #[test]
    fn a_part_without_weight_is_not_drawn() {
        let svg = draw("", &lines(), &"ce=5,mlm=2".parse().unwrap(), 300).unwrap();
        assert!(svg.contains("soft targets") && !svg.contains("cosine"));
    }

    #[test]
    fn little_or_broken_data_is_drawn_as_far_as_it_goes() {
        assert!(draw("none", &[], &Objective::default(), 1).unwrap().contains("nothing measured"));
        let broken = [Line::Step(StepMetrics { step: 1, loss: f64::NAN, ..StepMetrics::default() })];
        assert!(draw("one", &broken, &Objective::default(), 1).is_ok());
    }

    #[test]
    fn labels_are_short() {
        let labels = [0.0, 2000.0, 12_300.0, 0.9331, 5e-4, 1.5].map(tick);
        assert_eq!(labels, ["0", "2000", "12.3k", "0.933", "5e-4", "1.5"]);
    }
}
