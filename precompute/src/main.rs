//! `precompute`: ask a teacher once. Parses, runs, prints the summary or the chain of causes, and leaves with the error's exit code.

use logitcache::error::Error;
use precompute::cli::{Arguments, Request};
use precompute::compare;
use precompute::config::Config;
use precompute::estimate;
use precompute::pipeline::{self, Stop};
use precompute::progress::Progress;
use precompute::speed;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn main() -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let ended = match precompute::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit()) {
        Request::Precompute(arguments) => run(*arguments, cores),
        Request::Compare(arguments) => compare::run(&arguments).map(|comparison| print(&comparison)).map_err(Into::into),
        Request::Time(arguments) => speed::run(&arguments, cores).map(|speed| print(&speed)).map_err(Into::into),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error is no reason for another exit code.
            let _ = writeln!(std::io::stderr(), "{}", story(&error));
            error.downcast_ref::<Error>().map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
        }
    }
}

fn run(arguments: Arguments, cores: usize) -> anyhow::Result<()> {
    let config = Config::check(arguments, cores)?;
    let stop = Stop::default();
    listen(&stop)?;
    let mut progress = Progress::new(config.quiet);
    match (&config.out, config.dry_run) {
        (Some(directory), false) => print(&pipeline::run(&config, directory, &stop, &mut progress)?),
        _ => print(&estimate::estimate(&config, &std::env::temp_dir(), &stop, &mut progress)?),
    }
    Ok(())
}

/// The first signal asks the run to stop; the second one ends the process at once.
fn listen(stop: &Stop) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the shutdown looks at the flag before the same signal sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
        flag::register(signal, Arc::clone(&asked))?;
        flag::register_usize(signal, stop.cell(), signal as usize)?;
    }
    Ok(())
}

/// A reader that has gone away, such as `head`, is no error.
fn print(report: &dyn Display) {
    let _ = writeln!(std::io::stdout().lock(), "{report}");
}

/// The error and its causes, a line each.
fn story(error: &anyhow::Error) -> String {
    let mut story = format!("error: {error}");
    for cause in error.chain().skip(1) {
        story.push_str(&format!("\n  caused by: {cause}"));
    }
    story
}
