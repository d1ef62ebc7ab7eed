//! Plain text: a document per line, or per block of lines between blank ones.

use super::DocumentUnit;
use super::document::Place;
use super::fields::{Records, Row, Step};
use super::lines::{Line, Lines, MAXIMUM_DOCUMENT_BYTES};
use logitcache::error::{Error, Result};

/// The documents of a text file; lines of white space alone are none.
pub(super) struct TextRecords {
    pub(super) lines: Lines,
    pub(super) unit: DocumentUnit,
    /// Fields of a row, of which the text is the first and the others are empty.
    pub(super) fields: usize,
}

impl Records for TextRecords {
    /// # Errors
    /// As [`Lines::next`], and a block above [`MAXIMUM_DOCUMENT_BYTES`].
    fn next(&mut self) -> Result<Step> {
        let Some(first) = self.next_written_line()? else { return Ok(Step::End) };
        let document = if self.unit == DocumentUnit::Line { first.text } else { self.block(first.number, first.text)? };
        Ok(match document {
            Ok(text) => Step::Row(Row::of_text(Place::Line(first.number), text, self.fields)),
            Err(error) => Step::Malformed(error),
        })
    }
}

impl TextRecords {
    fn next_written_line(&mut self) -> Result<Option<Line>> {
        loop {
            match self.lines.next()? {
                Some(Line { text: Ok(text), .. }) if is_blank(&text) => {}
                other => return Ok(other),
            }
        }
    }

    /// The whole block, read to its end even where a line of it is no text.
    fn block(&mut self, first: u64, mut block: Result<String>) -> Result<Result<String>> {
        while let Some(line) = self.lines.next()? {
            match (&mut block, line.text) {
                (_, Ok(text)) if is_blank(&text) => break,
                (Ok(block), Ok(text)) => {
                    if block.len() + text.len() >= MAXIMUM_DOCUMENT_BYTES {
                        let expected = format!("a block of at most {MAXIMUM_DOCUMENT_BYTES} bytes");
                        let remedy = "separate its documents by blank lines, or use --document line";
                        return Err(Error::data(self.lines.path(), format!("line {first}"), expected, "a longer block", remedy));
                    }
                    block.push('\n');
                    block.push_str(&text);
                }
                (Ok(_), Err(error)) => block = Err(error),
                (Err(_), _) => {}
            }
        }
        Ok(block)
    }
}

fn is_blank(line: &str) -> bool {
    line.chars().all(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::fields::Value;
    use std::io::Cursor;
    use std::path::Path;

    /// (line, text), or what is wrong.
    fn documents(content: &'static [u8], unit: DocumentUnit) -> Vec<std::result::Result<(u64, String), String>> {
        let lines = Lines::new(Path::new("a.txt").into(), Box::new(Cursor::new(content)));
        let mut records = TextRecords { lines, unit, fields: 2 };
        let step = || match records.next().unwrap() {
            Step::Row(Row { place: Place::Line(number), values }) => match &values[..] {
                [Value::Text(text), Value::Null] => Some(Ok((number, text.clone()))),
                other => panic!("{other:?}"),
            },
            Step::Malformed(error) => Some(Err(error.to_string())),
            Step::End => None,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(step).collect()
    }

    fn good<const N: usize>(expected: [(u64, &str); N]) -> Vec<std::result::Result<(u64, String), String>> {
        expected.map(|(number, text)| Ok((number, text.to_owned()))).into()
    }

    const CONTENT: &[u8] = b"\r\none\r\ntwo\r\n \t\r\n\r\n  three\nfour";

    #[test]
    fn a_line_is_a_document_with_its_number() {
        assert_eq!(documents(CONTENT, DocumentUnit::Line), good([(2, "one"), (3, "two"), (6, "  three"), (7, "four")]));
    }

    #[test]
    fn a_block_is_a_document_with_its_first_line() {
        assert_eq!(documents(CONTENT, DocumentUnit::Block), good([(2, "one\ntwo"), (6, "  three\nfour")]));
        assert_eq!(documents(b"\n\n \n", DocumentUnit::Block), []);
    }

    #[test]
    fn bytes_that_are_no_text_spoil_their_document_alone() {
        for (unit, content) in [(DocumentUnit::Line, &b"one\n\xff\ntwo\n"[..]), (DocumentUnit::Block, b"one\n\nb\n\xff\nb\n\ntwo\n")] {
            let found = documents(content, unit);
            assert_eq!(found.len(), 3, "{found:?}");
            assert!(found[0].is_ok() && found[2].is_ok());
            assert!(found[1].as_ref().unwrap_err().contains("UTF-8"));
        }
    }
}
