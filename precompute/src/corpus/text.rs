//! Plain text: a document per line, or per block of lines between blank ones.

use super::DocumentUnit;
use super::lines::{Lines, MAXIMUM_DOCUMENT_BYTES};
use logitcache::error::{Error, Result};

/// The next document and the number of its first line. Lines of white space alone are never documents.
///
/// # Errors
/// As [`Lines::next`], and a block above [`MAXIMUM_DOCUMENT_BYTES`].
pub(super) fn next_document(lines: &mut Lines, unit: DocumentUnit) -> Result<Option<(u64, String)>> {
    let Some((first, mut text)) = next_written_line(lines)? else { return Ok(None) };
    if unit == DocumentUnit::Line {
        return Ok(Some((first, text)));
    }
    while let Some((_, line)) = lines.next()? {
        if is_blank(&line) {
            break;
        }
        if text.len() + line.len() >= MAXIMUM_DOCUMENT_BYTES {
            let expected = format!("a block of at most {MAXIMUM_DOCUMENT_BYTES} bytes");
            let remedy = "separate its documents by blank lines, or use --document line";
            return Err(Error::data(lines.path(), format!("line {first}"), expected, "a longer block", remedy));
        }
        text.push('\n');
        text.push_str(&line);
    }
    Ok(Some((first, text)))
}

fn next_written_line(lines: &mut Lines) -> Result<Option<(u64, String)>> {
    loop {
        match lines.next()? {
            Some((_, line)) if is_blank(&line) => {}
            other => return Ok(other),
        }
    }
}

fn is_blank(line: &str) -> bool {
    line.chars().all(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::path::Path;

    fn documents(content: &'static str, unit: DocumentUnit) -> Vec<(u64, String)> {
        let mut lines = Lines::new(Path::new("a.txt").into(), Box::new(Cursor::new(content.as_bytes())));
        std::iter::from_fn(|| next_document(&mut lines, unit).unwrap()).collect()
    }

    const CONTENT: &str = "\r\none\r\ntwo\r\n \t\r\n\r\n  three\nfour";

    #[test]
    fn a_line_is_a_document_with_its_number() {
        let expected = [(2, "one"), (3, "two"), (6, "  three"), (7, "four")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(documents(CONTENT, DocumentUnit::Line), expected);
    }

    #[test]
    fn a_block_is_a_document_with_its_first_line() {
        let expected = [(2, "one\ntwo"), (6, "  three\nfour")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(documents(CONTENT, DocumentUnit::Block), expected);
        assert_eq!(documents("\n\n \n", DocumentUnit::Block), []);
    }
}
