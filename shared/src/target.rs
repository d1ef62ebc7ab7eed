//! What a cache promises about its targets: the part of a run that a student must know.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The kind of answer the teacher gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Logits over the vocabulary for every position; the input is masked.
    MaskedLm,
}

/// Which positions of a sequence carry targets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionRule {
    /// Every position that holds no special token.
    Tokens,
    /// The masked positions alone.
    Masked,
    /// Every position, special tokens included.
    All,
    /// The masked positions and, by a seeded draw, as many others as make up this share of the non-special ones; in (0, 1].
    Share(f32),
}

/// How logits and hidden states are rounded before they are stored (always in FLOAT columns).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Rounded to the nearest float16 value.
    Float16,
    /// As the teacher gave them.
    Float32,
}

/// The promise. Fields are private so that only a checked value exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedTargetSpec")]
pub struct TargetSpec {
    task: Task,
    vocabulary_size: u32,
    top_k: u32,
    temperatures: Vec<f32>,
    positions: PositionRule,
    hidden_layers: Vec<u32>,
    hidden_size: u32,
    token_type_ids: bool,
    precision: Precision,
}

/// The same fields, before [`TargetSpec::try_from`] has looked at them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedTargetSpec {
    /// The kind of answer.
    pub task: Task,
    /// The teacher's vocabulary: the length of a logits row.
    pub vocabulary_size: u32,
    /// Ids stored per position, 1 to `vocabulary_size`.
    pub top_k: u32,
    /// Temperatures of `log_z`, in stored order; the first one scales `top_logits`; 1 is among them.
    pub temperatures: Vec<f32>,
    /// Which positions carry targets.
    pub positions: PositionRule,
    /// Stored hidden states, strictly ascending; 0 is the embedding output.
    pub hidden_layers: Vec<u32>,
    /// Width of a hidden state; 0 where `hidden_layers` is empty.
    pub hidden_size: u32,
    /// Whether records carry segment ids.
    pub token_type_ids: bool,
    /// The rounding of logits and hidden states.
    pub precision: Precision,
}

impl TryFrom<UncheckedTargetSpec> for TargetSpec {
    type Error = Error;

    fn try_from(spec: UncheckedTargetSpec) -> Result<Self> {
        if spec.vocabulary_size == 0 {
            return Err(Error::invalid("vocabulary_size", "at least 1", "0"));
        }
        if spec.top_k == 0 || spec.top_k > spec.vocabulary_size {
            let expected = format!("1 to the vocabulary's {}", spec.vocabulary_size);
            return Err(Error::invalid("top_k", expected, spec.top_k.to_string()));
        }
        check_temperatures(&spec.temperatures)?;
        if let PositionRule::Share(share) = spec.positions
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::invalid("positions", "a share above 0 and at most 1", share.to_string()));
        }
        if !spec.hidden_layers.is_sorted_by(|a, b| a < b) {
            return Err(Error::invalid("hidden_layers", "strictly ascending layers", format!("{:?}", spec.hidden_layers)));
        }
        if spec.hidden_layers.is_empty() != (spec.hidden_size == 0) {
            let found = format!("{} with hidden_layers {:?}", spec.hidden_size, spec.hidden_layers);
            return Err(Error::invalid("hidden_size", "a width exactly where hidden layers are stored", found));
        }
        Ok(Self {
            task: spec.task,
            vocabulary_size: spec.vocabulary_size,
            top_k: spec.top_k,
            temperatures: spec.temperatures,
            positions: spec.positions,
            hidden_layers: spec.hidden_layers,
            hidden_size: spec.hidden_size,
            token_type_ids: spec.token_type_ids,
            precision: spec.precision,
        })
    }
}

fn check_temperatures(temperatures: &[f32]) -> Result<()> {
    let found = || format!("{temperatures:?}");
    if temperatures.iter().any(|t| !t.is_finite() || *t <= 0.0) {
        return Err(Error::invalid("temperatures", "finite values above 0", found()));
    }
    let repeated = temperatures.iter().enumerate().any(|(i, t)| temperatures[..i].contains(t));
    if repeated || !temperatures.contains(&1.0) {
        return Err(Error::invalid("temperatures", "distinct values with 1 among them", found()));
    }
    Ok(())
}

impl TargetSpec {
    /// The kind of answer.
    pub fn task(&self) -> Task {
        self.task
    }
    /// The length of a teacher's logits row.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size as usize
    }
    /// Ids stored per position.
    pub fn top_k(&self) -> usize {
        self.top_k as usize
    }
    /// Temperatures of `log_z`, in stored order.
    pub fn temperatures(&self) -> &[f32] {
        &self.temperatures
    }
    /// The temperature that divides `top_logits`: the first one.
    pub fn logits_temperature(&self) -> f32 {
        self.temperatures[0]
    }
    /// The column of `log_z` for `temperature`, if the cache holds it.
    pub fn temperature_index(&self, temperature: f32) -> Option<usize> {
        self.temperatures.iter().position(|t| *t == temperature)
    }
    /// Which positions carry targets.
    pub fn positions(&self) -> PositionRule {
        self.positions
    }
    /// Stored hidden states, ascending; 0 is the embedding output.
    pub fn hidden_layers(&self) -> &[u32] {
        &self.hidden_layers
    }
    /// Width of a hidden state; 0 where none is stored.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size as usize
    }
    /// Whether records carry segment ids.
    pub fn token_type_ids(&self) -> bool {
        self.token_type_ids
    }
    /// The rounding of logits and hidden states.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}
