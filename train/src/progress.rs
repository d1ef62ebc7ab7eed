//! What a person watches while it runs: a bar in a terminal, plain lines elsewhere, on standard error.

use crate::metrics::{EvaluationMetrics, StepMetrics};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Longest line of text under the bar: a terminal of 80 columns shows it whole.
const LINE_CHARACTERS: usize = 78;

/// The progress of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    total_steps: u64,
}

impl Progress {
    /// Nothing but silence where `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { bar: None, quiet, total_steps: 0 }
    }

    /// Training begins: `total_steps` are to be done.
    pub fn start(&mut self, total_steps: u64) {
        self.total_steps = total_steps;
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        let template = "{wide_bar} step {pos}/{len} {percent}%{prefix}, {eta} left\n{msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message("loss: shown with the first logged step");
        self.bar = Some(bar);
    }

    /// A step is done.
    pub fn advance(&self, step: u64) {
        if let Some(bar) = &self.bar {
            let first = bar.position() == 0;
            bar.set_position(step);
            if first {
                // A run that goes on has not made the steps before it in no time.
                bar.reset_eta();
            }
        }
    }

    /// A logged line: the bar's text in a terminal, a line elsewhere.
    pub fn step(&self, line: &StepMetrics) {
        let pace = format!("{:.0} tokens/s, rate {:.1e}", line.tokens_per_second, line.learning_rate);
        let parts = line.parts.iter().map(|(part, value)| format!("{} {value:.3}", part.name()));
        let mut losses: Vec<String> = std::iter::once(format!("loss {:.3}", line.loss)).chain(parts).collect();
        if losses.len() == 1 {
            losses.push("no part of it has a weight here".to_owned());
        }
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(format!(", {pace}"));
                bar.set_message(in_lines(&losses));
            }
            None => {
                let numbers = format!("{pace}, {}", losses.join(", "));
                let left = line.elapsed_seconds / line.step.max(1) as f64 * self.total_steps.saturating_sub(line.step) as f64;
                let share = 100 * line.step / self.total_steps.max(1);
                self.say(&format!("step {}/{} {share}%: {numbers}, about {left:.0} s left", line.step, self.total_steps));
            }
        }
    }

    /// An evaluation.
    pub fn evaluation(&self, line: &EvaluationMetrics) {
        self.say(&evaluation_line(line));
    }

    /// Training has ended: the bar goes.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A line of its own, above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            // A reader of these lines that has gone away must not end the training.
            None if !self.quiet => drop(writeln!(std::io::stderr(), "{line}")),
            None => {}
        }
    }
}

/// The figures that have a place in a line, the teacher's own in brackets, and what they are of.
fn evaluation_line(line: &EvaluationMetrics) -> String {
    let told = line.evaluation.figures().into_iter().filter_map(|figure| {
        let (name, unit) = figure.said?;
        let teacher = figure.teacher.map_or(String::new(), |teacher| format!(" (teacher {teacher:.4}{unit})"));
        Some(format!("{name} {:.4}{unit}{teacher}", figure.student))
    });
    let (count, what) = line.evaluation.count();
    format!("evaluation after step {}: {} on {count} {what}", line.step, told.collect::<Vec<_>>().join(", "))
}

/// Joins `items` by commas, in lines of at most [`LINE_CHARACTERS`].
fn in_lines(items: &[String]) -> String {
    let (mut text, mut length) = (String::new(), 0);
    for item in items {
        let added = item.len() + if length > 0 { 2 } else { 0 };
        if length > 0 && length + added > LINE_CHARACTERS {
            text.push_str(",\n");
            length = 0;
        }
        if length > 0 {
            text.push_str(", ");
            length += 2;
        }
        text.push_str(item);
        length += item.len();
    }
    text
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set where the test below runs itself as a child.
    const CHILD: &str = "TRAIN_PROGRESS_TEST_CHILD";

    #[test]
    fn all_parts_of_the_loss_fit_a_narrow_terminal() {
        let items = crate::loss::Part::ALL.map(|part| format!("{} 12345.678", part.name()));
        let text = in_lines(&items);
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.len() < 80), "{text}");
        assert_eq!(text.replace('\n', " "), items.join(", "));
        assert_eq!((in_lines(&[]), in_lines(&["a".to_owned()])), (String::new(), "a".to_owned()));
    }

    #[test]
    fn an_evaluation_is_told_in_a_line() {
        let measures = crate::evaluate::Measures::MaskedLm(crate::evaluate::masked_lm::MaskedLm {
            masked_positions: 7,
            student_teacher_top1: 0.9,
            kl_nats: 0.25,
            teacher_gold_top1: 0.75,
            student_gold_top1: 0.5,
        });
        let evaluation = crate::evaluate::Evaluation { sequences: 2, measures };
        let line = EvaluationMetrics { step: 3, epoch: 1.0, evaluation, evaluation_seconds: 0.0, elapsed_seconds: 0.0 };
        let said = "agreement with the teacher 0.9000, divergence 0.2500 nats, gold 0.5000 (teacher 0.7500) on 7 masked positions";
        assert_eq!(evaluation_line(&line), format!("evaluation after step 3: {said}"));
    }

    #[test]
    fn a_line_that_nobody_reads_does_not_end_the_run() {
        if std::env::var_os(CHILD).is_some() {
            Progress::new(false).say("to a closed pipe");
            return;
        }
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "progress::tests::a_line_that_nobody_reads_does_not_end_the_run", "--nocapture"]).env(CHILD, "1");
        let ended = child.stderr(closed).stdout(std::process::Stdio::null()).status().unwrap();
        assert!(ended.success(), "{ended}");
    }
}
