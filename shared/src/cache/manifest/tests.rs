//! What the index summarises, writes, reads back and compares.

use super::*;

#[test]
fn quantiles_are_of_the_values_and_json_gives_them_back() {
    let summary = MassSummary::of((1..=200).rev().map(|i| f64::from(i) / 3e7).collect());
    assert_eq!(summary, MassSummary { mean: 3.35e-6, p90: 6e-6, p99: 6.6e-6 });
    for seed in 1..2000 {
        let value = MassSummary::of(vec![1.0 / (f64::from(seed) * 7.7e3), 0.1]);
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<MassSummary>(&json).unwrap(), value, "{json}");
    }
    assert_eq!(MassSummary::of(Vec::new()), MassSummary::default());
    assert_eq!(MassSummary::of(vec![0.25]), MassSummary { mean: 0.25, p90: 0.25, p99: 0.25 });
}

fn manifest() -> Manifest {
    let spec = r#"{"task": "masked-lm", "vocabulary_size": 9, "top_k": 2, "temperatures": [2.0, 1.0], "positions": {"share": 0.3},
        "hidden_layers": [], "hidden_size": 0, "token_type_ids": false, "precision": "float16"}"#;
    let digest = Fingerprint::of_bytes(b"");
    Manifest {
        format_version: FORMAT_VERSION,
        writer: "a test".to_string(),
        spec: serde_json::from_str(spec).unwrap(),
        fingerprints: Fingerprints { teacher: digest, tokenizer: digest, corpus: digest, run: digest },
        settings: BTreeMap::from([("--seed".to_string(), 0.into()), ("--top-k".to_string(), 2.into())]),
        teacher: TeacherSummary {
            parameters: 3,
            layers: 1,
            hidden_size: 4,
            provider: "cpu".to_string(),
            logits_output: "logits".to_string(),
            hidden_tensors: BTreeMap::from([(12, "tensor".to_string())]),
            ..TeacherSummary::default()
        },
        counts: None,
        shards: Vec::new(),
        complete: false,
    }
}

#[test]
fn a_manifest_comes_back_and_is_written_the_same() {
    let directory = tempfile::tempdir().unwrap();
    manifest().write(directory.path()).unwrap();
    let bytes = std::fs::read(directory.path().join(MANIFEST_FILE)).unwrap();
    let read = Manifest::read(directory.path()).unwrap();
    assert_eq!(read, manifest());
    read.write(directory.path()).unwrap();
    assert_eq!(std::fs::read(directory.path().join(MANIFEST_FILE)).unwrap(), bytes);
}

#[test]
fn a_contradiction_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let message = Manifest { complete: true, ..manifest() }.write(directory.path()).unwrap_err().to_string();
    assert!(message.contains("counts"), "{message}");
    assert!(!directory.path().join(MANIFEST_FILE).exists());
}

#[test]
fn what_differs_is_named_once() {
    let names = |other: &Manifest| manifest().differing_settings(other).into_iter().map(|(name, _, _)| name).collect::<Vec<_>>();
    assert!(names(&manifest()).is_empty());

    let mut other = manifest();
    other.settings.insert("--top-k".to_string(), 3.into());
    other.settings.remove("--seed");
    other.fingerprints.corpus = Fingerprint::of_bytes(b"another");
    other.fingerprints.run = Fingerprint::of_bytes(b"another");
    assert_eq!(names(&other), ["--seed", "--top-k", "content of the corpus"]);
    let differing = manifest().differing_settings(&other);
    assert_eq!(differing[0], ("--seed".to_string(), "0".to_string(), "not set".to_string()));

    let mut other = manifest();
    other.fingerprints.run = Fingerprint::of_bytes(b"another");
    assert_eq!(names(&other), ["run"]);
}
