//! What a student is taught with: the weighted total and its named parts.
//!
//! Each file of an objective holds it as a function of a row or of one outcome, without tensors; `kernels::head_loss` and `kernels::cosine`
//! run them over batches. [`objective`] reads `--loss`, [`of_task`] says which parts a task has, [`weight_schedule`] says what a part weighs at a step, [`tail`] what is made of the
//! probability that lies outside the stored ids, [`hidden_map`] which hidden states are compared.

pub mod binary;
pub mod cosine;
pub mod cross_entropy;
pub mod forward_kl;
pub mod ghost_kl;
pub mod hidden_map;
pub mod jensen_shannon;
pub mod logit_mse;
pub mod objective;
pub mod of_task;
pub mod outcome;
mod part;
pub mod reverse_kl;
pub mod tail;
pub mod total_variation;
pub mod weight_schedule;

pub use objective::Objective;
pub use part::{PARTS, Part};
pub use tail::Tail;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::AddAssign;

/// How much each part counts at a step. A part of weight 0 is not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weights([f64; PARTS]);

impl Weights {
    /// The weights of these parts; 0 for the others.
    pub fn of(weights: &[(Part, f64)]) -> Self {
        let mut all = Self::default();
        weights.iter().for_each(|(part, weight)| all.0[*part as usize] = *weight);
        all
    }

    /// The weight of a part.
    pub fn get(&self, part: Part) -> f64 {
        self.0[part as usize]
    }

    /// Whether a part is computed.
    pub fn has(&self, part: Part) -> bool {
        self.get(part) > 0.0
    }

    /// Whether any part of a kind is computed.
    pub fn any(&self, kind: fn(Part) -> bool) -> bool {
        Part::ALL.into_iter().any(|part| kind(part) && self.has(part))
    }

    /// The weighted sum of unweighted values.
    pub fn total(&self, values: &[f64; PARTS]) -> f64 {
        // A part that is not computed adds nothing, whatever stands in its place.
        Part::ALL.into_iter().filter(|part| self.has(*part)).map(|part| self.get(part) * values[part as usize]).sum()
    }
}

/// The counts a whole optimiser step is averaged over, all of its micro-batches together: each part is a sum divided by its count, so that a
/// step does not depend on how it was cut. A count of 0 is only right where nothing is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normalisers {
    /// Asked rows: for every part of the logits but `mlm` and `gold`.
    pub asked: usize,
    /// Gold answers: the masked rows for `mlm`, all there are for `gold`.
    pub labelled: usize,
    /// All rows: for `cos` and `hidden-mse`.
    pub tokens: usize,
    /// All sequences: for the parts of the vectors.
    pub sequences: usize,
}

/// Everything a step's loss depends on beside the batch and the student.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepObjective {
    /// The parts' options.
    pub objective: Objective,
    /// The parts' weights at this step.
    pub weights: Weights,
    /// The training temperature T.
    pub temperature: f64,
    /// The counts of the whole step.
    pub normalisers: Normalisers,
    /// Whether ids that no row of a micro-batch stores or answers with are left out of its distributions.
    pub few_ids: bool,
}

impl StepObjective {
    /// Of step `step` (0 is the first) of `steps`. A step without a gold answer has no `gold`.
    pub fn new(objective: &Objective, (step, steps): (u64, u64), temperature: f64, normalisers: Normalisers) -> Self {
        let mut weights = objective.weights_at(step, steps);
        if normalisers.labelled == 0 {
            weights.0[Part::Gold as usize] = 0.0;
        }
        Self { objective: *objective, weights, temperature, normalisers, few_ids: false }
    }

    /// The same step over the ids alone that its micro-batches store or answer with.
    pub fn with_few_ids(self, few_ids: bool) -> Self {
        Self { few_ids, ..self }
    }
}

/// A step's loss: `total` as weighted, each part as an unweighted mean (0 where its weight is 0). The parts of the micro-batches of a step
/// add up to the step's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossParts {
    /// The weighted sum.
    pub total: f64,
    /// The parts, in the order of [`Part::ALL`].
    pub values: [f64; PARTS],
}

impl LossParts {
    /// The parts and their weighted total.
    pub fn new(weights: &Weights, values: [f64; PARTS]) -> Self {
        Self { total: weights.total(&values), values }
    }

