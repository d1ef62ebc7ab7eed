//! `--config FILE`: flags from a TOML file, put before those that were typed.
//!
//! A key is a flag's long name without its dashes. Flags that are typed win, also over those in the file that they exclude (`steps` in the file,
//! `--epochs` typed). Paths in the file are relative to the working directory, as typed ones are.

use clap::{Arg, ArgAction, Command};
use logitcache::error::{Error, Result};
use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Flags that are no settings of a run.
const NO_SETTINGS: [&str; 3] = ["config", "help", "version"];

/// Text flags that hold several values with commas between.
const TEXT_LISTS: [&str; 2] = ["loss", "hidden-map"];

/// Flags that mean nothing without another.
const NEEDS: [(&str, &str); 2] = [("init-layers", "init-from"), ("init-widths", "init-from")];

/// `typed` with the flags of its `--config` file inserted after the program's name; as it is where there is no such file.
///
/// # Errors
/// [`Error::Usage`] for a file that cannot be read or is no TOML, a key that is no flag, with the nearest that is, a value of another type, and keys
/// that exclude each other or lack a third.
pub(super) fn with_file(typed: Vec<OsString>, command: &Command) -> Result<Vec<OsString>> {
    let subcommand = typed.get(1).is_some_and(|word| command.get_subcommands().any(|known| word == known.get_name()));
    let Some(path) = config_path(&typed).filter(|_| !subcommand) else { return Ok(typed) };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::usage("--config", "a TOML file", format!("{}: {error}", path.display()), "name a file that can be read"))?;
    let place = Place { path: &path, text: &text };
    let table = DeTable::parse(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Error::usage("--config", "TOML", format!("{} ({})", error.message(), place.of(at)), "mend that line")
    })?;
    let mut words: Vec<OsString> = typed.first().cloned().into_iter().collect();
    let mut taken: Vec<(&Arg, String)> = Vec::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        let Some(flag) = settings(command).find(|flag| flag.get_long() == Some(name)) else {
            return Err(unknown(name, value.get_ref(), &place.of(key.span().start), command));
        };
        let value = word(flag, value.get_ref()).map_err(|expected| {
            let found = format!("{} ({})", described(value.get_ref()), place.of(value.span().start));
            Error::usage(format!("--config: {name}"), expected, found, "mend that value")
        })?;
        let overruled = settings(command).any(|other| excludes(command, flag, other) && is_typed(&typed, other));
        if let Some(value) = value.filter(|_| !overruled && !is_typed(&typed, flag)) {
            words.push(value);
            taken.push((flag, format!("{name} ({})", place.of(key.span().start))));
        }
    }
    check_together(command, &typed, &taken)?;
    words.extend(typed.into_iter().skip(1));
    Ok(words)
}

/// Refuses keys of the file, each with its place, that exclude each other or lack a third.
fn check_together(command: &Command, typed: &[OsString], taken: &[(&Arg, String)]) -> Result<()> {
    let long = |flag: &Arg| flag.get_long().unwrap_or_default().to_owned();
    for (i, (flag, place)) in taken.iter().enumerate() {
        if let Some((other, others)) = taken[..i].iter().find(|(other, _)| excludes(command, flag, other)) {
            let expected = format!("one of {} and {}", long(other), long(flag));
            return Err(Error::usage("--config", expected, format!("{others} and {place}"), "take one of the two out"));
        }
        let needed = NEEDS.iter().find(|(name, _)| *name == long(flag)).map(|(_, needed)| *needed);
        let Some(needed) = needed.and_then(|name| settings(command).find(|other| other.get_long() == Some(name))) else { continue };
        if !is_typed(typed, needed) && !taken.iter().any(|(other, _)| other.get_id() == needed.get_id()) {
            let needed = long(needed);
            return Err(Error::usage(
                "--config",
                format!("{needed} beside {}", long(flag)),
                place.clone(),
                format!("add {needed}, or take it out"),
            ));
        }
    }
    Ok(())
}

/// A place in the file, for a message.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn of(&self, at: usize) -> String {
        let line = 1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        format!("{}, line {line}", self.path.display())
    }
}

fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|flag| flag.get_long().is_some_and(|name| !NO_SETTINGS.contains(&name)))
}

