//! One sequence: its inputs as the teacher saw them, and what the teacher said.

use crate::error::{Error, Result};
use crate::target::{TargetSpec, Task};

/// The label of a position that was not masked, as PyTorch's cross-entropy ignores it.
pub const IGNORED_LABEL: i32 = -100;

/// A row of a shard. Nested lists are flattened; shapes are given in the order of the strides, the slowest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Number of the sequence in corpus order, the same in every pass.
    pub sequence_id: u64,
    /// Number of the document it was cut from, in corpus order.
    pub document_id: u64,
    /// Which masked copy of the corpus this is.
    pub pass: u16,
    /// `[length]`: token ids, corrupted by the masking.
    pub input_ids: Vec<u32>,
    /// The gold answers, [`IGNORED_LABEL`] where there is none. `[length]`: the original id where masked, the next token, or the token's class;
    /// `[1]`: the class of a sequence; empty for the other tasks.
    pub labels: Vec<i32>,
    /// Gold numbers: `[classes]` for regressions and for classes that are each for themselves (0 or 1), `[1]` for the likeness of two
    /// sentences; empty where none is known, and for the other tasks.
    pub label_values: Vec<f32>,
    /// `[length]`: segment ids; empty where the teacher has none.
    pub token_type_ids: Vec<u8>,
    /// `[position]`: the positions asked, strictly ascending; 0 alone for the class of a sequence, none for its embedding.
    pub positions: Vec<u16>,
    /// `[position, k]`: ids of the largest logits, descending, ties by the smaller id.
    pub top_ids: Vec<u32>,
    /// `[position, k]`: (z_i - z_max) / T at the first temperature; the first is 0.
    pub top_logits: Vec<f32>,
    /// `[position]`: z_max, not divided.
    pub max_logit: Vec<f32>,
    /// `[position, temperature]`: log of the sum over all classes of exp((z - z_max) / T).
    pub log_z: Vec<f32>,
    /// `[embedding_size]`: the teacher's vector for the sequence; empty for the other tasks.
    pub embedding: Vec<f32>,
    /// One `[length, hidden_size]` per stored layer, in the spec's order.
    pub hidden_states: Vec<Vec<f32>>,
}

impl Record {
    /// Checks every shape and range against the spec; the writer and the reader both call it.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field, with the sequence in `found`.
    pub fn validate(&self, spec: &TargetSpec) -> Result<()> {
        let (length, positions, k) = (self.input_ids.len(), self.positions.len(), spec.top_k());
        let temperatures = spec.temperatures().len();
        let expect_length = |field: &str, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(self.refuse(field, format!("{expected} values"), format!("{found} values")))
        };
        if length == 0 || length > usize::from(u16::MAX) {
            return Err(self.refuse("input_ids", "1 to 65535 tokens", format!("{length} tokens")));
        }
        expect_length("labels", spec.labels_of(length), self.labels.len())?;
        self.validate_label_values(spec)?;
        expect_length("token_type_ids", if spec.token_type_ids() { length } else { 0 }, self.token_type_ids.len())?;
        expect_length("top_ids", positions * k, self.top_ids.len())?;
        expect_length("top_logits", positions * k, self.top_logits.len())?;
        expect_length("max_logit", positions, self.max_logit.len())?;
        expect_length("log_z", positions * temperatures, self.log_z.len())?;
        expect_length("embedding", spec.embedding_size(), self.embedding.len())?;
        expect_length("hidden_states", spec.hidden_layers().len(), self.hidden_states.len())?;
        for (layer, states) in spec.hidden_layers().iter().zip(&self.hidden_states) {
            expect_length(&format!("hidden_{layer}"), length * spec.hidden_size(), states.len())?;
            self.expect_finite(&format!("hidden_{layer}"), states)?;
        }
        self.validate_ids(spec)?;
        self.validate_positions(spec)?;
        self.expect_finite("embedding", &self.embedding)?;
        self.expect_finite("max_logit", &self.max_logit)?;
        self.expect_finite("log_z", &self.log_z)?;
        self.expect_finite("top_logits", &self.top_logits)?;
        self.validate_order(k)
    }

    fn validate_label_values(&self, spec: &TargetSpec) -> Result<()> {
        let (found, expected) = (self.label_values.len(), if spec.embedding_size() > 0 { 1 } else { spec.classes() });
        if found > 0 && !(spec.has_label_values() && found == expected) {
            let expected = if spec.has_label_values() { format!("none or {expected} values") } else { "no values".to_owned() };
            return Err(self.refuse("label_values", expected, format!("{found} values")));
        }
        self.expect_finite("label_values", &self.label_values)
    }

    fn validate_ids(&self, spec: &TargetSpec) -> Result<()> {
        let classes = spec.classes();
        let whose = if spec.task().is_language_model() { "vocabulary's" } else { "classes'" };
        for (field, ids, end, whose) in
            [("input_ids", &self.input_ids, spec.vocabulary_size(), "vocabulary's"), ("top_ids", &self.top_ids, classes, whose)]
        {
            if let Some(id) = ids.iter().find(|id| (**id as usize) >= end) {
                return Err(self.refuse(field, format!("ids below the {whose} {end}"), id.to_string()));
            }
        }
        let bad_label = |label: &&i32| **label != IGNORED_LABEL && usize::try_from(**label).map_or(true, |label| label >= classes);
        if let Some(label) = self.labels.iter().find(bad_label) {
            let expected = format!("{IGNORED_LABEL} or ids below the {whose} {classes}");
            return Err(self.refuse("labels", expected, label.to_string()));
        }
        Ok(())
    }

    fn validate_positions(&self, spec: &TargetSpec) -> Result<()> {
        let whole: &[u16] = if spec.task() == Task::SentenceEmbedding { &[] } else { &[0] };
        if spec.task().is_of_sequences() && self.positions != whole {
            return Err(self.refuse("positions", format!("{whole:?} for {}", spec.task()), format!("{:?}", self.positions)));
        }
        let ascending = self.positions.is_sorted_by(|a, b| a < b);
        if !ascending || self.positions.last().is_some_and(|last| usize::from(*last) >= self.input_ids.len()) {
            let expected = format!("strictly ascending positions below the length {}", self.input_ids.len());
            return Err(self.refuse("positions", expected, format!("{:?}", self.positions)));
        }
        Ok(())
    }

    fn validate_order(&self, k: usize) -> Result<()> {
        for (position, logits) in self.positions.iter().zip(self.top_logits.chunks_exact(k.max(1))) {
            if logits[0] != 0.0 || !logits.is_sorted_by(|a, b| a >= b) {
                let found = format!("{:?} at position {position}", &logits[..k.min(4)]);
                return Err(self.refuse("top_logits", "0 first, then descending", found));
            }
        }
        Ok(())
    }

    fn expect_finite(&self, field: &str, values: &[f32]) -> Result<()> {
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(index) => Err(self.refuse(field, "finite values", format!("{} at index {index}", values[index]))),
        }
    }

    fn refuse(&self, field: &str, expected: impl Into<String>, found: impl std::fmt::Display) -> Error {
        Error::invalid(field, expected, format!("{found} in sequence {} of pass {}", self.sequence_id, self.pass))
    }
}
