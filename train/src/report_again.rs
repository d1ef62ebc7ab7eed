//! `train report`: a student's page written anew from the files in its directory.

use crate::cli::ReportArguments;
use crate::output::RUN_FILE;
use crate::report::{REPORT_FILE, page};
use crate::summary::{SUMMARY_FILE, Summary, read_pair};
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// Writes the page, brings the summary up to date with the files that are there, and returns its table, as far as there is one.
///
/// # Errors
/// [`Error::Usage`] for a directory without `run.json`; [`Error::Io`] or [`Error::Library`] for a file that cannot be read.
pub fn run(arguments: &ReportArguments) -> Result<String> {
    let directory = &arguments.student;
    let mut table = String::new();
    if directory.join(SUMMARY_FILE).is_file() {
        let summary = Summary::read(directory)?.with_files(directory)?;
        summary.write(directory)?;
        table = summary.table();
    }
    let path = write(directory)?;
    Ok(format!("{table}report:  {path}\n"))
}

/// Writes the page of the student in `directory`; returns where.
///
/// # Errors
/// See [`run`].
pub fn write(directory: &Path) -> Result<String> {
    let Some(run) = read(directory, "run.json")? else {
        let (found, remedy) = (directory.display().to_string(), "name the --out of a training");
        return Err(Error::usage("--student", "a directory with run.json", found, remedy));
    };
    let log = directory.join("metrics.jsonl");
    let text = match std::fs::read_to_string(&log) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.map_err(Error::io("read", &log))?,
    };
    let lines: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>().map_err(Error::library("parse", &log))?;
    let [summary, evaluation] = ["summary.json", "evaluation.json"].map(|name| read(directory, name));
    let speed = read_pair(directory)?;
    let name = directory.file_name().map_or_else(|| "student".into(), |name| name.to_string_lossy());
    let path = directory.join(REPORT_FILE);
    write_bytes_atomically(&path, page(&name, &run, &lines, summary?.as_ref(), evaluation?.as_ref(), speed.as_ref()).as_bytes())?;
    Ok(path.display().to_string())
}

fn read(directory: &Path, name: &str) -> Result<Option<Value>> {
    let path = directory.join(name);
    match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => serde_json::from_slice(&read.map_err(Error::io("read", &path))?).map(Some).map_err(|error| {
            let remedy = if name == RUN_FILE { "put back a copy of it" } else { "put back a copy, or remove it: the page does without" };
            Error::data(&path, "content", "JSON that train or precompute wrote", error.to_string(), remedy)
        }),
    }
}
