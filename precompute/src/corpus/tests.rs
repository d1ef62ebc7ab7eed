//! A corpus of several files, read as a whole.

use super::*;
use std::fs;
use std::io::Write;

fn corpus_with(files: &[(&str, &[u8])], options: CorpusOptions) -> (tempfile::TempDir, Corpus) {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    let scratch = root.path().join(".scratch");
    let corpus = Corpus::open(&[root.path().to_owned()], CorpusOptions { scratch, ..options }).unwrap();
    (root, corpus)
}

fn corpus(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Corpus) {
    corpus_with(files, CorpusOptions::default())
}

fn text(document: &Document) -> String {
    match &document.text {
        Text::Whole(text) => text.clone(),
        Text::Words(words) => words.join(" "),
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn documents_of_all_kinds_are_numbered_through_and_know_their_place() {
    let packed = zstd::encode_all(&b"four\n"[..], 1).unwrap();
    let members = [gzip("\ntwo\n"), gzip("three")].concat();
    let (root, corpus) =
        corpus(&[("d.txt", b"five"), ("a.jsonl", b"{\"text\":\"one\"}\n"), ("b.txt.gz", &members), ("c.txt.zst", &packed)]);
    for _pass in 0..2 {
        let mut documents = corpus.documents();
        let found: Vec<Document> = documents.by_ref().collect::<Result<_>>().unwrap();
        let expected =
            [("one", "a.jsonl", 1), ("two", "b.txt.gz", 2), ("three", "b.txt.gz", 3), ("four", "c.txt.zst", 1), ("five", "d.txt", 1)];
        assert_eq!(found.len(), expected.len());
        for (id, (document, (text, file, line))) in found.iter().zip(expected).enumerate() {
            assert_eq!((document.id, document.text.clone(), document.place), (id as u64, Text::Whole(text.to_owned()), Place::Line(line)));
            assert_eq!(&*document.file, root.path().join(file));
        }
        assert_eq!(documents.share(), 1.0);
    }
}

#[test]
fn an_error_ends_the_stream() {
    let (_root, corpus) = corpus(&[("a.txt", b"fine\n\xff\nfine\n"), ("b.txt", b"fine")]);
    let items: Vec<_> = corpus.documents().collect();
    assert_eq!(items.len(), 2);
    assert!(items[1].as_ref().unwrap_err().to_string().contains("line 2"));
}

#[test]
fn damaged_compression_names_the_file() {
    let whole = gzip(&"C>>O\n".repeat(2000));
    let (_root, corpus) = corpus(&[("a.txt.gz", &whole[..whole.len() - 5])]);
    let error = corpus.documents().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("a.txt.gz") && error.to_string().contains("damaged"), "{error}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_corpus_without_documents_is_an_error() {
    for files in [&[("a.txt", &b"\n \r\n"[..])][..], &[("a.txt", &b""[..]), ("b.jsonl", &b"\n"[..])]] {
        let (_root, corpus) = corpus(files);
        let items: Vec<_> = corpus.documents().collect();
        assert_eq!(items.len(), 1);
        let error = items[0].as_ref().unwrap_err();
        assert!(error.to_string().contains("a.txt") && error.to_string().contains("not empty"), "{error}");
    }
}

#[test]
fn the_fingerprint_sees_content_order_and_borders_but_not_places() {
    let print = |files: &[(&str, &[u8])]| corpus(files).1.fingerprint().unwrap();
    let base = print(&[("a.txt", b"one\n"), ("b.txt", b"two\n")]);
    assert_eq!(base, print(&[("c.txt", b"one\n"), ("d.text", b"two\n")]));
    let others = [
        print(&[("a.txt", b"two\n"), ("b.txt", b"one\n")]),
        print(&[("a.txt", b"one\ntwo\n")]),
        print(&[("a.txt", b"one\nt"), ("b.txt", b"wo\n")]),
        print(&[("a.txt", b"one\n"), ("b.jsonl", b"two\n")]),
        print(&[("a.txt", b"one\n"), ("b.txt", b"two")]),
    ];
    assert!(others.iter().all(|other| *other != base));
}

#[test]
fn the_unit_is_parsed_as_it_is_shown() {
    for unit in [DocumentUnit::Line, DocumentUnit::Block] {
        assert_eq!(unit.to_string().parse::<DocumentUnit>().unwrap(), unit);
    }
    assert_eq!("page".parse::<DocumentUnit>().unwrap_err().exit_code(), 2);
}

fn numbered(count: usize) -> String {
    (0..count).map(|number| format!("document {number}\n")).collect()
}

fn ids(corpus: &Corpus) -> Vec<u64> {
    corpus.documents().map(|document| document.unwrap().id).collect()
}

#[test]
fn documents_keep_their_numbers_whatever_is_skipped() {
    let content = numbered(40);
    let files = [("a.txt", content.as_bytes()), ("b.txt", b"forty\nforty-one")];
    let taken = |skip, limit| ids(&corpus_with(&files, CorpusOptions { skip, limit, ..CorpusOptions::default() }).1);
    assert_eq!(taken(0, Some(3)), [0, 1, 2]);
    assert_eq!(taken(39, Some(2)), [39, 40]);
    assert_eq!(taken(40, Some(100)), [40, 41]);
    let (_root, corpus) = corpus_with(&files, CorpusOptions { skip: 42, ..CorpusOptions::default() });
    let error = corpus.documents().next().unwrap().unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("--skip") && error.to_string().contains("a corpus of 42"), "{error}");
}

#[test]
fn a_shuffled_corpus_is_the_same_documents_in_an_order_of_its_seed() {
    let content = numbered(1000);
    let files = [("a.txt", content.as_bytes()), ("b.jsonl", b"{\"text\":\"last\"}")];
    let options = |seed| CorpusOptions { shuffle_seed: Some(seed), ..CorpusOptions::default() };
    let (root, shuffled) = corpus_with(&files, options(1));
    let order = ids(&shuffled);
    assert_eq!(order, ids(&shuffled), "the next pass has the same order");
    assert_eq!(order, ids(&corpus_with(&files, options(1)).1), "and so has another run");
    assert_ne!(order, ids(&corpus_with(&files, options(2)).1));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1001).collect::<Vec<_>>());
    // Each document stands where its own number says: with a mean of a third of the length for a uniform order.
    let distance: u64 = order.iter().zip(0_u64..).map(|(id, place)| id.abs_diff(place)).sum();
    assert!((distance as f64 / 1001.0 / 1001.0 - 1.0 / 3.0).abs() < 0.03, "{distance}");
    for document in shuffled.documents() {
        let document = document.unwrap();
        let expected = if document.id == 1000 { "last".to_owned() } else { format!("document {}", document.id) };
        assert_eq!((text(&document), document.place), (expected, Place::Line(document.id % 1000 + 1)));
        assert!(document.file.ends_with(if document.id == 1000 { "b.jsonl" } else { "a.txt" }));
    }
    #[cfg(unix)]
    assert_eq!(fs::read_dir(root.path().join(".scratch")).unwrap().count(), 0, "nothing stays on the disk");
    let (_root, stopped) = corpus_with(&files, options(1));
    assert!(!stopped.prepare(&|| true).unwrap() && stopped.prepare(&|| false).unwrap(), "a request to stop is heard");
    // Parts of the order that go together make the whole.
    let part = |skip, limit| ids(&corpus_with(&files, CorpusOptions { skip, limit, ..options(1) }).1);
    assert_eq!([part(0, Some(100)), part(100, Some(700)), part(800, None)].concat(), order);
}

