//! The files one after the other, as documents: rows become texts with their pairs and answers, and malformed records are counted.

use super::compression;
use super::conll::ConllRecords;
use super::delimited::DelimitedRecords;
use super::document::{Document, Text};
use super::fields::{Field, Records, Row, Step, Value};
use super::jsonl::JsonRecords;
use super::lines::Lines;
use super::listing::{CorpusFile, Format};
use super::parquet_rows::ParquetRecords;
use super::text::TextRecords;
use super::{Corpus, CorpusOptions};
use logitcache::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every document of a corpus, in the order of its files.
pub(super) struct Reading {
    corpus: Corpus,
    fields: Vec<Field>,
    next_file: usize,
    current: Option<(Arc<Path>, Box<dyn Records>)>,
    next_id: u64,
    malformed: u64,
    bytes_read: Arc<AtomicU64>,
}

impl Reading {
    pub(super) fn of(corpus: &Corpus) -> Self {
        let fields = corpus.options.fields.in_order();
        let bytes_read = Arc::new(AtomicU64::new(0));
        Self { corpus: corpus.clone(), fields, next_file: 0, current: None, next_id: 0, malformed: 0, bytes_read }
    }

    /// Bytes read from the disk so far, before decompression.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Malformed records skipped so far.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The next document; `None` behind the last one.
    ///
    /// # Errors
    /// Damaged files, and one malformed record more than may be skipped.
    pub(super) fn next(&mut self) -> Result<Option<Document>> {
        loop {
            let Some((path, records)) = &mut self.current else {
                let Some(file) = self.corpus.files.get(self.next_file) else { return Ok(None) };
                self.current = Some((Arc::clone(&file.path), open(file, &self.corpus.options, &self.fields, &self.bytes_read)?));
                self.next_file += 1;
                continue;
            };
            let document = match records.next()? {
                Step::End => {
                    self.current = None;
                    self.corpus.files[self.next_file - 1].expect_unchanged()?;
                    continue;
                }
                Step::Row(row) => document(self.next_id, path, row, &self.fields, &self.corpus.options),
                Step::Malformed(error) => Err(error),
            };
            self.next_id += 1;
            match document {
                Ok(document) => return Ok(Some(document)),
                Err(error) if self.malformed == self.corpus.options.skip_bad => return Err(self.one_too_many(error)),
                Err(_) => self.malformed += 1,
            }
        }
    }

    /// The error of a malformed record, with what the flag has to do with it.
    fn one_too_many(&self, error: Error) -> Error {
        let Error::Data { path, field, expected, found, remedy } = error else { return error };
        let skipping = match self.malformed {
            0 => "; or skip up to N such records with --skip-bad N".to_owned(),
            skipped => format!("; malformed records skipped before it, as --skip-bad allows: {skipped}"),
        };
        Error::Data { path, field, expected, found, remedy: remedy + &skipping }
    }
}

fn open(file: &CorpusFile, options: &CorpusOptions, fields: &[Field], bytes_read: &Arc<AtomicU64>) -> Result<Box<dyn Records>> {
    if file.format == Format::Parquet {
        return Ok(Box::new(ParquetRecords::open(&file.path, file.bytes, bytes_read, fields)?));
    }
    let lines = Lines::new(Arc::clone(&file.path), compression::open(&file.path, file.compression, bytes_read)?);
    let delimited = |lines, usual: char| {
        let delimiter = options.dialect.delimiter.unwrap_or(usual);
        Box::new(DelimitedRecords::new(lines, delimiter, options.dialect, fields.to_vec()))
    };
    Ok(match file.format {
        Format::JsonLines => Box::new(JsonRecords { lines, fields: fields.to_vec() }),
        Format::Csv => delimited(lines, ','),
        Format::Tsv => delimited(lines, '\t'),
        Format::Conll => Box::new(ConllRecords::new(lines, fields)?),
        Format::Text | Format::Parquet => Box::new(TextRecords { lines, unit: options.document, fields: fields.len() }),
    })
}

/// A row with the meaning of its fields. A file of texts alone has no pairs and no answers.
fn document(id: u64, file: &Arc<Path>, row: Row, fields: &[Field], options: &CorpusOptions) -> Result<Document> {
    let Row { place, values } = row;
    let refuse = |field: &Field, expected: &str, found: String, remedy: &str| {
        Error::data(file, format!("{place}, field {:?}", field.name), expected, found, format!("{remedy} {}", field.flag))
    };
    let mut values = values.into_iter();
    let text = match (values.next().unwrap_or(Value::Null), options.fields.words.is_some()) {
        (Value::Text(text), false) => Text::Whole(text),
        (Value::Text(text), true) => Text::Words(text.split_whitespace().map(str::to_owned).collect()),
        (Value::List(words), _) if words.iter().all(|word| matches!(word, Value::Text(_))) => {
            Text::Words(words.into_iter().filter_map(|word| if let Value::Text(word) = word { Some(word) } else { None }).collect())
        }
        (other, false) => return Err(refuse(&fields[0], "a string", other.kind().to_owned(), "name a field that holds text with")),
        (other, true) => {
            let found = if let Value::List(_) = other { "a list with other items" } else { other.kind() };
            return Err(refuse(&fields[0], "a list of strings", found.to_owned(), "name a field that holds words with"));
        }
    };
    let pair = match options.fields.pair.as_ref().and_then(|_| values.next()) {
        Some(Value::Text(text)) => Some(text),
        None | Some(Value::Null) => None,
        Some(other) => {
            return Err(refuse(&fields[1], "a string, or null for none", other.kind().to_owned(), "name a field that holds text with"));
        }
    };
    let words = if let Text::Words(words) = &text { Some(words.len()) } else { None };
    let gold = options.labels.read(values.as_slice(), words).map_err(|refusal| {
        let field = &fields[fields.len() - 1];
        refuse(field, &refusal.expected, refusal.found, "mend it, or name another field with")
    })?;
    Ok(Document { id, file: Arc::clone(file), place, text, pair, gold })
}
