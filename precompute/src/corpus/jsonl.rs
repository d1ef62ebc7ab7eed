//! JSON lines: an object per line, one field of which is the document.

use super::lines::Lines;
use logitcache::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// How many field names an error lists.
const FIELDS_LISTED: usize = 20;

/// The next object's `field` and its line number. Blank lines are skipped; an empty string is a document.
///
/// # Errors
/// A line that is no JSON object, that lacks the field, or whose field is no string; each names the file and the line.
pub(super) fn next_document(lines: &mut Lines, field: &str) -> Result<Option<(u64, String)>> {
    while let Some((number, line)) = lines.next()? {
        if !line.trim().is_empty() {
            return extract(&line, field, lines.path(), number).map(|text| Some((number, text)));
        }
    }
    Ok(None)
}

fn extract(line: &str, field: &str, path: &Path, number: u64) -> Result<String> {
    let place = format!("line {number}");
    let value = serde_json::from_str(line).map_err(|error| {
        // The library counts lines within the string it was given; only the column says something.
        let found = format!("{} at column {}", describe(&error), error.column());
        Error::data(path, &place, "a JSON object on one line", found, "mend or remove the line, or name the file .txt if it is plain text")
    })?;
    let Value::Object(mut object) = value else {
        return Err(Error::data(path, place, "a JSON object", kind(&value), "write each document as {\"text\": \"...\"}"));
    };
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => {
            let remedy = "name a field that holds text with --text-field";
            Err(Error::data(path, format!("{place}, field {field:?}"), "a string", kind(&other), remedy))
        }
        None => {
            let remedy = "name the field that holds the text with --text-field";
            Err(Error::data(path, place, format!("the field {field:?}"), names(&object), remedy))
        }
    }
}

fn describe(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "an unfinished value",
        _ => "no valid JSON",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn names(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "an object without fields".to_owned();
    }
    let listed: Vec<String> = object.keys().take(FIELDS_LISTED).map(|name| format!("{name:?}")).collect();
    let more = object.len().saturating_sub(FIELDS_LISTED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("the fields {}{more}", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn lines(content: &'static str) -> Lines {
        Lines::new(Path::new("rows.jsonl").into(), Box::new(Cursor::new(content.as_bytes())))
    }

    #[test]
    fn the_field_of_each_line_is_a_document() {
        let mut lines = lines("{\"id\": 1, \"text\": \"C>>O\"}\r\n\n{\"text\": \"\"}\n{\"text\":\"a\\nb \\u00fc\", \"text2\":[1]}");
        let documents: Vec<_> = std::iter::from_fn(|| next_document(&mut lines, "text").unwrap()).collect();
        assert_eq!(documents, [(1, "C>>O"), (3, ""), (4, "a\nb \u{fc}")].map(|(n, text)| (n, text.to_owned())));
    }

    #[test]
    fn refusals_name_file_line_and_what_was_found() {
        let cases: [(&'static str, &[&str]); 6] = [
            ("{\"smiles\": \"C\", \"id\": 3}", &["line 2", "\"text\"", "\"id\", \"smiles\"", "--text-field"]),
            ("{}", &["line 2", "without fields"]),
            ("{\"text\": 3}", &["line 2", "\"text\"", "a number"]),
            ("[\"C\"]", &["line 2", "a list"]),
            ("{\"text\": \"C", &["line 2", "unfinished", "column 11"]),
            ("C>>O", &["line 2", "no valid JSON", ".txt"]),
        ];
        for (line, parts) in cases {
            let mut lines = lines(String::leak(format!("{{\"text\":\"fine\"}}\n{line}\n")));
            next_document(&mut lines, "text").unwrap();
            let message = next_document(&mut lines, "text").unwrap_err().to_string();
            for part in parts.iter().chain([&"rows.jsonl"]) {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
    }
}
