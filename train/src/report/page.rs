//! `report.html`: one page without outside resources, for light and dark, wide and narrow.

use crate::evaluate::figures::charts;
use crate::evaluate::{Evaluation, FullEvaluation};
use crate::loss::Part;
use crate::report::charts::{calibration, over_steps, points};
use crate::report::{escape, tables};
use crate::tensorboard::NOT_PARTS;
use serde_json::Value;

/// The file's name within the student's directory.
pub const REPORT_FILE: &str = "report.html";

const STYLE: &str = "
:root{color-scheme:light dark;--page:#fff;--text:#24292f;--soft:#5c6670;--grid:#e2e6eb;--mark:#fff1b8;--s0:#1f6fb2;--s1:#c2570c;--s2:#2e7d32;--s3:#7b3fa0;--s4:#a3194e;--s5:#6e7680}
@media(prefers-color-scheme:dark){:root{--page:#15181c;--text:#dde3ea;--soft:#96a0aa;--grid:#2e343b;--mark:#5a4a10;--s0:#6cb6ff;--s1:#ffa657;--s2:#7ee787;--s3:#d2a8ff;--s4:#ff7ba5;--s5:#9aa4ae}}
*{box-sizing:border-box}body{margin:0 auto;padding:16px;max-width:1180px;background:var(--page);color:var(--text);font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}p{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:20px}
figure{margin:0;min-width:0;max-width:560px}figcaption{font-weight:600}svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--grid)}.diagonal{stroke:var(--s5);stroke-dasharray:4 4}.line{fill:none;stroke:var(--c);stroke-width:1.8}circle{fill:var(--c)}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.legend{min-height:1.5em;font-size:13px}.legend span{margin-right:14px;color:var(--c)}.legend i{display:inline-block;width:14px;height:3px;margin:0 5px 4px 0;background:var(--c)}
.box{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:14px;overflow-wrap:normal}th,td{padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600}.numbers th+th,.numbers td+td{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.context{display:block;min-width:260px}mark{background:var(--mark);color:inherit}
";

/// The page of a student called `name`, from `run.json`, the lines of `metrics.jsonl`, and what there is of `summary.json`,
/// `evaluation.json` and `speed.json`.
pub fn page(
    name: &str,
    run: &Value,
    lines: &[Value],
    summary: Option<&Value>,
    evaluation: Option<&Value>,
    speed: Option<&Value>,
) -> String {
    let title = escape(name);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    let state = if run["finished"] == true { "finished" } else { "not finished" };
    text.push_str(&format!("<p>{} steps, {state}.</p>\n", run["completed_steps"]));
    // An evaluation of another program's making is shown as far as it is understood.
    let full = evaluation.and_then(|found| serde_json::from_value::<FullEvaluation>(found.clone()).ok());
    text.push_str("<h2>Teacher against student</h2>\n");
    text.push_str(&tables::comparison(summary, full.as_ref(), speed));
    match speed {
        None => text.push_str("<p>Forward times were not measured: <code>precompute time TEACHER STUDENT --out speed.json</code>.</p>\n"),
        Some(speed) => text.push_str(&format!(
            "<p>Medians with range over {} rounds of {} tokens on {} threads, ONNX Runtime {}.</p>\n",
            speed["rounds"],
            speed["length"],
            speed["threads"],
            escape(speed["onnxruntime"].as_str().unwrap_or("of unknown version"))
        )),
    }
    if let Some(summary) = summary {
        let rate = summary["tokens_per_second"].as_f64().unwrap_or(0.0);
        let seconds = summary["train_seconds"].as_f64().unwrap_or(0.0);
        text.push_str(&format!("<p>Trained in {seconds:.1} seconds, {rate:.0} tokens per second on {} threads.</p>\n", summary["threads"]));
    }
    text.push_str(&format!("<h2>Curves</h2>\n<div class=\"charts\">\n{}</div>\n", curves(lines)));
    if let Some(found) = evaluation {
        let what = full.as_ref().map_or("class", FullEvaluation::what_classes_are);
        text.push_str(&details(found, what));
    } else {
        text.push_str("<p>No evaluation: nothing was held out.</p>\n");
    }
    text.push_str("<h2>Settings</h2>\n");
    text.push_str(&tables::settings(run));
    text + "</body></html>\n"
}

/// What there is of an evaluation beside its figures.
fn details(found: &Value, what_classes_are: &str) -> String {
    let mut text = String::new();
    if found["student_calibration"].is_object() {
        text.push_str("<h2>Calibration</h2>\n<p>On the dashed line a model is right as often as it says.</p>\n");
        text.push_str(&calibration(found));
    }
    for (key, what) in [("classes", what_classes_are), ("entities", "type of entity")] {
        if found[key].is_object() {
            text.push_str(&format!("<h2>By {what}</h2>\n{}", tables::classes(&found[key], what)));
        }
    }
    if found["disagreements"].as_array().is_some_and(|places| !places.is_empty()) {
        text.push_str(&format!("<h2>Where they disagree most</h2>\n{}", tables::disagreements(found)));
    }
    text
}

/// A chart over the steps for each of the evaluations' charts; of the teacher's own figures where it has any.
fn evaluation_charts(lines: &[Value], last_step: f64) -> Vec<String> {
    let mut known = lines.iter().rev().filter(|line| line["kind"] == "evaluation");
    let Some(last) = known.find_map(|line| serde_json::from_value::<Evaluation>(line.clone()).ok()) else { return Vec::new() };
    let draw = |(title, figures): (&str, Vec<(&str, crate::evaluate::Figure)>)| {
        let mut series = Vec::new();
        for (name, figure) in figures {
            let teacher = figure.teacher_key.filter(|_| figure.teacher.is_some());
            let called = if teacher.is_some() { format!("{name}, student") } else { name.to_owned() };
            series.push((called, points(lines, "evaluation", figure.key)));
            series.extend(teacher.map(|key| (format!("{name}, teacher"), points(lines, "evaluation", key))));
        }
        over_steps(title, series, last_step)
    };
    charts(&last.figures()).into_iter().map(draw).collect()
}

fn curves(lines: &[Value]) -> String {
    let last = lines.iter().filter_map(|line| line["step"].as_f64()).fold(1.0, f64::max);
    let one = |title: &str, kind: &str, key: &str| over_steps(title, vec![(title.to_owned(), points(lines, kind, key))], last);
    let step = lines.iter().find(|line| line["kind"] == "step").and_then(Value::as_object);
    let parts = step.into_iter().flatten().map(|(key, _)| key.as_str()).filter(|key| !NOT_PARTS.contains(key));
    let parts = parts.map(|key| (label(key), points(lines, "step", key))).collect();
    let mut all = vec![one("Total loss, weighted", "step", "loss"), over_steps("Parts of the loss, before their weights", parts, last)];
    all.extend(evaluation_charts(lines, last));
    all.extend([
        one("Gradient norm before clipping", "step", "gradient_norm"),
        one("Learning rate", "step", "learning_rate"),
        one("Training tokens per second", "step", "tokens_per_second"),
    ]);
    all.concat()
}

/// A part of the loss by its key in the log, for a person: its name in `--loss`, what it is, its unit.
fn label(key: &str) -> String {
    let meaning = match Part::ALL.into_iter().find(|part| part.key() == key) {
        Some(Part::Ce) => "ce: divergence from the teacher, nats",
        Some(Part::ReverseKl) => "reverse-kl: reverse divergence, nats",
        Some(Part::Jsd) => "jsd: Jensen-Shannon divergence, nats",
        Some(Part::Tvd) => "tvd: total variation distance",
        Some(Part::LogitMse) => "logit-mse: squared difference of logits",
        Some(Part::Mlm) => "mlm: original tokens, nats",
        Some(Part::Cos) => "cos: 1 − cosine of hidden states",
        Some(Part::HiddenMse) => "hidden-mse: squared difference of hidden states",
        Some(Part::Gold) => "gold: gold labels, nats (squared error of numbers)",
        Some(Part::EmbeddingCos) => "embedding-cos: 1 − cosine of vectors",
        Some(Part::EmbeddingMse) => "embedding-mse: squared difference of vectors",
        None => key,
    };
    meaning.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_of_anything_is_whole_and_fetches_nothing() {
        let run = json!({"settings": {"loss": "<ce=5>"}, "completed_steps": 3, "finished": false});
        let lines = [json!({"kind": "step", "step": 1, "loss": 2.0, "ce_nats": 1.0, "learning_rate": 0.1})];
        for text in
            [page("a<b", &run, &lines, None, None, None), page("s", &run, &[], Some(&json!({})), Some(&json!({})), Some(&json!({})))]
        {
            assert!(text.ends_with("</body></html>\n") && text.contains("&lt;ce=5&gt;"), "{text}");
            assert!(!text.contains("http") && !text.contains("url(") && !text.contains("src=") && !text.contains("a<b"), "{text}");
        }
    }
}
