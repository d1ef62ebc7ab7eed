//! The page's tables. Each scrolls within its own box where the screen is narrow.

use crate::evaluate::FullEvaluation;
use crate::report::escape;
use serde_json::Value;

/// A table of cells that are HTML already; columns from the second on are numbers where `numbers`.
fn table(head: &[&str], rows: &[Vec<String>], numbers: bool) -> String {
    let class = if numbers { " class=\"numbers\"" } else { "" };
    let mut text = format!("<div class=\"box\"><table{class}><thead><tr>");
    head.iter().for_each(|name| text.push_str(&format!("<th>{name}</th>")));
    text.push_str("</tr></thead><tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        row.iter().for_each(|cell| text.push_str(&format!("<td>{cell}</td>")));
        text.push_str("</tr>\n");
    }
    text + "</tbody></table></div>\n"
}

fn number(value: &Value, digits: usize) -> String {
    value.as_f64().map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

fn whole(value: &Value) -> String {
    let Some(digits) = value.as_u64().map(|count| count.to_string()) else { return "–".to_owned() };
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

pub(super) fn settings(run: &Value) -> String {
    let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = run["settings"].as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> = fields.map(|(name, value)| vec![escape(name), format!("<code>{}</code>", escape(&said(value)))]).collect();
    table(&["setting", "value"], &rows, false)
}

/// Teacher against student; the first model of `speed` is taken for the teacher, the last for the student.
pub(super) fn comparison(summary: Option<&Value>, evaluation: Option<&FullEvaluation>, speed: Option<&Value>) -> String {
    let none = || "–".to_owned();
    let mut rows: Vec<Vec<String>> = Vec::new();
    if let Some(summary) = summary {
        rows.push(vec!["parameters".to_owned(), whole(&summary["teacher_parameters"]), whole(&summary["student_parameters"])]);
    }
    if let Some(found) = evaluation {
        let four = |value: f64| format!("{value:.4}");
        let (count, what) = found.evaluation.count();
        for figure in found.figures() {
            rows.push(vec![escape(figure.title), figure.teacher.map_or_else(none, four), four(figure.student)]);
        }
        rows.push(vec![format!("held-out {what}"), none(), whole(&count.into())]);
    }
    let models = speed.and_then(|speed| speed["models"].as_array());
    if let Some((Some(teacher), Some(student))) = models.filter(|models| models.len() > 1).map(|models| (models.first(), models.last())) {
        rows.push(vec!["model.onnx, bytes".to_owned(), whole(&teacher["onnx_bytes"]), whole(&student["onnx_bytes"])]);
        rows.push(vec!["model.safetensors, bytes".to_owned(), whole(&teacher["safetensors_bytes"]), whole(&student["safetensors_bytes"])]);
        for (i, time) in teacher["times"].as_array().into_iter().flatten().enumerate() {
            let told =
                |time: &Value| format!("{} ({}–{})", number(&time["median_ms"], 2), number(&time["min_ms"], 2), number(&time["max_ms"], 2));
            rows.push(vec![format!("forward, batch {}, ms", whole(&time["batch"])), told(time), told(&student["times"][i])]);
            if let (Some(teacher), Some(student)) =
                (time["median_ms"].as_f64(), student["times"][i]["median_ms"].as_f64().filter(|ms| *ms > 0.0))
            {
                rows.push(vec![
                    format!("forward, batch {}, ratio", whole(&time["batch"])),
                    format!("{:.2}", teacher / student),
                    "1".to_owned(),
                ]);
            }
        }
    }
    table(&["", "teacher", "student"], &rows, true)
}

/// Scores of both models by class; `what` says what a class is.
pub(super) fn classes(classes: &Value, what: &str) -> String {
    let rows = classes["rows"].as_array().into_iter().flatten().map(|class| {
        let mut row = vec![format!("<code>{}</code>", escape(class["token"].as_str().unwrap_or_default())), whole(&class["support"])];
        for model in ["student", "teacher"] {
            row.extend(["precision", "recall", "f1"].map(|key| number(&class[model][key], 3)));
        }
        row
    });
    let head = [what, "support", "precision, student", "recall", "F1", "precision, teacher", "recall", "F1"];
    let (total, listed) = (whole(&classes["total"]), whole(&classes["listed"]));
    let note = if total == listed { String::new() } else { format!("<p>{listed} of {total}, the most frequent first.</p>") };
    note + &table(&head, &rows.collect::<Vec<_>>(), true)
}

pub(super) fn disagreements(evaluation: &Value) -> String {
    let texts = |value: &Value| {
        let tokens: Vec<String> = value.as_array().into_iter().flatten().filter_map(Value::as_str).map(escape).collect();
        tokens.join(" ")
    };
    let guesses = |value: &Value| {
        let told = |guess: &Value| {
            format!("<code>{}</code> {}", escape(guess["token"].as_str().unwrap_or_default()), number(&guess["probability"], 3))
        };
        value.as_array().into_iter().flatten().map(told).collect::<Vec<_>>().join("<br>")
    };
    let rows = evaluation["disagreements"].as_array().into_iter().flatten().map(|place| {
        let seen = escape(place["seen"].as_str().unwrap_or_default());
        vec![
            number(&place["kl_nats"], 2),
            format!("{} : {}", whole(&place["sequence_id"]), whole(&place["position"])),
            format!("<code class=\"context\">{} <mark>{seen}</mark> {}</code>", texts(&place["before"]), texts(&place["after"])),
            format!("<code>{}</code>", escape(place["gold"].as_str().unwrap_or_default())),
            guesses(&place["teacher"]),
            guesses(&place["student"]),
        ]
    });
    table(&["KL, nats", "sequence : position", "context", "gold", "teacher", "student"], &rows.collect::<Vec<_>>(), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_escaped_and_digits_grouped() {
        let place = json!({"kl_nats": 1.5, "seen": "<script>", "before": ["&"], "after": [], "gold": "\"", "teacher": [{"token": "<b>"}]});
        let text = disagreements(&json!({"disagreements": [place]}));
        assert!(
            text.contains("&lt;script&gt;") && text.contains("&amp;") && text.contains("&quot;") && text.contains("&lt;b&gt;"),
            "{text}"
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(|count: u64| whole(&json!(count))), ["0", "999", "1,000", "1,234,567"]);
    }
}
