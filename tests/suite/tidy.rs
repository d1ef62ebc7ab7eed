//! The walls of the house: which package may use what, and where.

use e2e::repository;
use std::path::{Path, PathBuf};

/// (what must not appear in code, where it may appear all the same, why)
const WALLS: &[(&str, &[&str], &str)] = &[
    ("ort::", &["precompute/src/teacher/"], "ONNX Runtime is spoken to in one folder"),
    ("parquet::", &["shared/src/cache/", "shared/tests/", "precompute/src/corpus/"], "the file format has one home"),
    ("arrow_array::", &["shared/src/cache/", "shared/tests/", "precompute/src/corpus/"], "the file format has one home"),
    (
        "clap::",
        &["precompute/src/cli.rs", "precompute/src/main.rs", "train/src/cli/", "train/src/main.rs", "tests.rs", "small_cache.rs"],
        "flags are parsed at the edge",
    ),
    ("anyhow::", &["precompute/src/main.rs", "train/src/main.rs", "tests/", "examples/"], "libraries return typed errors"),
    ("candle_core::", &["train/", "tests/"], "only the student's side knows tensors"),
    ("candle_nn::", &["train/"], "only the student's side knows tensors"),
    ("tokenizers::", &["precompute/"], "training never opens a tokenizer"),
    ("precompute::", &["precompute/", "tests/"], "the programs meet in the cache alone"),
    ("train::", &["train/", "tests/"], "the programs meet in the cache alone"),
    (
        "env::var",
        &["main.rs", "cli.rs", "runtime.rs", "progress.rs", "tests/", "shared/tests/", "benches/"],
        "the environment is read at the edge",
    ),
    (
        "println!",
        &["main.rs", "cli.rs", "runtime.rs", "progress.rs", "tests/", "tests.rs", "benches/"],
        "standard output belongs to the edge",
    ),
];

/// A dependency that a manifest must not name.
const FORBIDDEN_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("shared", &["ort", "candle-core", "candle-nn", "clap", "anyhow", "tokenizers", "precompute", "train"]),
    ("precompute", &["train", "candle-core", "candle-nn"]),
    ("train", &["precompute", "ort", "tokenizers"]),
];

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["shared", "precompute", "train", "tests"].iter().map(|name| repository().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a package folder can be read") {
            let path = entry.expect("a listed entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 40, "only {} Rust files were found", files.len());
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).expect("inside the repository").to_string_lossy().into_owned()
}

/// The lines that are code: neither comments nor anything after `#[cfg(test)]`, which the conventions put last.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(number, line)| (number + 1, line))
}

/// Whether `line` names `path` as a whole path, not as the end of a longer name.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

#[test]
fn no_file_reaches_over_a_wall() {
    let mut breaches = Vec::new();
    for path in rust_files() {
        let name = relative(&path);
        if name.ends_with("tests/suite/tidy.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
        for (number, line) in code_lines(&text) {
            for (forbidden, homes, why) in WALLS {
                let at_home = homes.iter().any(|home| if home.ends_with('/') { name.contains(home) } else { name.ends_with(home) });
                if !at_home && names(line, forbidden) {
                    breaches.push(format!("{name}:{number}: {forbidden} is not allowed here ({why})"));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn no_manifest_names_a_forbidden_dependency() {
    for (package, forbidden) in FORBIDDEN_DEPENDENCIES {
        let manifest = std::fs::read_to_string(repository().join(package).join("Cargo.toml")).expect("a package has a manifest");
        for dependency in *forbidden {
            let named =
                manifest.lines().any(|line| line.starts_with(&format!("{dependency}.")) || line.starts_with(&format!("{dependency} ")));
            assert!(!named, "{package}/Cargo.toml names {dependency}");
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for_and_stays_readable() {
    let mut complaints = Vec::new();
    for path in rust_files() {
        let name = relative(&path);
        let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
        if !text.starts_with("//!") {
            complaints.push(format!("{name}: the first line is no module heading (//!)"));
        }
        let lines = text.lines().count();
        if lines > 450 {
            complaints.push(format!("{name}: {lines} lines; a file past 450 has a second job"));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_readme_map_is_true() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("the repository has a README");
    for folder in ["precompute", "train", "shared", "data", "tests"] {
        assert!(readme.contains(&format!("{folder}/")), "the README's map lacks {folder}/");
    }
    let listed = std::fs::read_dir(repository()).expect("the repository can be listed");
    for entry in listed {
        let name = entry.expect("a listed entry").file_name().to_string_lossy().into_owned();
        let known = ["Cargo.toml", "Cargo.lock", "Makefile", "README.md", "precompute", "train", "shared", "data", "tests", "target"];
        let allowed =
            known.contains(&name.as_str()) || name.starts_with('.') || name.starts_with("LICENSE") || name == "rust-toolchain.toml";
        assert!(allowed, "{name} does not belong at the top level");
    }
}