/// The words that can be flags: those before a bare `--`.
fn flags(typed: &[OsString]) -> impl Iterator<Item = (usize, &OsStr)> {
    typed.iter().enumerate().skip(1).map(|(i, word)| (i, word.as_os_str())).take_while(|(_, word)| *word != "--")
}

fn config_path(typed: &[OsString]) -> Option<PathBuf> {
    flags(typed).find_map(|(i, word)| match word.to_str().and_then(|word| word.strip_prefix("--config")) {
        Some("") => typed.get(i + 1).map(PathBuf::from),
        Some(rest) => rest.strip_prefix('=').map(PathBuf::from),
        None => None,
    })
}

fn is_typed(typed: &[OsString], flag: &Arg) -> bool {
    let Some(name) = flag.get_long() else { return false };
    let starts = |word: &str| word.strip_prefix("--").and_then(|word| word.strip_prefix(name)).is_some_and(ends);
    flags(typed).any(|(_, word)| starts(&word.to_string_lossy()))
}

/// What follows a flag's name within its word.
fn ends(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('=')
}

fn excludes(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |from: &Arg, to: &Arg| command.get_arg_conflicts_with(from).iter().any(|flag| flag.get_id() == to.get_id());
    names(one, other) || names(other, one)
}

fn unknown(name: &str, value: &DeValue<'_>, place: &str, command: &Command) -> Error {
    let refuse = |expected: &str, remedy: &str| Error::usage("--config", expected, format!("{name} ({place})"), remedy);
    if NO_SETTINGS.contains(&name) {
        return refuse("settings of a run", "that one can only be typed: take it out");
    }
    let is_section = match value {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_))),
        _ => false,
    };
    if is_section {
        return refuse("a flat list of flags, without sections", "take the section's heading out");
    }
    let known = settings(command).filter_map(Arg::get_long);
    let nearest = known.min_by_key(|known| strsim::osa_distance(known, name)).unwrap_or_default();
    refuse("flags of train by their long names", &format!("the nearest is {nearest}"))
}

/// The flag as a word of a command line; none for a switch that is off. What was expected, where the value is of another type.
fn word(flag: &Arg, value: &DeValue<'_>) -> std::result::Result<Option<OsString>, &'static str> {
    let name = flag.get_long().unwrap_or_default();
    if matches!(flag.get_action(), ArgAction::SetTrue) {
        let on = value.as_bool().ok_or("true or false")?;
        return Ok(on.then(|| format!("--{name}").into()));
    }
    let kind = flag.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|each| kind == *each);
    let whole = is(&[TypeId::of::<u64>(), TypeId::of::<usize>(), TypeId::of::<u32>()]);
    let number = is(&[TypeId::of::<f64>(), TypeId::of::<f32>()]);
    let single: &dyn Fn(&DeValue<'_>) -> Option<String> = match (whole, number) {
        (true, _) => &whole_number,
        (_, true) => &any_number,
        _ => &|value| value.as_str().map(str::to_owned),
    };
    let list = flag.get_value_delimiter().is_some();
    let text = match value {
        DeValue::Array(items) if list || TEXT_LISTS.contains(&name) => {
            let items: Option<Vec<String>> = items.iter().map(|item| single(item.get_ref())).collect();
            items.filter(|items| !items.is_empty()).map(|items| items.join(","))
        }
        DeValue::String(text) if list => {
            text.split(',').all(|item| !whole || item.trim().parse::<u64>().is_ok()).then(|| text.replace(' ', ""))
        }
        value => single(value).filter(|_| !list),
    };
    let expected = match (list, whole, number) {
        (true, true, _) => "a list of whole numbers of at least 0",
        (true, ..) => "a list",
        (_, true, _) => "a whole number of at least 0",
        (_, _, true) => "a number",
        _ => "a string",
    };
    text.map(|text| Some(format!("--{name}={text}").into())).ok_or(expected)
}

fn whole_number(value: &DeValue<'_>) -> Option<String> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
}

