//! CSV, TSV and their like: a record per line, fields between delimiters, quoted where they hold a delimiter, a quote or a line end
//! (RFC 4180).
//!
//! A field is quoted where it begins with the quote; within, a doubled quote stands for one. Line ends within quotes become line feeds.
//! Blank lines between records are skipped. Nothing is trimmed.

use super::document::Place;
use super::fields::{Field, Records, Row, Step, Value, columns};
use super::lines::{Lines, MAXIMUM_DOCUMENT_BYTES};
use logitcache::error::{Error, Result};

/// How a delimited file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Stands between fields; none for a comma in `.csv` and a tab in `.tsv` files.
    pub delimiter: Option<char>,
    /// Stands around fields; none where quotes are text.
    pub quote: Option<char>,
    /// Whether the first record holds the names of the columns.
    pub header: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { delimiter: None, quote: Some('"'), header: true }
    }
}

/// The records of a file.
pub(super) struct DelimitedRecords {
    lines: Lines,
    delimiter: char,
    quote: Option<char>,
    fields: Vec<Field>,
    /// The fields' columns and how many columns there are, once the first record was seen.
    layout: Option<(Vec<usize>, usize)>,
    header: bool,
}

/// A record's first line and its fields, or what is wrong with them.
type Record = (u64, Result<Vec<String>>);

impl DelimitedRecords {
    pub(super) fn new(lines: Lines, delimiter: char, dialect: Dialect, fields: Vec<Field>) -> Self {
        Self { lines, delimiter, quote: dialect.quote, fields, layout: None, header: dialect.header }
    }

    /// The next record that is no blank line.
    fn record(&mut self) -> Result<Option<Record>> {
        loop {
            let Some(line) = self.lines.next()? else { return Ok(None) };
            match line.text {
                Ok(text) if text.is_empty() => {}
                Ok(text) => return Ok(Some((line.number, self.split(line.number, text)?))),
                Err(error) => return Ok(Some((line.number, Err(error)))),
            }
        }
    }

    /// The fields of the record that begins with `text`, the line `first`; takes more lines where it goes on.
    ///
    /// # Errors
    /// A quote without its end, behind which no further record can be told.
    fn split(&mut self, first: u64, text: String) -> Result<Result<Vec<String>>> {
        let mut cursor = Cursor { number: first, text, at: 0 };
        let mut fields = Vec::new();
        loop {
            match self.quote.filter(|quote| cursor.rest().starts_with(*quote)) {
                Some(quote) => match self.quoted(quote, &mut cursor)? {
                    Ok(field) => fields.push(field),
                    Err(error) => return Ok(Err(error)),
                },
                None => {
                    let end = cursor.rest().find(self.delimiter).unwrap_or(cursor.rest().len());
                    fields.push(cursor.rest()[..end].to_owned());
                    cursor.at += end;
                }
            }
            match cursor.rest().chars().next() {
                None => return Ok(Ok(fields)),
                Some(found) if found == self.delimiter => cursor.at += found.len_utf8(),
                Some(found) => {
                    let place = format!("line {}, column {}", cursor.number, cursor.text[..cursor.at].chars().count() + 1);
                    let expected = format!("{:?} or the end of the line after a closing quote", self.delimiter);
                    let remedy = "double the quotes within a quoted field, or take quotes as text with --quote none";
                    return Ok(Err(Error::data(self.lines.path(), place, expected, format!("{found:?}"), remedy)));
                }
            }
        }
    }

    /// A quoted field; the cursor stands at its opening quote and is moved behind its closing one.
    fn quoted(&mut self, quote: char, cursor: &mut Cursor) -> Result<Result<String>> {
        let opened = (cursor.number, cursor.text[..cursor.at].chars().count() + 1);
        let mut field = String::new();
        cursor.at += quote.len_utf8();
        loop {
            let Some(end) = cursor.rest().find(quote) else {
                field.push_str(cursor.rest());
                field.push('\n');
                let next = self.lines.next()?.filter(|_| field.len() <= MAXIMUM_DOCUMENT_BYTES);
                let Some(line) = next else { return Err(self.unclosed(quote, opened)) };
                match line.text {
                    Ok(text) => *cursor = Cursor { number: line.number, text, at: 0 },
                    Err(error) => return Ok(Err(error)),
                }
                continue;
            };
            field.push_str(&cursor.rest()[..end]);
            cursor.at += end + quote.len_utf8();
            if !cursor.rest().starts_with(quote) {
                return Ok(Ok(field));
            }
            field.push(quote);
            cursor.at += quote.len_utf8();
        }
    }

    fn unclosed(&self, quote: char, (line, column): (u64, usize)) -> Error {
        let remedy = "close it, or take quotes as text with --quote none";
        let place = format!("line {line}, column {column}");
        let found = format!("none up to the end of the file, or {} MiB on", MAXIMUM_DOCUMENT_BYTES >> 20);
        Error::data(self.lines.path(), place, format!("a closing {quote:?} for the one that opens here"), found, remedy)
    }

    fn row(&self, number: u64, mut record: Vec<String>, places: &[usize], width: usize) -> Result<Row> {
        if record.len() != width {
            let whose = if self.header { "the header's" } else { "the first line's" };
            let remedy = "mend the line; a field that holds the delimiter must be quoted (see --delimiter and --quote)";
            let found = format!("{} columns", record.len());
            return Err(Error::data(self.lines.path(), format!("line {number}"), format!("{whose} {width} columns"), found, remedy));
        }
        let take_all = places.len() == 1;
        let value = |place: &usize| if take_all { std::mem::take(&mut record[*place]) } else { record[*place].clone() };
        Ok(Row { place: Place::Line(number), values: places.iter().map(value).map(Value::Text).collect() })
    }
}

impl Records for DelimitedRecords {
    fn next(&mut self) -> Result<Step> {
        let Some((mut number, mut record)) = self.record()? else { return Ok(Step::End) };
        let (places, width) = match self.layout.take() {
            Some(layout) => layout,
            None => {
                // Nothing can be read of a file whose first record is malformed.
                let first = record?;
                let places = columns(&self.fields, self.header.then_some(&first[..]), first.len(), self.lines.path())?;
                let width = first.len();
                record = Ok(first);
                if self.header {
                    let Some(next) = self.record()? else {
                        self.layout = Some((places, width));
                        return Ok(Step::End);
                    };
                    (number, record) = next;
                }
                (places, width)
            }
        };
        let row = record.and_then(|record| self.row(number, record, &places, width));
        self.layout = Some((places, width));
        Ok(row.map_or_else(Step::Malformed, Step::Row))
    }
}

/// A place in the line that is being split.
struct Cursor {
    number: u64,
    text: String,
    /// In bytes.
    at: usize,
}

impl Cursor {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }
}

#[cfg(test)]
mod tests;
