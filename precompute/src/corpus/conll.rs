//! Column files as CoNLL's shared tasks have them: a word a line with its columns, a blank line after each sentence.
//!
//! A line that holds a tab is split at tabs, any other one at white space. A line whose first column is `-DOCSTART-` begins a new text and is no
//! word. A column is given by its number from 1, or as `last`.

use super::document::Place;
use super::fields::{Field, Records, Row, Step, Value};
use super::lines::{Lines, MAXIMUM_DOCUMENT_BYTES};
use logitcache::error::{Error, Result};

/// Marks the border between texts.
const DOCUMENT_START: &str = "-DOCSTART-";

/// The column of the words, where no flag names one.
const WORDS_COLUMN: usize = 1;

#[derive(Clone, Copy, Debug)]
enum Column {
    /// From 1.
    Number(usize),
    Last,
}

/// The sentences of a file.
pub(super) struct ConllRecords {
    lines: Lines,
    columns: Vec<Column>,
    flags: Vec<&'static str>,
}

impl ConllRecords {
    /// # Errors
    /// A field that is no column: [`Error::Usage`].
    pub(super) fn new(lines: Lines, fields: &[Field]) -> Result<Self> {
        let column = |field: &Field| match (field.name.as_str(), field.flag) {
            // The text as a whole is not there; its words are.
            (_, "--text-field") => Ok(Column::Number(WORDS_COLUMN)),
            ("last", _) => Ok(Column::Last),
            (name, flag) => match name.parse::<usize>() {
                Ok(number) if number > 0 && flag != "--text-pair-field" => Ok(Column::Number(number)),
                _ => {
                    let found = format!("`{name}` for {}", lines.path().display());
                    let remedy = "type --words-field 1 --label-field 4 for the columns of CoNLL-2003";
                    Err(Error::usage(flag, "in a file of CoNLL columns: a column's number from 1, or `last`, and no pairs", found, remedy))
                }
            },
        };
        let columns = fields.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(Self { lines, columns, flags: fields.iter().map(|field| field.flag).collect() })
    }

    /// Adds the columns of a line to the sentence.
    fn add(&self, number: u64, parts: &[&str], sentence: &mut [Vec<Value>]) -> Result<()> {
        for ((column, flag), words) in self.columns.iter().zip(&self.flags).zip(sentence) {
            let place = match column {
                Column::Number(number) => *number,
                Column::Last => parts.len(),
            };
            let Some(part) = parts.get(place - 1) else {
                let expected = format!("at least {place} columns, for {flag}");
                let remedy = "mend the line, or name another column; sentences are separated by blank lines";
                let found = format!("{} in {:?}", parts.len(), parts.join(" ").chars().take(60).collect::<String>());
                return Err(Error::data(self.lines.path(), format!("line {number}"), expected, found, remedy));
            };
            words.push(Value::Text((*part).to_owned()));
        }
        Ok(())
    }
}

