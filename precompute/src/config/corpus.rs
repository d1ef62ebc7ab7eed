//! The flags of the corpus.

use super::{Config, DEFAULT_MASK_PROBABILITY, at_least_one};
use crate::cli::CorpusArguments;
use crate::corpus::{CorpusOptions, Dialect, Fields, LabelScheme};
use crate::task::TeacherTask;
use crate::window::WindowOptions;
use logitcache::error::{Error, Result};
use logitcache::target::{Problem, Task};
use std::path::{Component, Path, PathBuf};

/// Checks what does not depend on the teacher.
pub(super) fn check(corpus: &CorpusArguments) -> Result<()> {
    if corpus.corpus.is_empty() {
        return Err(Error::usage("--corpus", "one or more files or directories", "nothing", "add --corpus PATH"));
    }
    if !(3..=usize::from(u16::MAX)).contains(&corpus.max_length) {
        let remedy = "type a length the teacher can take, such as 128";
        return Err(Error::usage("--max-length", "3 to 65535 tokens", corpus.max_length.to_string(), remedy));
    }
    if let Some(min_tokens) = corpus.min_tokens.filter(|min_tokens| *min_tokens > corpus.max_length) {
        let expected = format!("at most the {} of --max-length", corpus.max_length);
        return Err(Error::usage("--min-tokens", expected, min_tokens.to_string(), "lower it, or raise --max-length"));
    }
    let probability = corpus.mask_probability.unwrap_or(DEFAULT_MASK_PROBABILITY);
    if !(probability > 0.0 && probability <= 1.0) {
        return Err(Error::usage("--mask-probability", "a share above 0 and at most 1", probability.to_string(), "type one such as 0.15"));
    }
    if let Some(exponent) = corpus.mask_smoothing.filter(|exponent| !(exponent.is_finite() && *exponent > 0.0)) {
        let remedy = "type 0.7 as DistilBERT has it, or leave the flag out for none";
        return Err(Error::usage("--mask-smoothing", "an exponent above 0", exponent.to_string(), remedy));
    }
    at_least_one("--passes", usize::from(corpus.passes))
}

/// Refuses an `out` below a directory of the corpus: the run that goes on would find the cache's own files among the texts. Hidden folders are not read.
pub(super) fn expect_outside(corpus: &[PathBuf], out: &Path) -> Result<()> {
    // `out` need not exist: as far up as it does, links are followed.
    let Ok(absolute) = std::path::absolute(out) else { return Ok(()) };
    let resolved = absolute.ancestors().find_map(|above| Some(above.canonicalize().ok()?.join(absolute.strip_prefix(above).ok()?)));
    let Some(resolved) = resolved else { return Ok(()) };
    let hidden =
        |below: &Path| below.components().any(|part| matches!(part, Component::Normal(name) if name.as_encoded_bytes().starts_with(b".")));
    for directory in corpus {
        let below = directory.canonicalize().ok().filter(|found| found.is_dir());
        if let Some(below) = below.and_then(|found| resolved.strip_prefix(found).ok().map(Path::to_owned))
            && !hidden(&below)
        {
            let expected = format!("a directory outside of the corpus {}", directory.display());
            let found = format!("{}, whose files would be read as part of it", out.display());
            return Err(Error::usage("--out", expected, found, "name a directory beside it"));
        }
    }
    Ok(())
}

/// How the files are to be read. `out` is the cache's directory, where a shuffled corpus is put down; none in a dry run, which uses the
/// system's directory for such files.
pub(super) fn reading(corpus: &CorpusArguments, out: Option<&Path>) -> Result<CorpusOptions> {
    if let Some(limit) = corpus.limit {
        at_least_one("--limit", usize::try_from(limit).unwrap_or(usize::MAX))?;
    }
    Ok(CorpusOptions {
        format: corpus.format.as_deref().map(str::parse).transpose()?,
        document: corpus.document.parse()?,
        fields: fields(corpus)?,
        dialect: dialect(corpus)?,
        labels: LabelScheme::Absent,
        skip_bad: corpus.skip_bad,
        shuffle_seed: corpus.shuffle_seed,
        skip: corpus.skip,
        limit: corpus.limit,
        scratch: out.map_or_else(std::env::temp_dir, Path::to_owned),
    })
}

