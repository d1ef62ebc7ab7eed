//! The command line: what was typed, one struct per subject and one per subcommand.
//!
//! `train [FLAGS]` trains; `train export`, `train evaluate` and `train report` do something with a student that is there. A subcommand and the
//! flags of a training do not mix. [`crate::config::Config::check`] says what a training's flags mean.

mod config_file;
mod subcommands;
mod training;

pub use subcommands::{EvaluateArguments, ExportArguments, ReportArguments};
pub use training::{
    Arguments, CheckpointArguments, DataArguments, MachineArguments, ObjectiveArguments, OptimisationArguments, StudentArguments,
};

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Subcommand};
use logitcache::error::Error;
use std::ffi::OsString;
use subcommands::Subcommands;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Request {
    /// Train a student.
    Train(Box<Arguments>),
    /// Write a student as an ONNX graph.
    Export(ExportArguments),
    /// Measure a student on a cache.
    Evaluate(EvaluateArguments),
    /// Draw a student's report anew.
    Report(ReportArguments),
}

/// Reads a command line, whose first word is the program's name.
///
/// # Errors
/// [`Refusal::Parser`] for a line that cannot be parsed, and for `--help` and `--version`; [`Refusal::File`] for a `--config` file that cannot be
/// used.
pub fn parse(typed: impl IntoIterator<Item = OsString>) -> Result<Request, Refusal> {
    let mut command = command();
    // Relations between flags are known once it is built.
    command.build();
    let typed = config_file::with_file(typed.into_iter().collect(), &command).map_err(Refusal::File)?;
    command.try_get_matches_from(typed).and_then(|matches| request(&matches)).map_err(Refusal::Parser)
}

/// Why a command line was not read.
#[derive(Debug)]
pub enum Refusal {
    /// The parser's own words, which print themselves with the usage.
    Parser(clap::Error),
    /// The `--config` file.
    File(Error),
}

/// The flags of a training, with the subcommands beside them.
fn command() -> Command {
    Subcommands::augment_subcommands(Arguments::command()).args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
}

fn request(matches: &ArgMatches) -> Result<Request, clap::Error> {
    if matches.subcommand().is_none() {
        return Ok(Request::Train(Box::new(Arguments::from_arg_matches(matches)?)));
    }
    Ok(match Subcommands::from_arg_matches(matches)? {
        Subcommands::Export(arguments) => Request::Export(arguments),
        Subcommands::Evaluate(arguments) => Request::Evaluate(arguments),
        Subcommands::Report(arguments) => Request::Report(arguments),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, clap::Error> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|refusal| match refusal {
            Refusal::Parser(error) => error,
            Refusal::File(error) => panic!("{error}"),
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_alone_train_and_a_subcommand_does_something_else() {
        assert!(matches!(parsed("train --cache c --out o").unwrap(), Request::Train(_)));
        let Request::Export(export) = parsed("train export --student s --onnx").unwrap() else { panic!("an export") };
        assert!(export.onnx && export.out.is_none());
        assert!(matches!(parsed("train evaluate --student s --cache c --threads 2").unwrap(), Request::Evaluate(_)));
        assert!(matches!(parsed("train report --student s").unwrap(), Request::Report(_)));
        assert!(parsed("train --cache c report --student s").is_err(), "the two do not mix");
        assert!(parsed("train export --student s").is_err(), "an export without a format");
    }

    #[test]
    fn help_lists_the_subcommands_and_nothing_typed_is_an_error() {
        let help = parsed("train --help").unwrap_err();
        assert_eq!(help.exit_code(), 0);
        for name in ["export", "evaluate", "report"] {
            assert!(help.to_string().contains(&format!("\n  {name} ")), "{help}");
        }
        let nothing = parsed("train").unwrap_err();
        assert_eq!(nothing.exit_code(), 2);
        assert!(nothing.to_string().contains("--cache <DIR>"), "{nothing}");
    }
}
