//! What a label in a corpus means to a teacher: the name of a class, its id, a number.

use super::document::Gold;
use super::fields::Value;
use logitcache::cache::record::IGNORED_LABEL;

/// What the answers of a corpus are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LabelScheme {
    /// None are read.
    #[default]
    Absent,
    /// One class of those named, by id.
    Class(Vec<String>),
    /// Any number of classes of those named.
    Classes(Vec<String>),
    /// So many numbers.
    Numbers(usize),
    /// A class of those named for each word.
    WordClasses(Vec<String>),
}

/// What a label should have been, and what it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) expected: String,
    pub(super) found: String,
}

/// How many class names a message lists.
const CLASSES_LISTED: usize = 40;

impl LabelScheme {
    /// The answer that the values of the label fields stand for; `words` is the number of words, where the text is a list of them.
    ///
    /// Unknown are null, an empty text, and the numbers -1 and -100 for a class. A number is an id; a text is a name, and where no class has
    /// it, an id. Several classes are a list of names or ids, or one 0 or 1 per class, or a text with `,`, `;` or `|` between; classes of
    /// words are a list, or a text with white space between. A list in a text may also be a JSON list.
    pub(super) fn read(&self, values: &[Value], words: Option<usize>) -> Result<Gold, Refusal> {
        let refuse = |expected: &str, found: &str| Err(Refusal { expected: expected.to_owned(), found: found.to_owned() });
        match (self, values) {
            (Self::Absent, _) | (_, []) => Ok(Gold::Unknown),
            (Self::Class(names), [value]) => Ok(class(names, value)?.map_or(Gold::Unknown, Gold::Class)),
            (Self::WordClasses(names), [value]) => word_classes(names, value, words),
            (Self::Classes(names), [value]) => classes(names, value),
            (Self::Numbers(count), [value]) => numbers(*count, value),
            (Self::Class(_) | Self::WordClasses(_), _) => refuse("one label field", "several"),
            // One field for each number.
            (Self::Classes(names), _) => numbers(names.len(), &Value::List(values.to_vec())).and_then(each_for_itself),
            (Self::Numbers(count), _) => numbers(*count, &Value::List(values.to_vec())),
        }
    }
}

fn is_unknown(value: &Value) -> bool {
    match value {
        Value::Null | Value::Integer(-1) => true,
        Value::Integer(number) => *number == i64::from(IGNORED_LABEL),
        Value::Text(text) => text.trim().is_empty(),
        _ => false,
    }
}

fn class(names: &[String], value: &Value) -> Result<Option<u32>, Refusal> {
    if is_unknown(value) {
        return Ok(None);
    }
    let of_id = |id: i64| usize::try_from(id).ok().filter(|id| *id < names.len());
    let (class, found) = match value {
        Value::Integer(id) => (of_id(*id), id.to_string()),
        // A table that has gaps may hold its ids as floating-point numbers.
        Value::Number(number) => ((number.fract() == 0.0).then_some(*number as i64).and_then(of_id), number.to_string()),
        Value::Boolean(flag) if names.len() == 2 => (Some(usize::from(*flag)), String::new()),
        Value::Text(text) => {
            let id = || text.trim().parse::<i64>();
            if matches!(id(), Ok(-1)) || id() == Ok(i64::from(IGNORED_LABEL)) {
                return Ok(None);
            }
            (names.iter().position(|name| name == text).or_else(|| id().ok().and_then(of_id)), head(text))
        }
        other => (None, other.kind().to_owned()),
    };
    match class {
        Some(class) => Ok(Some(class as u32)),
        None => Err(Refusal { expected: format!("a class of the teacher's, {}, or its id", listed(names)), found }),
    }
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(CLASSES_LISTED);
    let listed: Vec<String> = names.iter().take(CLASSES_LISTED).enumerate().map(|(id, name)| format!("{id} {name:?}")).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", listed.join(", "))
}

/// The items of a list, of a JSON list in a text, or of a text between separators.
fn items(value: &Value, separates: impl Fn(char) -> bool) -> Result<Option<Vec<Value>>, Refusal> {
    match value {
        Value::Null => Ok(None),
        Value::List(items) => Ok(Some(items.clone())),
        Value::Text(text) if text.trim().is_empty() => Ok(None),
        Value::Text(text) if text.trim_start().starts_with('[') => match serde_json::from_str::<Vec<serde_json::Value>>(text) {
            Ok(items) => Ok(Some(items.into_iter().map(Value::from).collect())),
            Err(_) => Err(Refusal { expected: "a JSON list after `[`".to_owned(), found: head(text) }),
        },
        Value::Text(text) => Ok(Some(
            text.split(separates).map(str::trim).filter(|part| !part.is_empty()).map(|part| Value::Text(part.to_owned())).collect(),
        )),
        other => Ok(Some(vec![other.clone()])),
    }
}

