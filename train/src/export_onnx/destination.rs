//! Whether a student may be exported into a directory: never over another model, never into a cache.

use super::ONNX_FILE;
use crate::export::{CONFIG_FILE, MODEL_FILE};
use logitcache::cache::manifest::MANIFEST_FILE;
use logitcache::error::{Error, Result};
use logitcache::fingerprint::Fingerprint;
use std::path::Path;

/// Whether both are the same place.
pub(super) fn same_directory(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Passes a directory that is new or empty, the student's own, that of an earlier export of it (equal settings), and one with unrelated files.
/// `companions` are the files of the student that go beside the graph.
///
/// # Errors
/// [`Error::Usage`], naming what stands in the way.
pub(super) fn check(student: &Path, out: &Path, companions: &[&str]) -> Result<()> {
    if same_directory(student, out) {
        return Ok(());
    }
    let expected = "a new or empty directory, the student's own, or that of an earlier export of it";
    let refuse = |found: String| Err(Error::usage("--out", expected, format!("{}, {found}", out.display()), "name another directory"));
    let parents = out.ancestors().find(|path| path.exists());
    if let Some(file) = parents.filter(|path| !path.is_dir()) {
        return refuse(format!("where {} is a file", file.display()));
    }
    if out.join(MANIFEST_FILE).exists() {
        return refuse(format!("a cache, with {MANIFEST_FILE}"));
    }
    let own = |name: &str| -> Result<bool> { Ok(Fingerprint::of_file(&student.join(name))? == Fingerprint::of_file(&out.join(name))?) };
    for name in companions.iter().copied().chain([MODEL_FILE]) {
        if out.join(name).exists() && !own(name)? {
            return refuse(format!("which holds the {name} of another model"));
        }
    }
    if out.join(ONNX_FILE).exists() && !out.join(CONFIG_FILE).exists() {
        return refuse(format!("which holds {ONNX_FILE} and no {CONFIG_FILE} that says whose it is"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_with_another_model_or_a_cache_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, files: &[(&str, &str)]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(path.join(name), text).unwrap());
            path
        };
        let student = place("student", &[(CONFIG_FILE, "ours"), (MODEL_FILE, "ours"), ("tokenizer.json", "ours"), (ONNX_FILE, "old")]);
        let check = |out: &Path| check(&student, out, &[CONFIG_FILE, "tokenizer.json"]);
        for good in [
            student.clone(),
            place("empty", &[]),
            folder.path().join("new/below"),
            place("earlier", &[(CONFIG_FILE, "ours"), ("tokenizer.json", "ours"), (ONNX_FILE, "old")]),
            place("copy", &[(CONFIG_FILE, "ours"), (MODEL_FILE, "ours")]),
            place("notes", &[("notes.txt", "mine")]),
        ] {
            check(&good).unwrap();
        }
        for (files, word) in [
            (&[(MANIFEST_FILE, "{}")][..], "a cache"),
            (&[(CONFIG_FILE, "theirs"), (ONNX_FILE, "theirs")], "config.json of another"),
            (&[(CONFIG_FILE, "ours"), (MODEL_FILE, "theirs")], "model.safetensors of another"),
            (&[("tokenizer.json", "theirs")], "tokenizer.json of another"),
            (&[(ONNX_FILE, "theirs")], "no config.json"),
        ] {
            let bad = tempfile::tempdir().unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(bad.path().join(name), text).unwrap());
            let error = check(bad.path()).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(word) && error.to_string().contains("--out"), "{error}");
        }
        for file in [student.join(MODEL_FILE), student.join(MODEL_FILE).join("below")] {
            let error = check(&file).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("is a file"), "{error}");
        }
    }
}
