//! Which fields of a record are read, and what a field can hold, whatever the file's format.

use super::document::Place;
use logitcache::error::{Error, Result};
use std::path::Path;

/// The field that holds the text, unless another is named.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// How many field names an error lists.
const FIELDS_LISTED: usize = 20;

/// The fields to be read, each a name, or in files of columns a number from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The text; not looked at where `words` is there.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The text as a list of words.
    pub words: Option<String>,
    /// The answer; several fields hold one number each.
    pub label: Vec<String>,
}

impl Default for Fields {
    fn default() -> Self {
        Self { text: DEFAULT_TEXT_FIELD.to_owned(), pair: None, words: None, label: Vec::new() }
    }
}

/// A field to be read, and the flag that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) flag: &'static str,
    pub(super) name: String,
}

impl Fields {
    /// The fields in the order in which a [`Row`] holds them: the text (or words), the pair where there is one, the labels.
    pub(super) fn in_order(&self) -> Vec<Field> {
        let text = match &self.words {
            Some(words) => ("--words-field", words),
            None => ("--text-field", &self.text),
        };
        let pair = self.pair.iter().map(|name| ("--text-pair-field", name));
        let labels = self.label.iter().map(|name| ("--label-field", name));
        [text].into_iter().chain(pair).chain(labels).map(|(flag, name)| Field { flag, name: name.clone() }).collect()
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    /// Anything else, which no field of ours may be.
    Other(&'static str),
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) | Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Boolean(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(integer) => Self::Integer(integer),
                None => Self::Number(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(_) => Self::Other("an object"),
        }
    }
}

/// A record's fields in the order of [`Fields::in_order`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) values: Vec<Value>,
}

impl Row {
    /// The row of a format that has a text and nothing else.
    pub(super) fn of_text(place: Place, text: String, fields: usize) -> Self {
        let mut values = vec![Value::Null; fields];
        values[0] = Value::Text(text);
        Self { place, values }
    }
}

/// What a reader comes to next. An `Err` beside it is a file that cannot be read further.
#[derive(Debug)]
pub(super) enum Step {
    Row(Row),
    /// A record that is malformed; the next one can be read.
    Malformed(Error),
    End,
}

/// A file that is read record by record.
pub(super) trait Records: Send {
    /// The next record.
    ///
    /// # Errors
    /// Damage that no further record can be read behind.
    fn next(&mut self) -> Result<Step>;
}

/// The place of each field among columns: one of the name, or, where none has it and it is a number, the column of that number from 1.
/// `names` is none for a file whose columns have no names.
///
/// # Errors
/// A column that is not there or whose name several have, listing those there are.
pub(super) fn columns(fields: &[Field], names: Option<&[String]>, width: usize, path: &Path) -> Result<Vec<usize>> {
    fields.iter().map(|field| column(field, names, width, path)).collect()
}

fn column(field: &Field, names: Option<&[String]>, width: usize, path: &Path) -> Result<usize> {
    let mut named = names.unwrap_or_default().iter().enumerate().filter(|(_, name)| **name == field.name).map(|(place, _)| place);
    let number = field.name.parse::<usize>().ok().filter(|number| (1..=width).contains(number));
    match (named.next(), named.next(), number) {
        (Some(place), None, _) => Ok(place),
        (None, _, Some(number)) => Ok(number - 1),
        (Some(_), Some(_), _) => {
            let found = format!("several of that name in {}", listed(names.unwrap_or_default().iter().map(String::as_str)));
            Err(Error::data(
                path,
                "columns",
                format!("one column {:?}", field.name),
                found,
                format!("name it by its number with {}", field.flag),
            ))
        }
        (None, _, None) => {
            let (found, remedy) = match names {
                Some(names) => {
                    (format!("the columns {}", listed(names.iter().map(String::as_str))), "name one of them, or its number from 1,")
                }
                None => (format!("{width} columns without names"), "give its number, from 1,"),
            };
            Err(Error::data(path, "columns", format!("a column {:?}", field.name), found, format!("{remedy} with {}", field.flag)))
        }
    }
}

/// Names for a message, the first of them where there are many.
pub(super) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(FIELDS_LISTED);
    let listed: Vec<String> = names.take(FIELDS_LISTED).map(|name| format!("{name:?}")).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column_of(name: &str, names: Option<&[&str]>, width: usize) -> Result<usize> {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let field = Field { flag: "--text-field", name: name.to_owned() };
        columns(&[field], names.as_deref(), width, Path::new("a.csv")).map(|columns| columns[0])
    }

    #[test]
    fn a_column_has_a_name_or_a_number() {
        let names: Option<&[&str]> = Some(&["id", "2", "text"]);
        assert_eq!(column_of("text", names, 3).unwrap(), 2);
        assert_eq!(column_of("3", names, 3).unwrap(), 2);
        assert_eq!(column_of("2", names, 3).unwrap(), 1, "a name comes before a number");
        assert_eq!(column_of("1", None, 3).unwrap(), 0);
    }

    #[test]
    fn a_column_that_is_not_there_is_refused_with_those_there_are() {
        let names: [Option<&[&str]>; 3] = [Some(&["id", "text"]), None, Some(&["text", "text"])];
        let cases: [(&str, _, &[&str]); 5] = [
            ("texte", names[0], &["\"texte\"", "\"id\", \"text\"", "--text-field"]),
            ("4", names[0], &["\"4\"", "\"id\", \"text\""]),
            ("0", names[1], &["\"0\"", "2 columns without names", "number"]),
            ("text", names[1], &["2 columns without names"]),
            ("text", names[2], &["several", "number"]),
        ];
        for (name, names, parts) in cases {
            let message = column_of(name, names, 2).unwrap_err().to_string();
            for part in parts.iter().chain([&"a.csv"]) {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..25).map(|number| number.to_string()).collect();
        assert!(listed(names.iter().map(String::as_str)).ends_with("\"19\" and 5 more"));
    }
}
