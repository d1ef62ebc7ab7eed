//! `--loss`: which parts, how much each counts and in which manner.
//!
//! A comma list of `NAME=WEIGHT[:OPTION=VALUE]...`. A part that is not named, or whose weight is 0 throughout, is not part of the objective.

use super::weight_schedule::WeightSchedule;
use super::{PARTS, Part, Tail, Weights};
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use std::fmt;
use std::str::FromStr;

/// beta of `jsd` where nothing is said.
const DEFAULT_BETA: f64 = 0.5;

/// The largest weight; beyond it nothing but single precision's end is near.
const LARGEST_WEIGHT: f64 = 1e6;

/// Shares of a warm-up-stable-decay schedule where nothing is said.
const DEFAULT_WARMUP: f64 = 0.1;
const DEFAULT_DECAY: f64 = 0.2;

/// A part as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Term {
    weight: f64,
    schedule: WeightSchedule,
    tail: Tail,
    beta: f64,
}

impl Term {
    fn of_weight(weight: f64) -> Self {
        Self { weight, schedule: WeightSchedule::Constant, tail: Tail::Ghost, beta: DEFAULT_BETA }
    }

    /// Whether it weighs nothing at any step.
    fn is_idle(&self) -> bool {
        self.weight == 0.0
            && match self.schedule {
                WeightSchedule::Constant => true,
                WeightSchedule::Linear { end } => end == 0.0,
                WeightSchedule::Wsd { end, decay, .. } => end == 0.0 || decay == 0.0,
            }
    }
}

/// The parts of a loss. Made by parsing; the default is `ce=5,mlm=2,cos=1`, as Sanh et al. (2019) have it. [`fmt::Display`] gives a text
/// that parses to the same objective, with every option that is not its default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    terms: [Option<Term>; PARTS],
}

impl Default for Objective {
    fn default() -> Self {
        let mut terms = [None; PARTS];
        for (part, weight) in [(Part::Ce, 5.0), (Part::Mlm, 2.0), (Part::Cos, 1.0)] {
            terms[part as usize] = Some(Term::of_weight(weight));
        }
        Self { terms }
    }
}

impl Objective {
    /// Whether `part` counts at any step.
    pub fn has(&self, part: Part) -> bool {
        self.terms[part as usize].is_some()
    }

    /// The parts that count at any step, in the order of [`Part::ALL`].
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        Part::ALL.into_iter().filter(|part| self.has(*part))
    }

    /// The weights of the step that follows `step` completed ones of `steps`.
    pub fn weights_at(&self, step: u64, steps: u64) -> Weights {
        let weight = |index: usize| self.terms[index].map_or(0.0, |term| term.schedule.weight_at(term.weight, step, steps));
        Weights(std::array::from_fn(weight))
    }

    /// What `part` makes of the probability outside the stored ids.
    pub fn tail(&self, part: Part) -> Tail {
        self.terms[part as usize].map_or(Tail::Ghost, |term| term.tail)
    }

    /// beta of `jsd`.
    pub fn beta(&self) -> f64 {
        self.terms[Part::Jsd as usize].map_or(DEFAULT_BETA, |term| term.beta)
    }

    /// What a loss of hidden states alone leaves undone for a student of `task`; none where a part reads its answers.
    pub fn head_note(&self, task: Task) -> Option<String> {
        let named = self.parts().map(Part::name).collect::<Vec<_>>().join(" and ");
        let hidden = self.parts().all(Part::is_of_hidden);
        let (undone, parts) = match task {
            Task::MaskedLm => ("leaves the vocabulary head at its first weights, so that its logits are not taught", "ce or mlm"),
            Task::SentenceEmbedding => ("teaches the states and not the vectors", "embedding-cos"),
            _ => ("leaves the head at its first weights, so that its logits are not taught", "ce, logit-mse or gold"),
        };
        hidden.then(|| format!("{named} alone {undone}: add {parts} to --loss"))
    }

    /// What the parts make of a cache with `k` of `vocabulary` ids, a line for each that is biased there; none where every id is stored.
    pub fn truncation_notes(&self, k: usize, vocabulary: usize) -> Vec<String> {
        if k >= vocabulary {
            return Vec::new();
        }
        let note = |part: Part| {
            let (subject, bias) = match part {
                Part::Ce | Part::ReverseKl | Part::Jsd | Part::Tvd => {
                    let tail = self.tail(part);
                    (format!("{} with tail {}", part.name(), tail.name()), tail.bias(part)?)
                }
                Part::LogitMse => (part.name().to_owned(), "it leaves the logits outside the stored ids as they are"),
                _ => return None,
            };
            Some(format!("{subject} is biased where ids are left out: {bias} (k = {k} of {vocabulary}; see train/OBJECTIVES.md)"))
        };
        self.parts().filter_map(note).collect()
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for part in self.parts() {
            let Some(term) = self.terms[part as usize] else { continue };
            write!(formatter, "{comma}{}={}", part.name(), term.weight)?;
            comma = ",";
            if term.tail != Tail::Ghost {
                write!(formatter, ":tail={}", term.tail.name())?;
            }
            if term.beta != DEFAULT_BETA {
                write!(formatter, ":beta={}", term.beta)?;
            }
            match term.schedule {
                WeightSchedule::Constant => {}
                WeightSchedule::Linear { end } => write!(formatter, ":schedule=linear:end={end}")?,
                WeightSchedule::Wsd { warmup, decay, end } => write!(formatter, ":schedule=wsd:warmup={warmup}:decay={decay}:end={end}")?,
            }
        }
        Ok(())
    }
}

