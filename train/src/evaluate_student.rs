//! `train evaluate`: any student's directory, a checkpoint's too, measured against the teacher's answers in a cache.

use crate::checkpoint::STATE_FILE;
use crate::cli::EvaluateArguments;
use crate::config::{TEACHER_FOLDER, check_tokenizer};
use crate::evaluate::classes::{ClassScore, Classes};
use crate::evaluate::pass::for_each_batch;
use crate::evaluate::{FullEvaluation, FullTally, NO_TOKENS, Subject, tokens};
use crate::export;
use crate::output::RUN_FILE;
use crate::stream::Selection;
use crate::student::Student;
use logitcache::atomic_file::{check_place, write_bytes_atomically};
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use logitcache::target::{Problem, Task};
use std::io::Write;
use std::path::Path;

/// The file's name within the student's directory, where a training run leaves its last evaluation.
pub const EVALUATION_FILE: &str = "evaluation.json";

const TOKENIZER_FILE: &str = "tokenizer.json";

/// Measures, writes the figures where asked to, and returns the table for a person. A cache of another teacher than the student's is measured
/// too; standard error says so.
///
/// # Errors
/// [`Error::Usage`] for flags that name nothing to read or write; [`Error::Usage`] or [`Error::Data`] for a student and a cache that do not
/// belong together, a cache whose tokenizer was changed, or one without masked positions.
pub fn run(arguments: &EvaluateArguments) -> Result<String> {
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    if threads == 0 {
        return Err(Error::usage("--threads", "at least 1", "0", "leave it out for one per processor"));
    }
    if let Some(out) = &arguments.out {
        check_place("--out", out, "DIR/evaluation.json")?;
    }
    export::check_student_flag(&arguments.student)?;
    let cache = Cache::open(&arguments.cache)?;
    let student = export::load(&arguments.student)?;
    check_vocabulary(&arguments.student, &student, &cache)?;
    check_answers(&student, &cache)?;
    check_tokenizer(&cache)?;
    if let Some(note) = other_teacher(&arguments.student, &cache) {
        // Where nobody can read the note, the figures are what was asked for all the same.
        let _ = writeln!(std::io::stderr(), "note: {note}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Error::invalid("--threads", "threads that the system gives", error.to_string()))?;
    let mut tally = FullTally::new(Subject::new(cache.spec(), &student.config().class_names));
    pool.install(|| for_each_batch(&cache, Selection::All, &student, |batch, logits| tally.add(batch, logits)))?;
    let tokens = tokens(&cache)?;
    let Some(found) = tally.finish(&tokens) else {
        let (expected, remedy) = match cache.spec().task() {
            Task::MaskedLm => ("masked positions", "name a cache that precompute made with masking"),
            _ => ("something to measure", "name a cache of sequences with answers"),
        };
        return Err(Error::data(&arguments.cache, "labels", expected, "none in any row", remedy));
    };
    let figures = match &arguments.out {
        Some(path) => {
            write(&found, path)?;
            path.display().to_string()
        }
        None => "--out FILE writes them, with calibration and disagreements, as JSON".to_owned(),
    };
    let note = if tokens.is_empty() { format!("\n{NO_TOKENS}\n") } else { String::new() };
    Ok(format!("{}{note}\nfigures: {figures}\n", table(&found)))
}

/// What to say where the cache's teacher is not the one that the student, or the checkpoint of one, notes as its own; nothing where it notes none.
fn other_teacher(student: &Path, cache: &Cache) -> Option<String> {
    let noted = [(RUN_FILE, "/settings/teacher"), (STATE_FILE, "/state/settings/teacher")].into_iter().find_map(|(name, place)| {
        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(student.join(name)).ok()?).ok()?;
        Some(found.pointer(place)?.as_str()?.to_owned())
    });
    let (own, asked) = (noted?, cache.manifest().fingerprints.teacher.to_string());
    (own != asked).then(|| {
        let (student, cache) = (student.display(), cache.directory().display());
        let (its, other) = (format!("{student} was distilled from teacher {own}"), format!("{cache} holds the answers of teacher {asked}"));
        format!("{its}, but {other}: the figures compare the student with the latter")
    })
}

/// Publishes the figures at `path`.
///
/// # Errors
/// [`Error::Io`].
pub fn write(found: &FullEvaluation, path: &Path) -> Result<()> {
    write_bytes_atomically(path, json(found, path)?.as_bytes())
}

fn json(found: &FullEvaluation, path: &Path) -> Result<String> {
    let text = serde_json::to_string_pretty(found).map_err(Error::library("write", path))?;
    Ok(text + "\n")
}

/// Student and teacher answer the same question.
fn check_answers(student: &Student, cache: &Cache) -> Result<()> {
    let (config, spec) = (student.config(), cache.spec());
    let width = if spec.task() == Task::SentenceEmbedding { spec.embedding_size() } else { spec.classes() };
    let said = |task: Task, problem: Option<Problem>, width: usize| {
        let problem = problem.map_or(String::new(), |problem| format!(" ({problem:?})"));
        format!("{task}{problem}, {width} values an answer")
    };
    let (asked, found) = (said(config.task, config.problem, config.output_size()), said(spec.task(), spec.problem(), width));
    if asked == found {
        return Ok(());
    }
    let remedy = "name a cache of the teacher that this student was distilled from";
    Err(Error::usage("--cache", format!("the student's {asked}"), found, remedy))
}

/// Ids mean the same to both only where the tokenizers are the same.
fn check_vocabulary(directory: &Path, student: &Student, cache: &Cache) -> Result<()> {
    let remedy = "name a cache of the teacher that this student was distilled from";
    let (asked, found) = (student.config().vocab_size, cache.spec().vocabulary_size());
    if asked != found {
        return Err(Error::usage("--cache", format!("the student's vocabulary of {asked} ids"), format!("{found} ids"), remedy));
    }
    let read = |path: &Path| std::fs::read(path).map_err(Error::io("read", path));
    let (own, others) = (directory.join(TOKENIZER_FILE), cache.directory().join(TEACHER_FOLDER).join(TOKENIZER_FILE));
    if read(&own)? != read(&others)? {
        let expected = format!("a cache with the tokenizer of {}", own.display());
        return Err(Error::usage("--cache", expected, format!("another in {}", others.display()), remedy));
    }
    Ok(())
}

/// The figures for a person.
pub fn table(found: &FullEvaluation) -> String {
    let (count, what) = found.evaluation.count();
    let sequences = if what == "sequences" { String::new() } else { format!("in {} sequences", found.evaluation.sequences) };
    let mut rows = vec![(what.to_owned(), count.to_string(), sequences)];
    for figure in found.figures() {
        match figure.teacher {
            None => rows.push((figure.title.to_owned(), format!("{:.4}", figure.student), String::new())),
            Some(teacher) => {
                rows.push((format!("{}, teacher", figure.title), format!("{teacher:.4}"), String::new()));
                rows.push((format!("{}, student", figure.title), format!("{:.4}", figure.student), figure.against_teacher()));
            }
        }
    }
    if let Some(gold) = found.gold.filter(|gold| gold.teacher_gold_positions > 0) {
        rows.push(("positions where stored".to_owned(), gold.teacher_gold_positions.to_string(), "of the original token".to_owned()));
    }
    let mut text = String::new();
    for (name, value, remark) in rows {
        text.push_str(format!("{name:<33}{value:>14}   {remark}").trim_end());
        text.push('\n');
    }
    for (classes, what) in [(&found.classes, found.what_classes_are()), (&found.entities, "entity")] {
        text.push_str(&classes.as_ref().map_or_else(String::new, |classes| class_table(classes, what)));
    }
    text
}

fn class_table(classes: &Classes, what: &str) -> String {
    let head = "support   student: precision  recall      F1   teacher: precision  recall      F1";
    let mut text = format!("\n{what:<15} {head}\n");
    for class in &classes.rows {
        let score = |of: &ClassScore| {
            let precision = of.precision.map_or("-".to_owned(), |value| format!("{value:.3}"));
            format!("{precision:>19} {:>7.3} {:>7.3}", of.recall, of.f1)
        };
        text.push_str(&format!("{:<14} {:>8}  {}  {}\n", class.token, class.support, score(&class.student), score(&class.teacher)));
    }
    if classes.total > classes.listed {
        text.push_str(&format!("{} more classes are rarer than these.\n", classes.total - classes.listed));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::small_cache::{SmallCache, arguments};
    use crate::trainer::StopSignal;

    #[test]
    fn what_is_measured_against_another_teacher_is_said_and_what_cannot_be_is_refused_first() {
        let directory = tempfile::tempdir().unwrap();
        let cache = SmallCache::default().write(directory.path(), "cache");
        let other = SmallCache { teacher: "another", ..SmallCache::default() }.write(directory.path(), "other");
        let student = directory.path().join("student");
        let config = Config::check(&arguments(&cache, &student, &["--steps", "1", "--eval-fraction", "0"])).unwrap();
        crate::run(&config, &StopSignal::default()).unwrap();

        let asked = EvaluateArguments { student: student.clone(), cache: cache.clone(), out: None, threads: Some(1), quiet: true };
        let table = run(&asked).unwrap();
        assert!(table.starts_with("masked positions") && table.contains("figures: --out FILE writes them"), "{table}");
        let open = |path: &Path| Cache::open(path).unwrap();
        for place in [student.clone(), student.join("checkpoints/step-00000001")] {
            assert_eq!(other_teacher(&place, &open(&cache)), None);
            let note = other_teacher(&place, &open(&other)).unwrap();
            let fingerprints = [&cache, &other].map(|cache| open(cache).manifest().fingerprints.teacher.to_string());
            assert!(fingerprints.iter().all(|fingerprint| note.contains(fingerprint)), "{note}");
        }
        let refused = |arguments: EvaluateArguments, words: [&str; 2]| {
            let error = run(&arguments).unwrap_err();
            assert!(error.exit_code() == 2 && words.iter().all(|word| error.to_string().contains(word)), "{error}");
        };
        let nope = directory.path().join("nope");
        refused(EvaluateArguments { student: nope.clone(), ..asked.clone() }, ["--student", "does not exist"]);
        refused(EvaluateArguments { out: Some(nope.join("file")), ..asked.clone() }, ["--out", "make the directory"]);
        refused(EvaluateArguments { out: Some(student.clone()), ..asked.clone() }, ["--out", "name a file"]);
        for path in [student.join(TOKENIZER_FILE), cache.join("teacher/tokenizer.json")] {
            std::fs::write(path, "").unwrap();
        }
        assert!(run(&asked).unwrap_err().to_string().contains("as manifest.json notes"));
    }
}
