//! What the README shows is what the programs give.

use e2e::{Program, data, repository};
use std::ffi::OsString;
use train::cli::Request;
use train::loss::Objective;

/// Its queries, on the cache of the held-out reactions that `make demo` makes.
#[test]
fn every_query_of_the_readme_gives_the_output_beside_it() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cache = folder.path().join("heldout-cache");
    let program = Program::precompute().arg("--teacher").arg(data("teacher")).arg("--corpus").arg(data("corpus/heldout.txt"));
    program.arg("--out").arg(&cache).args("--batch-tokens 4096 --quiet").run().success();
    Program::python("venv-readers", "readme_queries.py").arg(&cache).run().success();
}

/// The commands of the README and of the page of objectives, their continued lines joined; the latter's `t` is `train` with the demo's caches.
fn commands() -> Vec<String> {
    let page = |name: &str| std::fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let joined = (page("README.md") + &page("train/OBJECTIVES.md"))
        .replace("\\\n", " ")
        .replace("\n    t ", "\n    target/release/train --cache c ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix("    target/release/"));
    lines.map(|line| line.split(" #").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_command_of_the_pages_is_one_that_the_programs_take() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("run.toml");
    std::fs::write(&file, "cache = \"c\"\nout = \"o\"\n").expect("a temporary directory can be written");
    let commands = commands();
    assert!(commands.len() >= 20, "only {commands:?}");
    for command in commands {
        // The file that a run leaves stands in for the one that the demo leaves.
        let word = |word: &str| if word.ends_with("run.toml") { file.clone().into_os_string() } else { OsString::from(word) };
        let words = command.split_whitespace().map(word);
        match command.split_whitespace().next() {
            Some("train") => {
                let request = train::cli::parse(words).unwrap_or_else(|refusal| panic!("{command}: {refusal:?}"));
                if let Request::Train(arguments) = request {
                    let loss = arguments.objective.loss.as_deref().map_or(Ok(Objective::default()), str::parse::<Objective>);
                    loss.unwrap_or_else(|error| panic!("{command}: {error}"));
                }
            }
            Some("precompute") => precompute::cli::parse(words).map(drop).unwrap_or_else(|refusal| panic!("{command}: {refusal}")),
            other => panic!("{command}: {other:?} is no program"),
        }
    }
}