fn refuse(found: impl Into<String>) -> Error {
    let names = Part::ALL.map(Part::name).join(", ");
    let expected = format!("parts {names} with weights from 0 to {LARGEST_WEIGHT}, one of them above 0");
    Error::usage("--loss", expected, found, "write for example --loss ce=5,mlm=2,cos=1")
}

/// A refusal of an option of a part.
fn refuse_option(part: Part, expected: impl Into<String>, found: impl Into<String>) -> Error {
    let expected = format!("{} with {}", part.name(), expected.into());
    let example = match part {
        Part::Jsd => "jsd=1:beta=0.25:tail=ghost".to_owned(),
        _ if has_tail(part) => format!("{}=5:tail=ghost:schedule=linear:end=1", part.name()),
        _ => format!("{}=1:schedule=linear:end=0.5", part.name()),
    };
    Error::usage("--loss", expected, found, format!("write for example --loss {example}"))
}

/// Whether a part is of probabilities, some of which lie outside the stored ids.
fn has_tail(part: Part) -> bool {
    matches!(part, Part::Ce | Part::ReverseKl | Part::Jsd | Part::Tvd)
}

/// The options as they were typed.
#[derive(Default)]
struct Typed<'a> {
    tail: Option<&'a str>,
    beta: Option<&'a str>,
    schedule: Option<&'a str>,
    end: Option<&'a str>,
    warmup: Option<&'a str>,
    decay: Option<&'a str>,
}

impl<'a> Typed<'a> {
    fn read(part: Part, options: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut typed = Self::default();
        for option in options {
            let own = match part {
                Part::Jsd => "tail, beta, ",
                _ if has_tail(part) => "tail, ",
                _ => "",
            };
            let expected = format!("options {own}schedule, end, warmup and decay, each once and with a value");
            let (name, value) = option.split_once('=').ok_or_else(|| refuse_option(part, &*expected, format!("{option:?}")))?;
            let place = match name.trim() {
                "tail" => &mut typed.tail,
                "beta" => &mut typed.beta,
                "schedule" => &mut typed.schedule,
                "end" => &mut typed.end,
                "warmup" => &mut typed.warmup,
                "decay" => &mut typed.decay,
                other => return Err(refuse_option(part, expected, format!("the option {other:?}"))),
            };
            if place.replace(value.trim()).is_some() {
                return Err(refuse_option(part, expected, format!("{} twice", name.trim())));
            }
        }
        Ok(typed)
    }