/// A text for a message, its beginning where it is long.
fn head(text: &str) -> String {
    let mut rest = text.chars();
    let head: String = rest.by_ref().take(40).collect();
    if rest.next().is_some() { format!("{head:?}...") } else { format!("{head:?}") }
}

fn word_classes(names: &[String], value: &Value, words: Option<usize>) -> Result<Gold, Refusal> {
    let Some(items) = items(value, char::is_whitespace)? else { return Ok(Gold::Unknown) };
    let Some(words) = words else {
        return Err(Refusal {
            expected: "words to go with the classes: name their field with --words-field".to_owned(),
            found: "a text".to_owned(),
        });
    };
    if items.len() != words {
        return Err(Refusal { expected: format!("a class for each of the {words} words"), found: format!("{} classes", items.len()) });
    }
    let classes = items.iter().map(|item| Ok(class(names, item)?.map_or(IGNORED_LABEL, |class| class as i32)));
    classes.collect::<Result<Vec<_>, _>>().map(Gold::Words)
}

fn classes(names: &[String], value: &Value) -> Result<Gold, Refusal> {
    let mut present = vec![0.0; names.len()];
    // A name may hold what separates names elsewhere.
    if let Value::Text(text) = value
        && let Some(class) = names.iter().position(|name| name == text)
    {
        present[class] = 1.0;
        return Ok(Gold::Values(present));
    }
    let Some(items) = items(value, |c| matches!(c, ',' | ';' | '|'))? else { return Ok(Gold::Unknown) };
    let is_flag = |item: &Value| {
        matches!(item, Value::Boolean(_) | Value::Integer(0 | 1)) || matches!(item, Value::Number(n) if *n == 0.0 || *n == 1.0)
    };
    if items.len() == names.len() && items.iter().all(is_flag) {
        return numbers(names.len(), &Value::List(items));
    }
    for item in &items {
        match class(names, item)? {
            Some(class) => present[class as usize] = 1.0,
            None => return Err(Refusal { expected: "classes that are known".to_owned(), found: "an empty one in the list".to_owned() }),
        }
    }
    Ok(Gold::Values(present))
}

fn numbers(count: usize, value: &Value) -> Result<Gold, Refusal> {
    let Some(items) = items(value, |c| c.is_whitespace() || matches!(c, ',' | ';' | '|'))? else { return Ok(Gold::Unknown) };
    if items.iter().all(is_empty) {
        return Ok(Gold::Unknown);
    }
    if items.len() != count {
        return Err(Refusal { expected: format!("{count} numbers"), found: format!("{} values", items.len()) });
    }
    let number = |item: &Value| {
        let number = match item {
            Value::Integer(number) => *number as f32,
            Value::Number(number) => *number as f32,
            Value::Boolean(flag) => f32::from(u8::from(*flag)),
            Value::Text(text) => text.trim().parse().unwrap_or(f32::NAN),
            _ => f32::NAN,
        };
        let found = if let Value::Text(text) = item { head(text) } else { format!("{} ({item:?})", item.kind()) };
        if number.is_finite() { Ok(number) } else { Err(Refusal { expected: "a finite number".to_owned(), found }) }
    };
    items.iter().map(number).collect::<Result<Vec<_>, _>>().map(Gold::Values)
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Null) || matches!(value, Value::Text(text) if text.trim().is_empty())
}

