//! The flags of the corpus.

use super::{DEFAULT_MASK_PROBABILITY, at_least_one};
use crate::cli::CorpusArguments;
use crate::corpus::{CorpusOptions, Dialect, Fields, LabelScheme};
use logitcache::error::{Error, Result};
use std::path::Path;

/// Checks what does not depend on the teacher.
pub(super) fn check(corpus: &CorpusArguments) -> Result<()> {
    if corpus.corpus.is_empty() {
        return Err(Error::usage("--corpus", "one or more files or directories", "nothing", "add --corpus PATH"));
    }
    if !(3..=usize::from(u16::MAX)).contains(&corpus.max_length) {
        let remedy = "type a length the teacher can take, such as 128";
        return Err(Error::usage("--max-length", "3 to 65535 tokens", corpus.max_length.to_string(), remedy));
    }
    if corpus.min_tokens > corpus.max_length {
        let expected = format!("at most the {} of --max-length", corpus.max_length);
        return Err(Error::usage("--min-tokens", expected, corpus.min_tokens.to_string(), "lower it, or raise --max-length"));
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

fn fields(corpus: &CorpusArguments) -> Result<Fields> {
    if corpus.text_field.is_empty() {
        return Err(Error::usage("--text-field", "a field's name", "an empty one", "leave the flag out for \"text\""));
    }
    Ok(Fields { text: corpus.text_field.clone(), ..Fields::default() })
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