fn any_number(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string()),
        _ => None,
    }
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        other => format!("a value of type {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    /// The line with `FILE` replaced by a file of `text`.
    fn merged(text: &str, line: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let name = file.path().display().to_string();
        let typed = line.replace("FILE", &name).split_whitespace().map(OsString::from).collect();
        let words = with_file(typed, &command())?;
        Ok(words.into_iter().map(|word| word.into_string().unwrap()).filter(|word| !word.contains(&name) && word != "--config").collect())
    }

    #[test]
    fn every_type_becomes_a_word() {
        let text = "steps = 1_000\nlearning-rate = 5e-4\nclip = 5\nquiet = true\nresume = false\ninit-layers = [0, 2]\nout = \"my student\"\n\
            seed = 18446744073709551615\ninit-from = \"m\"\nloss = [\"ce=5\", \"mlm=2\"]";
        let mut words = merged(text, "train --config FILE").unwrap();
        words.sort();
        let expected =
            ["--clip=5", "--init-from=m", "--init-layers=0,2", "--learning-rate=5e-4", "--loss=ce=5,mlm=2", "--out=my student", "--quiet"];
        assert_eq!(words, [&expected[..], &["--seed=18446744073709551615", "--steps=1000", "train"]].concat());
        assert_eq!(
            merged("init-layers = \"0, 2\"", "train --config=FILE --init-from m").unwrap(),
            ["train", "--init-layers=0,2", "--init-from", "m"]
        );
    }

    #[test]
    fn what_is_typed_wins_also_over_what_it_excludes() {
        let line = |text: &str, line: &str| merged(text, line).unwrap().join(" ");
        assert_eq!(line("steps = 5\nseed = 1", "train --config FILE --epochs 2"), "train --seed=1 --epochs 2");
        assert_eq!(line("epochs = 5", "train --steps=2 --config FILE"), "train --steps=2");
        assert_eq!(line("eval-fraction = 0.1", "train --config FILE --eval-cache e"), "train --eval-cache e");
        assert_eq!(line("seed = 5", "train --config FILE --seed 6"), "train --seed 6");
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_refused_by_line() {
        let refused = |text: &str| {
            let error = merged(text, "train --config FILE").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let error = refused("seed = 1\n\nlearnig-rate = 1");
        assert!(error.contains("learnig-rate (") && error.contains("line 3") && error.contains("nearest is learning-rate"), "{error}");
        for (text, expected, found) in [
            ("steps = \"many\"", "a whole number of at least 0", "the string \"many\""),
            ("steps = -3", "a whole number of at least 0", "-3"),
            ("steps = 2.5", "a whole number of at least 0", "2.5"),
            ("clip = true", "a number", "true"),
            ("quiet = 1", "true or false", "1"),
            ("cache = [\"a\"]", "a string", "a value of type array"),
            ("init-layers = [1, \"x\"]", "a list of whole numbers of at least 0", "array"),
            ("init-layers = \"1,x\"", "a list of whole numbers of at least 0", "1,x"),
        ] {
            let (error, key) = (refused(text), text.split(' ').next().unwrap());
            assert!(error.contains(&format!("{key}: expected {expected}, found ")) && error.contains(found), "{error}");
        }
        let own = refused("config = \"other\"");
        assert!(own.contains("config (") && own.contains("can only be typed") && !own.contains("nearest"), "{own}");
        for sections in ["[optimisation]\nsteps = 3", "optimisation.steps = 3", "[[optimisation]]\nsteps = 3"] {
            let section = refused(sections);
            assert!(section.contains("without sections") && section.contains("optimisation (") && section.contains("line 1"), "{section}");
        }
        for (text, words) in [
            ("steps = 3\nepochs = 2", ["steps (", "epochs (", "line 1", "line 2", "one of"]),
            ("eval-cache = \"e\"\neval-fraction = 0.1", ["eval-cache (", "eval-fraction (", "line 1", "line 2", "one of"]),
            ("seed = 1\ninit-layers = [0]", ["init-layers (", "line 2", "init-from beside", "add init-from", "--config"]),
        ] {
            let message = refused(text);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        assert!(merged("init-layers = [0]", "train --config FILE --init-from m").is_ok());
        assert!(merged("steps = 3\nepochs = 2", "train --config FILE --epochs 2").is_ok());
        assert!(refused("steps = ").contains("line 1"));
        assert!(with_file(["train", "--config", "nowhere.toml"].map(OsString::from).to_vec(), &command()).is_err());
    }
}
