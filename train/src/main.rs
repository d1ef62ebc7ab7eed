//! The `train` program: parse, check, run, say how it ended.

use anyhow::Context;
use logitcache::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use train::cli::{Arguments, Refusal, Request};
use train::config::Config;
use train::resume::as_typed;
use train::trainer::StopSignal;

/// Activations of a step are large and live briefly; an allocator that keeps freed pages saves clearing them again and again
/// (see [`train::allocator`]).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    train::allocator::keep_freed_pages();
    // candle adds gradients on a pool of its own, whose threads spin beside ours; our operations have their own threads.
    // SAFETY: no other thread exists yet that could read the environment.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let told = match &train::cli::parse(std::env::args_os()) {
        Err(Refusal::Parser(error)) => error.exit(),
        Err(Refusal::File(error)) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return ExitCode::from(error.exit_code());
        }
        Ok(request) => carry_out(request),
    };
    match told {
        Ok(table) => {
            // A reader that has gone away has seen enough.
            let _ = std::io::stdout().write_all(table.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Where nobody can read the error, the exit code says it.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            let known = error.downcast_ref::<Error>();
            if let (Some(Error::Interrupted { .. }), Some(command)) = (known, as_typed(std::env::args_os())) {
                let _ = writeln!(std::io::stderr(), "{command}");
            }
            let code = known.map_or(1, Error::exit_code);
            ExitCode::from(code)
        }
    }
}

fn carry_out(request: &Request) -> anyhow::Result<String> {
    match request {
        Request::Train(arguments) => run(arguments),
        Request::Export(arguments) => Ok(train::export_onnx::run(arguments)?),
        Request::Evaluate(arguments) => Ok(train::evaluate_student::run(arguments)?),
        Request::Report(arguments) => Ok(train::report_again::run(arguments)?),
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let config = Config::check(arguments)?;
    let stop = StopSignal::default();
    let second = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first signal is left for the loop to find; where one has been left already, the second ends the process at once.
        let place = stop.place();
        let register = || -> std::io::Result<()> {
            signal_hook::flag::register_conditional_default(signal, second.clone())?;
            signal_hook::flag::register(signal, second.clone())?;
            signal_hook::flag::register_usize(signal, place, signal as usize)?;
            Ok(())
        };
        register().context("cannot watch for signals")?;
    }
    Ok(train::run(&config, &stop)?)
}
