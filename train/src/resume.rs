//! Where a run begins: at its first step, or at the newest checkpoint that an earlier one has left.

use crate::batcher::{Duration, StepArithmetic};
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::config::Config;
use crate::metrics::MetricsLog;
use crate::optim::Moments;
use crate::output::{Occupancy, RunRecord, refuse_other_settings};
use crate::progress::Progress;
use crate::student::Student;
use crate::trainer::{RunState, Start, trainable};
use crate::{hidden_objective, initial_student};
use logitcache::error::{Error, Result};
use std::ffi::OsString;

/// The checkpoint to go on from; none where the run begins.
///
/// # Errors
/// See [`Checkpoints::newest`]; [`Error::Usage`] where the checkpoint is another run's, where more steps are behind it than are asked for, or
/// where there is none and one is needed.
pub(crate) fn checkpoint_to_go_on_from(
    config: &Config,
    checkpoints: &Checkpoints,
    occupancy: Occupancy,
    plan: &StepArithmetic,
    progress: &Progress,
) -> Result<Option<Checkpoint>> {
    let out = config.out.display();
    let Some(checkpoint) = checkpoints.newest()? else {
        return match occupancy {
            Occupancy::Finished { steps, .. } => {
                let found = format!("a finished student of {steps} steps and no checkpoint in {out}");
                Err(Error::usage(length_flag(config), "the length it was trained for, or a checkpoint", found, "choose another --out"))
            }
            _ if config.resume => {
                let found = format!("none in {out}");
                Err(Error::usage("--resume", "a checkpoint to go on from", found, "leave it out to train from the start"))
            }
            Occupancy::Unfinished => {
                progress.say(&format!("{out} holds a run of these settings that ended before its first checkpoint: it starts again"));
                Ok(None)
            }
            Occupancy::Empty => Ok(None),
        };
    };
    let state = checkpoint.state();
    refuse_other_settings(checkpoint.path(), &state.settings, &config.settings).map_err(|error| config.name_files(error))?;
    let done = state.run.step;
    if done > plan.steps {
        let expected = format!("at least the {done} steps behind {}", checkpoint.path().display());
        return Err(Error::usage(length_flag(config), expected, format!("{} steps", plan.steps), "train longer, or choose another --out"));
    }
    progress.say(&format!("going on from {}, after step {done} of {}", checkpoint.path().display(), plan.steps));
    if state.threads != config.threads {
        let (was, now) = (state.threads, config.threads);
        progress.say(&format!("--threads was {was}, now {now}: the last bits may differ from those of a run that never stopped"));
    }
    let device = config.placement.to_string();
    if state.device != device {
        let was = &state.device;
        let masks = "the last bits, and what dropout drops, differ from those of a run that never stopped";
        progress.say(&format!("--device was {was}, now {device}: {masks}"));
    }
    for name in ["epochs", "steps"].into_iter().filter(|name| state.settings.get(*name) != config.settings.get(*name)) {
        let said = |value: Option<&String>| value.cloned().unwrap_or("not given".to_owned());
        let (was, now) = (said(state.settings.get(name)), said(config.settings.get(name)));
        progress
            .say(&format!("--{name} was {was}, now {now}: from here on the learning rate and the weights of --loss follow the new length"));
    }
    Ok(Some(checkpoint))
}

fn length_flag(config: &Config) -> &'static str {
    if matches!(config.duration, Duration::Steps(_)) { "--steps" } else { "--epochs" }
}

/// A run at its first step, with a new log.
///
/// # Errors
/// First weights that cannot be read, a log that cannot be made.
pub(crate) fn from_the_start(config: &Config) -> Result<(Student, Start, MetricsLog)> {
    let student = initial_student(config)?;
    student.set_precision(config.precision);
    let hidden = hidden_objective(config)?;
    let moments = Moments::zeros(&trainable(&student, &hidden));
    // Before the log: a directory that holds a log and does not say whose is taken for another's.
    RunRecord::new(&config.settings, 0, false).write(&config.out)?;
    Ok((student, Start { state: RunState::default(), hidden, moments }, MetricsLog::create(&config.out)?))
}

/// A run as `checkpoint` has it, with its log cut back to that moment.
///
/// # Errors
/// Parameters that are not those of the run, a log that is too short.
pub(crate) fn from_checkpoint(config: &Config, checkpoint: &Checkpoint) -> Result<(Student, Start, MetricsLog)> {
    let student = checkpoint.student(&config.student)?;
    student.set_precision(config.precision);
    let hidden = hidden_objective(config)?;
    checkpoint.restore_projections(hidden.parameters())?;
    let moments = checkpoint.moments(&trainable(&student, &hidden))?;
    let log = MetricsLog::resume(&config.out, checkpoint.state().metrics_bytes)?;
    RunRecord::new(&config.settings, checkpoint.state().run.step, false).write(&config.out)?;
    Ok((student, Start { state: checkpoint.state().run.clone(), hidden, moments }, log))
}

/// How to continue after a signal.
pub(crate) fn advice(config: &Config, checkpoints: &Checkpoints, done: u64, steps: u64) -> String {
    let newest = checkpoints.list().ok().and_then(|mut all| all.pop());
    let place = newest.map_or(config.out.display().to_string(), |(_, path)| path.display().to_string());
    format!("the state after step {done} of {steps} is in {place}, itself a student's directory; the same command goes on from there")
}

/// A command line as a POSIX shell takes it; none where an argument is not UTF-8.
pub fn as_typed(arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let quoted = arguments.map(|argument| {
        let text = argument.into_string().ok()?;
        Some(if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) })
    });
    quoted.collect::<Option<Vec<_>>>().map(|words| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_quoted_where_a_shell_needs_it() {
        let words = ["train", "--out", "it's here", "", "a=1,b=2"].map(OsString::from);
        let typed = as_typed(words.iter().cloned()).unwrap();
        assert_eq!(typed, r"train --out 'it'\''s here' '' a=1,b=2");
        let echoed = std::process::Command::new("sh").arg("-c").arg(format!("printf '%s\\n' {typed}")).output().unwrap();
        assert_eq!(String::from_utf8(echoed.stdout).unwrap(), "train\n--out\nit's here\n\na=1,b=2\n");
    }
}