/// How documents are to be cut.
pub(super) fn windows(corpus: &CorpusArguments) -> Result<WindowOptions> {
    let truncate = match corpus.long_documents.as_deref() {
        None => None,
        Some("cut") => Some(false),
        Some("truncate") => Some(true),
        Some(other) => return Err(Error::usage("--long-documents", "`cut` or `truncate`", format!("`{other}`"), "type one of the two")),
    };
    let &CorpusArguments { max_length, min_tokens, stride, pack, .. } = corpus;
    Ok(WindowOptions { max_length, min_tokens, stride, truncate, pack })
}

impl Config {
    /// What the answers of the corpus mean to a teacher of `task`.
    ///
    /// # Errors
    /// [`Error::Usage`] for fields that the task does not have.
    pub fn label_scheme(&self, task: &TeacherTask) -> Result<LabelScheme> {
        let fields = &self.reading.fields;
        let refuse = |flag: &str, expected: &str, found: String| Err(Error::usage(flag, expected, found, "leave the flag out"));
        let of_task = || format!("a teacher of {}", task.task);
        if fields.pair.is_some() && matches!(task.task, Task::TokenClassification | Task::CausalLm) {
            return refuse("--text-pair-field", "a teacher that takes pairs", of_task());
        }
        let (several, classes) = (fields.label.len() > 1, task.class_names.len());
        match (fields.label.len(), task.task, task.problem) {
            (0, ..) => Ok(LabelScheme::Absent),
            (_, Task::MaskedLm | Task::CausalLm, _) => {
                refuse("--label-field", "a teacher with answers of its own: a language model's are in the text", of_task())
            }
            (_, Task::SentenceEmbedding, _) if fields.pair.is_none() => {
                refuse("--label-field", "pairs, whose likeness it is: name --text-pair-field too", of_task())
            }
            (1, Task::SentenceEmbedding, _) => Ok(LabelScheme::Numbers(1)),
            (1, Task::TokenClassification, _) => Ok(LabelScheme::WordClasses(task.class_names.clone())),
            (_, Task::SequenceClassification, Some(problem)) if problem != Problem::SingleLabel => {
                if several && fields.label.len() != classes {
                    let found = format!("{} fields", fields.label.len());
                    return refuse("--label-field", &format!("one field, or one for each of the {classes} classes"), found);
                }
                Ok(if problem == Problem::MultiLabel {
                    LabelScheme::Classes(task.class_names.clone())
                } else {
                    LabelScheme::Numbers(classes)
                })
            }
            (1, ..) => Ok(LabelScheme::Class(task.class_names.clone())),
            (count, ..) => refuse("--label-field", "one field", format!("{count}")),
        }
    }
}

fn fields(corpus: &CorpusArguments) -> Result<Fields> {
    let named = [Some(&corpus.text_field), corpus.text_pair_field.as_ref(), corpus.words_field.as_ref()];
    let flags = ["--text-field", "--text-pair-field", "--words-field"].into_iter().zip(named);
    for (flag, name) in flags.chain(corpus.label_field.iter().map(|name| ("--label-field", Some(name)))) {
        if name.is_some_and(String::is_empty) {
            return Err(Error::usage(flag, "a field's name", "an empty one", "name a field, or leave the flag out"));
        }
    }
    if corpus.words_field.is_some() && corpus.text_pair_field.is_some() {
        return Err(Error::usage("--words-field", "words without a pair", "--text-pair-field beside it", "leave one of the two out"));
    }
    Ok(Fields {
        text: corpus.text_field.clone(),
        pair: corpus.text_pair_field.clone(),
        words: corpus.words_field.clone(),
        label: corpus.label_field.clone(),
    })
}

fn dialect(corpus: &CorpusArguments) -> Result<Dialect> {
    let delimiter = match corpus.delimiter.as_deref() {
        None => None,
        Some("tab" | "\\t" | "\t") => Some('\t'),
        Some(typed) => Some(one_character("--delimiter", typed, "`tab`")?),
    };
    let quote = match corpus.quote.as_str() {
        "none" => None,
        typed => Some(one_character("--quote", typed, "`none`")?),
    };
    if delimiter.is_some() && delimiter == quote {
        let found = format!("{:?} for both", corpus.quote);
        return Err(Error::usage("--delimiter", "another character than that of --quote", found, "change one of the two"));
    }
    Ok(Dialect { delimiter, quote, header: !corpus.no_header })
}

fn one_character(flag: &str, typed: &str, or: &str) -> Result<char> {
    let mut characters = typed.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) if !matches!(character, '\n' | '\r') => Ok(character),
        _ => Err(Error::usage(flag, format!("one character, or {or}"), format!("{typed:?}"), "type it in quotes, as in --delimiter ';'")),
    }
}
