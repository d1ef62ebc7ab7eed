//! Delimited files as they are met, and any table written and read back.

use super::*;
use proptest::prelude::*;
use std::path::Path;

fn records(content: &[u8], dialect: Dialect, names: &[&str]) -> DelimitedRecords {
    let lines = Lines::new(Path::new("a.csv").into(), Box::new(std::io::Cursor::new(content.to_vec())));
    let fields = names.iter().map(|name| Field { flag: "--text-field", name: (*name).to_owned() }).collect();
    DelimitedRecords::new(lines, dialect.delimiter.unwrap_or(','), dialect, fields)
}

/// The fields of each record with its line, up to the end or the first error.
fn rows(records: &mut DelimitedRecords) -> std::result::Result<Vec<(u64, Vec<String>)>, String> {
    let mut rows = Vec::new();
    loop {
        match records.next().map_err(|error| error.to_string())? {
            Step::Row(Row { place: Place::Line(number), values }) => {
                let text = |value| if let Value::Text(text) = value { text } else { panic!("{value:?}") };
                rows.push((number, values.into_iter().map(text).collect()));
            }
            Step::Malformed(error) => return Err(error.to_string()),
            Step::End => return Ok(rows),
            other => panic!("{other:?}"),
        }
    }
}

fn read(content: &str, dialect: Dialect, names: &[&str]) -> std::result::Result<Vec<(u64, Vec<String>)>, String> {
    rows(&mut records(content.as_bytes(), dialect, names))
}

fn table(expected: &[(u64, &[&str])]) -> Vec<(u64, Vec<String>)> {
    expected.iter().map(|(number, row)| (*number, row.iter().map(|text| (*text).to_owned()).collect())).collect()
}

#[test]
fn chosen_columns_come_in_the_order_asked() {
    let content = "\u{feff}id,label,text\r\n1,pos,good film\r\n\r\n2,neg,\r\n";
    assert_eq!(read(content, Dialect::default(), &["text", "label"]), Ok(table(&[(2, &["good film", "pos"]), (4, &["", "neg"])])));
    assert_eq!(read(content, Dialect::default(), &["3"]), Ok(table(&[(2, &["good film"]), (4, &[""])])));
    let without = Dialect { header: false, ..Dialect::default() };
    assert_eq!(read("a,b\nc,d", without, &["2", "2"]), Ok(table(&[(1, &["b", "b"]), (2, &["d", "d"])])));
    assert_eq!(read("text\n", Dialect::default(), &["text"]), Ok(vec![]), "a header alone");
    assert_eq!(read("", Dialect::default(), &["text"]), Ok(vec![]));
}

#[test]
fn quotes_hold_delimiters_quotes_and_line_ends() {
    let content = "text,n\n\"a, b\",1\n\"she said \"\"no\"\"\r\n\r\nand left\",2\n\"\",3\nit's 5\" long,4\n\"\"\"\",5\n";
    let expected: &[(u64, &[&str])] = &[
        (2, &["a, b", "1"]),
        (3, &["she said \"no\"\n\nand left", "2"]),
        (6, &["", "3"]),
        (7, &["it's 5\" long", "4"]),
        (8, &["\"", "5"]),
    ];
    assert_eq!(read(content, Dialect::default(), &["text", "n"]), Ok(table(expected)));
}

#[test]
fn other_delimiters_and_no_quotes() {
    let tabs = Dialect { delimiter: Some('\t'), quote: None, header: true };
    assert_eq!(read("label\tcontent\n1\t\"open, as it was\n", tabs, &["content"]), Ok(table(&[(2, &["\"open, as it was"])])));
    let wide = Dialect { delimiter: Some('\u{a6}'), quote: Some('\''), header: false };
    assert_eq!(read("a\u{a6}'b\u{a6}''c'", wide, &["1", "2"]), Ok(table(&[(1, &["a", "b\u{a6}'c"])])));
}

#[test]
fn malformed_records_are_placed_and_the_next_one_is_read() {
    let cases: [(&[u8], &[&str]); 4] = [
        (b"1,2,3", &["line 3", "the header's 2 columns", "3 columns", "--delimiter"]),
        (b"1", &["line 3", "1 columns"]),
        (b"\"ab\"c,2", &["line 3, column 5", "closing quote", "'c'", "--quote none"]),
        (b"\xe9,2", &["line 3", "UTF-8", "0xe9"]),
    ];
    for (line, parts) in cases {
        let content = [b"text,n\nfine,1\n", line, b"\nfine,2\n"].concat();
        let mut records = records(&content, Dialect::default(), &["text"]);
        assert!(matches!(records.next().unwrap(), Step::Row(_)));
        let Step::Malformed(error) = records.next().unwrap() else { panic!("{line:?} is malformed") };
        for part in parts.iter().chain([&"a.csv"]) {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert!(matches!(records.next().unwrap(), Step::Row(_)), "after {line:?}");
    }
}

#[test]
fn a_quote_without_end_and_a_bad_header_end_the_file() {
    let message = read("text\nfine\n\"open\nfine\n", Dialect::default(), &["text"]).unwrap_err();
    for part in ["a.csv", "line 3, column 1", "a closing '\"'", "--quote none"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let message = read("label,content\n1,x\n", Dialect::default(), &["text"]).unwrap_err();
    assert!(message.contains("\"label\", \"content\"") && message.contains("--text-field"), "{message}");
    assert!(records(b"\xff\nfine\n", Dialect::default(), &["1"]).next().is_err());
}

fn written(table: &[Vec<String>], delimiter: char, always: bool) -> String {
    let field = |text: &String| {
        let special = text.is_empty() || text.contains([delimiter, '"', '\n', '\r']);
        if always || special { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
    };
    let line = |row: &Vec<String>| row.iter().map(field).collect::<Vec<_>>().join(&delimiter.to_string()) + "\n";
    table.iter().map(line).collect()
}

proptest! {
    #[test]
    fn any_table_reads_back(
        table in (1_usize..5).prop_flat_map(|width| prop::collection::vec(prop::collection::vec("[a,;\"\t\u{fc} \n]{0,6}", width), 1..8)),
        delimiter in prop::sample::select(vec![',', ';', '\t']),
        always: bool,
    ) {
        let dialect = Dialect { delimiter: Some(delimiter), quote: Some('"'), header: false };
        let names: Vec<String> = (1..=table[0].len()).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = read(&written(&table, delimiter, always), dialect, &names).unwrap();
        prop_assert_eq!(found.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), table);
    }
}