    fn schedule(&self, part: Part) -> Result<WeightSchedule> {
        let number = |name: &str, typed: Option<&str>, default: f64, largest: f64| {
            let Some(text) = typed else { return Ok(default) };
            let value = text.parse::<f64>().ok().filter(|value| (0.0..=largest).contains(value));
            let what = if largest > 1.0 { "a weight" } else { "a share" };
            value.ok_or_else(|| refuse_option(part, format!("{what} from 0 to {largest} as {name}"), text))
        };
        let end = number("end", self.end, 0.0, LARGEST_WEIGHT)?;
        let (warmup, decay) = (number("warmup", self.warmup, DEFAULT_WARMUP, 1.0)?, number("decay", self.decay, DEFAULT_DECAY, 1.0)?);
        let unused = |schedule: &str, options: [(&str, Option<&str>); 3]| match options.iter().find(|option| option.1.is_some()) {
            Some((name, _)) => Err(refuse_option(part, format!("no {name}, which schedule={schedule} does not use"), *name)),
            None => Ok(()),
        };
        match self.schedule.unwrap_or("constant") {
            "constant" => {
                unused("constant", [("end", self.end), ("warmup", self.warmup), ("decay", self.decay)])?;
                Ok(WeightSchedule::Constant)
            }
            "linear" => {
                unused("linear", [("warmup", self.warmup), ("decay", self.decay), ("decay", None)])?;
                Ok(WeightSchedule::Linear { end })
            }
            "wsd" if warmup + decay > 1.0 => {
                Err(refuse_option(part, "warmup and decay of at most 1 together", format!("warmup {warmup} and decay {decay}")))
            }
            "wsd" => Ok(WeightSchedule::Wsd { warmup, decay, end }),
            other => Err(refuse_option(part, "a schedule of constant, linear or wsd", other)),
        }
    }

    fn term(&self, part: Part, weight: f64) -> Result<Term> {
        let beta = match self.beta {
            None => DEFAULT_BETA,
            Some(text) if part != Part::Jsd => return Err(refuse_option(part, "no beta, which is an option of jsd", text)),
            Some(text) => {
                let value = text.parse::<f64>().ok().filter(|beta| (0.0..=1.0).contains(beta));
                value.ok_or_else(|| refuse_option(part, "a beta from 0 (forward) to 1 (reverse)", text))?
            }
        };
        let tail = match self.tail {
            None => Tail::Ghost,
            Some(text) if !has_tail(part) => {
                return Err(refuse_option(part, "no tail, which is an option of ce, reverse-kl, jsd and tvd", text));
            }
            Some(text) => {
                let names = || Tail::ALL.into_iter().filter(|tail| tail.refusal(part, beta).is_none()).map(Tail::name).collect::<Vec<_>>();
                let expected = || format!("a tail of {}", names().join(", "));
                let tail = Tail::ALL.into_iter().find(|tail| tail.name() == text);
                let tail = tail.ok_or_else(|| refuse_option(part, expected(), text))?;
                if let Some(reason) = tail.refusal(part, beta) {
                    return Err(refuse_option(part, expected(), format!("{text}, with which {reason}")));
                }
                tail
            }
        };
        Ok(Term { weight, schedule: self.schedule(part)?, tail, beta })
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut terms, mut named) = ([None; PARTS], [false; PARTS]);
        for item in text.split(',') {
            let mut pieces = item.split(':');
            let head = pieces.next().unwrap_or_default();
            let (name, value) = head.split_once('=').ok_or_else(|| refuse(format!("{head:?} without a weight")))?;
            let (name, value) = (name.trim(), value.trim());
            let part = Part::from_name(name).ok_or_else(|| refuse(format!("the part {name:?}")))?;
            let weight: f64 = value.parse().map_err(|_| refuse(format!("{value:?} as the weight of {name}")))?;
            if !(0.0..=LARGEST_WEIGHT).contains(&weight) {
                return Err(refuse(format!("{weight} as the weight of {name}")));
            }
            if std::mem::replace(&mut named[part as usize], true) {
                return Err(refuse(format!("{name} twice")));
            }
            let term = Typed::read(part, pieces)?.term(part, weight)?;
            terms[part as usize] = (!term.is_idle()).then_some(term);
        }
        if terms.iter().all(Option::is_none) {
            return Err(refuse(format!("{text:?}, which teaches nothing")));
        }
        Ok(Self { terms })
    }
}

#[cfg(test)]
mod tests;
