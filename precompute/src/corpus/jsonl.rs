//! JSON lines: an object per line, some fields of which are read.

use super::document::Place;
use super::fields::{Field, Records, Row, Step, Value, listed};
use super::lines::Lines;
use logitcache::error::{Error, Result};
use serde_json::Map;
use std::path::Path;

/// The objects of a file; blank lines are skipped.
pub(super) struct JsonRecords {
    pub(super) lines: Lines,
    pub(super) fields: Vec<Field>,
}

impl Records for JsonRecords {
    fn next(&mut self) -> Result<Step> {
        while let Some(line) = self.lines.next()? {
            let row = match line.text {
                Ok(text) if text.trim().is_empty() => continue,
                Ok(text) => extract(&text, &self.fields, self.lines.path(), line.number),
                Err(error) => Err(error),
            };
            return Ok(row.map_or_else(Step::Malformed, Step::Row));
        }
        Ok(Step::End)
    }
}

/// # Errors
/// A line that is no JSON object or lacks a field; each names the file and the line.
fn extract(line: &str, fields: &[Field], path: &Path, number: u64) -> Result<Row> {
    let place = format!("line {number}");
    let value = serde_json::from_str(line).map_err(|error| {
        // The library counts lines within the string it was given; only the column says something.
        let found = format!("{} at column {}", describe(&error), error.column());
        Error::data(path, &place, "a JSON object on one line", found, "mend or remove the line, or name the file .txt if it is plain text")
    })?;
    let serde_json::Value::Object(mut object) = value else {
        let found = Value::from(value).kind();
        return Err(Error::data(path, place, "a JSON object", found, "write each document as {\"text\": \"...\"}"));
    };
    let mut values = Vec::with_capacity(fields.len());
    for Field { flag, name } in fields {
        // Not taken out: two flags may name one field.
        let Some(value) = object.get_mut(name) else {
            let remedy = format!("name the field with {flag}");
            return Err(Error::data(path, place, format!("the field {name:?}"), names(&object), remedy));
        };
        values.push(Value::from(if fields.len() == 1 { value.take() } else { value.clone() }));
    }
    Ok(Row { place: Place::Line(number), values })
}

fn describe(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "an unfinished value",
        _ => "no valid JSON",
    }
}

fn names(object: &Map<String, serde_json::Value>) -> String {
    if object.is_empty() {
        return "an object without fields".to_owned();
    }
    format!("the fields {}", listed(object.keys().map(String::as_str).collect::<Vec<_>>().into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn records(content: String, names: &[&str]) -> JsonRecords {
        let lines = Lines::new(Path::new("rows.jsonl").into(), Box::new(Cursor::new(content)));
        let fields = names.iter().map(|name| Field { flag: "--text-field", name: (*name).to_owned() }).collect();
        JsonRecords { lines, fields }
    }

    fn rows(content: &str, names: &[&str]) -> Vec<(u64, Vec<Value>)> {
        let mut records = records(content.to_owned(), names);
        let step = || match records.next().unwrap() {
            Step::Row(Row { place: Place::Line(number), values }) => Some((number, values)),
            Step::End => None,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(step).collect()
    }

    #[test]
    fn the_field_of_each_line_is_a_document() {
        let found = rows("{\"id\": 1, \"text\": \"C>>O\"}\r\n\n{\"text\": \"\"}\n{\"text\":\"a\\nb \\u00fc\", \"text2\":[1]}", &["text"]);
        assert_eq!(found, [(1, "C>>O"), (3, ""), (4, "a\nb \u{fc}")].map(|(n, text)| (n, vec![Value::Text(text.to_owned())])));
    }

    #[test]
    fn fields_come_in_the_order_asked_whatever_their_type() {
        let line = r#"{"label": [1, "b", null, 0.5, true, {"c": 1}], "a": "x"}"#;
        let text = |text: &str| Value::Text(text.to_owned());
        let list = vec![Value::Integer(1), text("b"), Value::Null, Value::Number(0.5), Value::Boolean(true), Value::Other("an object")];
        assert_eq!(rows(line, &["a", "label", "a"]), [(1, vec![text("x"), Value::List(list), text("x")])]);
    }

    #[test]
    fn refusals_name_file_line_and_what_was_found() {
        let cases: [(&str, &[&str]); 5] = [
            ("{\"smiles\": \"C\", \"id\": 3}", &["line 2", "\"text\"", "\"id\", \"smiles\"", "--text-field"]),
            ("{}", &["line 2", "without fields"]),
            ("[\"C\"]", &["line 2", "a list"]),
            ("{\"text\": \"C", &["line 2", "unfinished", "column 11"]),
            ("C>>O", &["line 2", "no valid JSON", ".txt"]),
        ];
        for (line, parts) in cases {
            let mut records = records(format!("{{\"text\":\"fine\"}}\n{line}\n{{\"text\":\"fine\"}}"), &["text"]);
            assert!(matches!(records.next().unwrap(), Step::Row(_)));
            let Step::Malformed(error) = records.next().unwrap() else { panic!("{line} is malformed") };
            for part in parts.iter().chain([&"rows.jsonl"]) {
                assert!(error.to_string().contains(part), "{part} in {error}");
            }
            assert!(matches!(records.next().unwrap(), Step::Row(_)), "the next line can be read");
        }
    }
}
