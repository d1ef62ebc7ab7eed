//! What the run says while it works: a bar in a terminal, plain lines elsewhere, nothing under `--quiet`. All of it on standard error.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Steps of the bar.
const BAR_STEPS: u64 = 1000;

/// How far the run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Position {
    /// The shard being made.
    pub shard: u32,
    /// Sequences asked by this run.
    pub sequences: u64,
    /// Tokens asked by this run, padding left out.
    pub tokens: u64,
    /// Share of the whole corpus, all passes, that is done, what earlier runs did included; in 0..=1.
    pub share: f64,
}

/// The voice of a run.
#[derive(Debug)]
pub struct Progress {
    mode: Mode,
    started: Instant,
    /// Share that was done when this run began.
    first_share: Option<f64>,
}

#[derive(Debug)]
enum Mode {
    Quiet,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// A bar where standard error is a terminal, lines where it is not.
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let mode = if quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bar(bar())
        } else {
            Mode::Lines { last: now }
        };
        Self { mode, started: now, first_share: None }
    }

    /// Something the user should know once.
    pub fn note(&self, line: &str) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Bar(bar) => bar.suspend(|| say(line)),
            Mode::Lines { .. } => say(line),
        }
    }

    /// The work begins now, with `share` of it done by earlier runs.
    pub fn begin(&mut self, share: f64) {
        self.started = Instant::now();
        self.first_share = Some(share);
    }

    /// The work has come to `position`.
    pub fn advance(&mut self, position: &Position) {
        let elapsed = self.started.elapsed();
        let first_share = self.first_share.unwrap_or(0.0);
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Bar(bar) => {
                bar.set_position((position.share * BAR_STEPS as f64) as u64);
                bar.set_message(describe(position, first_share, elapsed));
            }
            Mode::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                say(&describe(position, first_share, elapsed));
            }
            Mode::Lines { .. } => {}
        }
    }

    /// Takes the bar off the screen.
    pub fn end(&self) {
        if let Mode::Bar(bar) = &self.mode {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr_with_hz(5));
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// A closed standard error is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `shard 3, 41 %, 120 sequences/s, 10400 tokens/s, 2 minutes left`.
fn describe(position: &Position, first_share: f64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let gained = position.share - first_share;
    let left = if gained > 0.0 {
        let left = Duration::from_secs_f64((seconds / gained * (1.0 - position.share)).clamp(0.0, 1e9).round());
        format!("{} left", HumanDuration(left))
    } else {
        "time left unknown".to_owned()
    };
    format!(
        "shard {}, {:.0} %, {:.0} sequences/s, {:.0} tokens/s, {left}",
        position.shard,
        100.0 * position.share,
        position.sequences as f64 / seconds,
        position.tokens as f64 / seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_this_run_and_time_left_of_the_rest() {
        let position = Position { shard: 3, sequences: 200, tokens: 20_000, share: 0.6 };
        // 0.2 of the work took 10 s, so the 0.4 that is left takes 20 s.
        let line = describe(&position, 0.4, Duration::from_secs(10));
        assert_eq!(line, "shard 3, 60 %, 20 sequences/s, 2000 tokens/s, 20 seconds left");
    }

    #[test]
    fn before_anything_is_done_no_time_is_promised() {
        let line = describe(&Position::default(), 0.0, Duration::ZERO);
        assert!(line.ends_with("time left unknown"), "{line}");
    }
}
