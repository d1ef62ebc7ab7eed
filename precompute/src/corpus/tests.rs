//! A corpus of several files, read as a whole.

use super::*;
use std::fs;
use std::io::Write;

fn corpus(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Corpus) {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(root.path().join(name), content).unwrap();
    }
    let corpus = Corpus::open(&[root.path().to_owned()], CorpusOptions::default()).unwrap();
    (root, corpus)
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
            assert_eq!((document.id, document.text.as_str(), document.line), (id as u64, text, line));
            assert_eq!(&*document.file, root.path().join(file));
        }
        assert_eq!(documents.bytes_read(), corpus.bytes());
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