/// Numbers that say whether a class is there.
fn each_for_itself(gold: Gold) -> Result<Gold, Refusal> {
    if let Gold::Values(values) = &gold
        && let Some(value) = values.iter().find(|value| **value != 0.0 && **value != 1.0)
    {
        return Err(Refusal { expected: "0 or 1 for each class".to_owned(), found: value.to_string() });
    }
    Ok(gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn json(json: &str) -> Value {
        serde_json::from_str::<serde_json::Value>(json).unwrap().into()
    }

    #[test]
    fn a_class_is_a_name_or_an_id() {
        let scheme = LabelScheme::Class(names(&["negative", "positive"]));
        let read = |value: Value| scheme.read(&[value], None);
        for (value, class) in [
            (text("positive"), 1),
            (text("1"), 1),
            (Value::Integer(0), 0),
            (Value::Number(1.0), 1),
            (Value::Boolean(true), 1),
            (text("negative"), 0),
        ] {
            assert_eq!(read(value.clone()), Ok(Gold::Class(class)), "{value:?}");
        }
        for value in [Value::Null, text(""), text(" "), text("-1"), Value::Integer(-1), Value::Integer(-100)] {
            assert_eq!(read(value.clone()), Ok(Gold::Unknown), "{value:?}");
        }
        for (value, found) in [
            (text("Positive"), "\"Positive\""),
            (text(&"long ".repeat(99)), "\"long long long long long long long long \"..."),
            (Value::Integer(2), "2"),
            (Value::Number(0.5), "0.5"),
            (json("[1]"), "a list"),
        ] {
            let refusal = read(value).unwrap_err();
            assert_eq!(refusal.found, found);
            assert!(refusal.expected.contains("0 \"negative\", 1 \"positive\""), "{refusal:?}");
        }
    }

    #[test]
    fn a_text_is_a_name_first_and_a_number_is_an_id() {
        let scheme = LabelScheme::Class(names(&["2", "1"]));
        assert_eq!(scheme.read(&[text("1")], None), Ok(Gold::Class(1)));
        assert_eq!(scheme.read(&[Value::Integer(1)], None), Ok(Gold::Class(1)));
        assert_eq!(scheme.read(&[text("0")], None), Ok(Gold::Class(0)), "no class is named 0");
    }

    #[test]
    fn several_classes_are_names_ids_or_flags() {
        let scheme = LabelScheme::Classes(names(&["toxic", "rude, crude", "fine"]));
        let read = |values: &[Value]| scheme.read(values, None);
        let cases = [
            (json(r#"["fine", "toxic"]"#), [1.0, 0.0, 1.0]),
            (json("[2]"), [0.0, 0.0, 1.0]),
            (json("[0, 1, 1]"), [0.0, 1.0, 1.0]),
            (json("[1.0, 0.0, 0.0]"), [1.0, 0.0, 0.0]),
            (json("[true, false, true]"), [1.0, 0.0, 1.0]),
            (json("[]"), [0.0; 3]),
            (text("fine | toxic"), [1.0, 0.0, 1.0]),
            (text("rude, crude"), [0.0, 1.0, 0.0]),
            (text(r#"["rude, crude"]"#), [0.0, 1.0, 0.0]),
            (text("[0, 0, 1]"), [0.0, 0.0, 1.0]),
        ];
        for (value, expected) in cases {
            assert_eq!(read(std::slice::from_ref(&value)), Ok(Gold::Values(expected.to_vec())), "{value:?}");
        }
        assert_eq!(read(&[text("0"), Value::Integer(1), Value::Boolean(true)]), Ok(Gold::Values(vec![0.0, 1.0, 1.0])));
        assert_eq!(read(&[Value::Null]), Ok(Gold::Unknown));
        assert!(read(&[text("0"), text("1")]).unwrap_err().expected.contains("3 numbers"));
        assert!(read(&[text("0"), text("1"), text("0.5")]).unwrap_err().expected.contains("0 or 1"));
        assert!(read(&[json(r#"["nice"]"#)]).unwrap_err().found.contains("nice"));
        assert!(read(&[text("['toxic']")]).unwrap_err().expected.contains("JSON"));
    }

    #[test]
    fn numbers_are_as_many_as_asked() {
        let one = LabelScheme::Numbers(1);
        for value in [json("2.5"), text(" 2.5"), json("[2.5]")] {
            assert_eq!(one.read(&[value], None), Ok(Gold::Values(vec![2.5])));
        }
        for value in [Value::Null, text(""), json("[null]")] {
            assert_eq!(one.read(&[value], None), Ok(Gold::Unknown));
        }
        assert!(one.read(&[text("high")], None).unwrap_err().found.contains("high"));
        assert!(one.read(&[text("inf")], None).is_err());
        let two = LabelScheme::Numbers(2);
        assert_eq!(two.read(&[text("1"), text("-2")], None), Ok(Gold::Values(vec![1.0, -2.0])));
        assert_eq!(two.read(&[text("1 -2")], None), Ok(Gold::Values(vec![1.0, -2.0])));
        assert!(two.read(&[json("[1]")], None).unwrap_err().found.contains("1 values"));
    }

    #[test]
    fn words_have_a_class_each() {
        let scheme = LabelScheme::WordClasses(names(&["O", "B-PER"]));
        let expected = Ok(Gold::Words(vec![1, 0, IGNORED_LABEL]));
        for value in [json(r#"["B-PER", "O", null]"#), json("[1, 0, -100]"), text("B-PER O -100"), text(r#"["B-PER", "O", ""]"#)] {
            assert_eq!(scheme.read(std::slice::from_ref(&value), Some(3)), expected, "{value:?}");
        }
        assert_eq!(scheme.read(&[Value::Null], Some(3)), Ok(Gold::Unknown));
        assert!(scheme.read(&[json("[1]")], Some(3)).unwrap_err().expected.contains("3 words"));
        assert!(scheme.read(&[json("[1]")], None).unwrap_err().expected.contains("--words-field"));
        assert!(scheme.read(&[json(r#"["B-LOC"]"#)], Some(1)).unwrap_err().expected.contains("1 \"B-PER\""));
        assert_eq!(LabelScheme::Absent.read(&[json("{}")], None), Ok(Gold::Unknown));
    }
}