impl Records for ConllRecords {
    fn next(&mut self) -> Result<Step> {
        let mut sentence = vec![Vec::new(); self.columns.len()];
        let (mut first, mut bytes, mut malformed) = (None, 0, None);
        while let Some(line) = self.lines.next()? {
            let text = match line.text {
                Ok(text) => text,
                Err(error) => {
                    first.get_or_insert(line.number);
                    malformed.get_or_insert(error);
                    continue;
                }
            };
            let parts: Vec<&str> = if text.contains('\t') { text.split('\t').collect() } else { text.split_whitespace().collect() };
            if text.trim().is_empty() || parts.first() == Some(&DOCUMENT_START) {
                if first.is_some() {
                    break;
                }
                continue;
            }
            let start = *first.get_or_insert(line.number);
            bytes += text.len();
            if bytes > MAXIMUM_DOCUMENT_BYTES {
                let expected = format!("a sentence of at most {MAXIMUM_DOCUMENT_BYTES} bytes");
                let remedy = "separate its sentences by blank lines";
                return Err(Error::data(self.lines.path(), format!("line {start}"), expected, "a longer one", remedy));
            }
            // A malformed sentence is read to its end, so that the next one starts where it should.
            if malformed.is_none()
                && let Err(error) = self.add(line.number, &parts, &mut sentence)
            {
                malformed = Some(error);
            }
        }
        Ok(match (malformed, first) {
            (Some(error), _) => Step::Malformed(error),
            (None, Some(first)) => Step::Row(Row { place: Place::Line(first), values: sentence.into_iter().map(Value::List).collect() }),
            (None, None) => Step::End,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;
    use std::path::Path;

    fn records(content: &[u8], fields: &[(&'static str, &str)]) -> Result<ConllRecords> {
        let lines = Lines::new(Path::new("eng.conll").into(), Box::new(Cursor::new(content.to_vec())));
        let fields: Vec<Field> = fields.iter().map(|(flag, name)| Field { flag, name: (*name).to_owned() }).collect();
        ConllRecords::new(lines, &fields)
    }

    /// First line, and the columns with a space between.
    fn sentences(mut records: ConllRecords) -> Vec<(u64, Vec<String>)> {
        let joined = |value: Value| {
            let Value::List(words) = value else { panic!("{value:?}") };
            let text = |word: &Value| if let Value::Text(text) = word { text.clone() } else { panic!("{word:?}") };
            words.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        let step = || match records.next().unwrap() {
            Step::Row(Row { place: Place::Line(number), values }) => Some((number, values.into_iter().map(joined).collect())),
            Step::End => None,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(step).collect()
    }

    const CONTENT: &[u8] =
        b"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n-DOCSTART- -X- O O\n\nNew York\tNNP\tB-LOC\n. O\n";

    #[test]
    fn a_sentence_ends_at_a_blank_line() {
        let fields = [("--words-field", "1"), ("--label-field", "last")];
        let expected = [(3, ["EU rejects", "B-ORG O"]), (9, ["New York .", "B-LOC O"])];
        assert_eq!(sentences(records(CONTENT, &fields).unwrap()), expected.map(|(n, row)| (n, row.map(str::to_owned).to_vec())));
        let words = sentences(records(CONTENT, &[("--text-field", "text")]).unwrap());
        assert_eq!(words.iter().map(|(_, row)| row[0].as_str()).collect::<Vec<_>>(), ["EU rejects", "New York ."]);
        assert_eq!(sentences(records(b"\n\n-DOCSTART- O\n", &fields).unwrap()), []);
    }

    #[test]
    fn a_line_that_lacks_a_column_spoils_its_sentence_alone() {
        let mut records =
            records(b"a x O\n\nb x O\nc\nd x O\n\n\xff\ne x O\n\nf x O", &[("--words-field", "1"), ("--label-field", "3")]).unwrap();
        assert!(matches!(records.next().unwrap(), Step::Row(_)));
        let Step::Malformed(error) = records.next().unwrap() else { panic!("a column is missing") };
        for part in ["eng.conll", "line 4", "at least 3 columns, for --label-field", "1 in \"c\""] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert!(matches!(records.next().unwrap(), Step::Malformed(_)));
        let Step::Row(row) = records.next().unwrap() else { panic!("the last sentence") };
        assert_eq!(row.place, Place::Line(10));
    }

    #[test]
    fn a_column_is_a_number() {
        for field in [("--label-field", "ner"), ("--words-field", "0"), ("--text-pair-field", "2")] {
            let error = records(b"", &[field]).err().unwrap();
            assert!(error.exit_code() == 2 && error.to_string().contains(field.0) && error.to_string().contains("eng.conll"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_sentences_read_back(sentences in prop::collection::vec(prop::collection::vec("[a-z\u{fc}\"#-]{1,5}", 1..6), 0..8), tabs: bool) {
            let line = |(place, word): (usize, &String)| format!("{word}{}L{place}\n", if tabs { "\t" } else { "  " });
            let content: String = sentences.iter().map(|words| words.iter().enumerate().map(line).collect::<String>() + "\n").collect();
            let found = super::tests::sentences(records(content.as_bytes(), &[("--words-field", "1"), ("--label-field", "2")]).unwrap());
            let words: Vec<String> = found.iter().map(|(_, row)| row[0].clone()).collect();
            prop_assert_eq!(words, sentences.iter().map(|words| words.join(" ")).collect::<Vec<_>>());
            prop_assert!(found.iter().all(|(_, row)| row[0].split(' ').count() == row[1].split(' ').count()));
        }
    }
}