    /// One part.
    pub fn get(&self, part: Part) -> f64 {
        self.values[part as usize]
    }
}

impl AddAssign for LossParts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.values.iter_mut().zip(other.values).for_each(|(sum, value)| *sum += value);
    }
}

/// Unweighted values of the parts that were computed, by [`Part::key`]: what a line of the log holds of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PartValues([Option<f64>; PARTS]);

impl PartValues {
    /// The values of a step: those of the parts that have a weight.
    pub fn new(weights: &Weights, parts: &LossParts) -> Self {
        Self(std::array::from_fn(|index| (weights.0[index] > 0.0).then_some(parts.values[index])))
    }

    /// The values of these parts.
    pub fn of(values: &[(Part, f64)]) -> Self {
        let mut all = Self::default();
        values.iter().for_each(|(part, value)| all.0[*part as usize] = Some(*value));
        all
    }

    /// A part's value, if it was computed.
    pub fn get(&self, part: Part) -> Option<f64> {
        self.0[part as usize]
    }

    /// The parts that were computed, in the order of [`Part::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Part, f64)> + '_ {
        Part::ALL.into_iter().filter_map(|part| self.get(part).map(|value| (part, value)))
    }

    /// Adds the values of another step, each to its own sum, and counts them.
    pub(crate) fn add(&mut self, other: &Self, counts: &mut [u64; PARTS]) {
        for (part, value) in other.iter() {
            let sum = &mut self.0[part as usize];
            *sum = Some(sum.unwrap_or(0.0) + value);
            counts[part as usize] += 1;
        }
    }

    /// The means of sums over the steps that computed each part.
    pub(crate) fn means(&self, counts: &[u64; PARTS]) -> Self {
        Self(std::array::from_fn(|index| self.0[index].map(|sum| sum / counts[index].max(1) as f64)))
    }
}

impl Serialize for PartValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.iter().try_for_each(|(part, value)| map.serialize_entry(part.key(), &value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for PartValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = PartValues;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map with the values of loss parts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PartValues, A::Error> {
                let mut values = PartValues::default();
                while let Some(key) = map.next_key::<String>()? {
                    match Part::ALL.into_iter().find(|part| part.key() == key) {
                        Some(part) => values.0[part as usize] = map.next_value()?,
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(values)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_gold_answers_has_no_gold() {
        let objective: Objective = "ce=1,gold=0.5".parse().unwrap();
        let weight = |labelled| {
            let normalisers = Normalisers { asked: 4, labelled, ..Normalisers::default() };
            StepObjective::new(&objective, (0, 1), 1.0, normalisers).weights.get(Part::Gold)
        };
        assert_eq!((weight(0), weight(3)), (0.0, 0.5));
    }

    #[test]
    fn parts_of_micro_batches_add_up() {
        let weights = Weights::of(&[(Part::Ce, 5.0), (Part::Mlm, 2.0), (Part::Cos, 1.0)]);
        let parts = |ce, mlm, cos| LossParts::new(&weights, [ce, 0.0, 0.0, 0.0, 0.0, mlm, cos, 0.0, 0.0, 0.0, 0.0]);
        let mut sum = parts(0.5, 0.25, 0.125);
        sum += parts(0.5, 0.75, 0.375);
        assert_eq!(sum, parts(1.0, 1.0, 0.5));
        assert_eq!((sum.total, sum.get(Part::Mlm)), (7.5, 1.0));
    }

    #[test]
    fn values_are_means_over_the_steps_that_computed_them() {
        let (mut sums, mut counts) = (PartValues::default(), [0; PARTS]);
        sums.add(&PartValues::of(&[(Part::Ce, 1.0), (Part::Tvd, 0.5)]), &mut counts);
        sums.add(&PartValues::of(&[(Part::Ce, 3.0)]), &mut counts);
        assert_eq!(sums.means(&counts), PartValues::of(&[(Part::Ce, 2.0), (Part::Tvd, 0.5)]));
        let text = serde_json::to_string(&sums.means(&counts)).unwrap();
        assert_eq!(text, r#"{"ce_nats":2.0,"tvd":0.5}"#);
        assert_eq!(serde_json::from_str::<PartValues>(r#"{"ce_nats":2.0,"other":"x","tvd":0.5}"#).unwrap(), sums.means(&counts));
    }
}