#[test]
fn malformed_records_are_skipped_up_to_a_number_and_counted() {
    let files: [(&str, &[u8]); 3] = [
        ("a.jsonl", b"{\"text\":\"one\"}\n{\n{\"text\":3}\n{\"text\":\"two\"}\n"),
        ("b.csv", b"text,n\nthree,1\nfour\n\xff,2\nfive,1\n"),
        ("c.txt", b"six\n"),
    ];
    for shuffle_seed in [None, Some(3)] {
        let options = |skip_bad| CorpusOptions { skip_bad, shuffle_seed, ..CorpusOptions::default() };
        let (_root, corpus) = corpus_with(&files, options(4));
        let mut documents = corpus.documents();
        let mut texts: Vec<String> = documents.by_ref().map(|document| text(&document.unwrap())).collect();
        texts.sort_unstable();
        assert_eq!(texts, ["five", "one", "six", "three", "two"]);
        assert_eq!(documents.malformed(), 4);
        for (allowed, parts) in [(0, ["a.jsonl", "line 2", "--skip-bad N"]), (2, ["b.csv", "line 3", "--skip-bad allows: 2"])] {
            let error = corpus_with(&files, options(allowed)).1.documents().find_map(Result::err).unwrap().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}

mod in_every_format {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use proptest::prelude::*;

    fn parquet(rows: &[(String, Option<usize>)]) -> Vec<u8> {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|(text, _)| text)));
        let labels: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|(_, label)| label.map(|label| label as i64))));
        let batch = RecordBatch::try_from_iter_with_nullable([("label", labels, true), ("text", texts, true)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn any_rows_are_the_same_documents(rows in prop::collection::vec(("[a-c\"',;\t\n\\\\\u{fc}\u{1f600} ]{0,12}", prop::option::of(0_usize..3)), 1..90)) {
            let classes = ["no", "per\"haps", "yes, \u{fc}"].map(str::to_owned);
            let name = |label: &Option<usize>| label.map(|label| classes[label].clone());
            let json = |(text, label): &(String, Option<usize>)| format!("{}\n", serde_json::json!({ "text": text, "label": name(label) }));
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let csv = |(text, label): &(String, Option<usize>)| format!("{},{}\n", quoted(&name(label).unwrap_or_default()), quoted(text));
            let files: [(&str, Vec<u8>); 3] = [
                ("a.jsonl", rows.iter().map(json).collect::<String>().into_bytes()),
                ("a.csv", ("label,text\n".to_owned() + &rows.iter().map(csv).collect::<String>()).into_bytes()),
                ("a.parquet", parquet(&rows)),
            ];
            for (file, bytes) in files {
                let fields = Fields { label: vec!["label".to_owned()], ..Fields::default() };
                let options = CorpusOptions { fields, labels: LabelScheme::Class(classes.to_vec()), ..CorpusOptions::default() };
                let (_root, corpus) = corpus_with(&[(file, &bytes)], options);
                let found: Vec<(Text, Gold)> = corpus.documents().map(|document| document.map(|document| (document.text, document.gold)))
                    .collect::<Result<_>>().unwrap();
                let gold = |label: Option<usize>| label.map_or(Gold::Unknown, |label| Gold::Class(label as u32));
                let expected: Vec<(Text, Gold)> = rows.iter().map(|(text, label)| (Text::Whole(text.clone()), gold(*label))).collect();
                prop_assert_eq!(found, expected, "{}", file);
            }
        }
    }
}

#[test]
fn a_file_that_is_written_while_it_is_read_is_an_error() {
    let (root, corpus) = corpus(&[("a.txt", b"one\ntwo\n"), ("b.txt", b"three\n")]);
    assert_eq!(corpus.documents().collect::<Result<Vec<_>>>().unwrap().len(), 3);
    let path = root.path().join("a.txt");
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"four\n").unwrap();
    let error = corpus.documents().find_map(|document| document.err()).unwrap().to_string();
    assert!(error.contains("a.txt") && error.contains("the 8 bytes") && error.contains("found 13 bytes"), "{error}");
    // Of the same size, at another time.
    fs::write(&path, b"One\nTwo\n").unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let error = corpus.documents().find_map(|document| document.err()).unwrap().to_string();
    assert!(error.contains("written again"), "{error}");
}
