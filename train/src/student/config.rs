//! The student's shape, under BERT's own names for the settings (Devlin et al. 2019), whatever family the student is of.
//!
//! Read from a teacher's or a student's `config.json` (either DistilBERT's key names or BERT's), with overrides; written as the
//! `config.json` that `transformers` builds the family's masked language model from.

use super::config_file::Keys;
use super::decoder::{DecoderConfig, settings};
use super::family::Family;
use crate::kernels::Activation;
use logitcache::error::{Error, Result};
use logitcache::target::{Pooling, Problem, Task};
use std::path::Path;

/// Added to a variance before its root is taken where nothing is said; DistilBERT has no setting for it.
pub const LAYER_NORM_EPSILON: f64 = 1e-12;

/// The width of an ALBERT's embeddings where neither the teacher nor a flag says it (Lan et al. 2020).
pub const ALBERT_EMBEDDING_SIZE: usize = 128;

/// The settings of a student.
#[derive(Clone, Debug, PartialEq)]
pub struct StudentConfig {
    /// What it answers.
    pub task: Task,
    /// Length of a classifier's logits row; 0 for the other tasks.
    pub classes: usize,
    /// What a sequence classifier's logits mean; none for the other tasks.
    pub problem: Option<Problem>,
    /// By id, the names of a classifier's classes; empty for the other tasks.
    pub class_names: Vec<String>,
    /// How a sentence encoder's vector is made of its last hidden states; [`Pooling::Mean`] for the other tasks.
    pub pooling: Pooling,
    /// Whether a sentence encoder's vector is scaled to length 1; false for the other tasks.
    pub normalized: bool,
    /// Width of a sentence encoder's vector where a linear map follows the pooling; 0 where none does, and for the other tasks.
    pub embedding_output: usize,
    /// Whose names and wiring it has.
    pub family: Family,
    /// Rows of the word embeddings, and the length of a logits row.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Transformer blocks; those of an ALBERT share one set of parameters.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Width of the embedding tables and of what the decoder reads: `hidden_size` but for an ALBERT.
    pub embedding_size: usize,
    /// Rows of the position embeddings; [`longest_sequence`](Self::longest_sequence) tokens fit.
    pub max_position_embeddings: usize,
    /// Rows of the token-type embeddings: 0 for a DistilBERT, which has none, and at least 1 for the others.
    pub type_vocab_size: usize,
    /// What the feed-forward parts and the head apply (a RoBERTa's head always GELU).
    pub activation: Activation,
    /// Added to a variance before its root is taken; 1e-12 for a DistilBERT.
    pub layer_norm_eps: f64,
    /// Share of activations dropped in training, in [0, 1).
    pub dropout: f64,
    /// Share of attention probabilities dropped in training, in [0, 1).
    pub attention_dropout: f64,
    /// Standard deviation of a random initial weight.
    pub initializer_range: f64,
    /// The padding token, whose word embedding starts as zero; no row of a packed batch holds it. A RoBERTa's positions count from it.
    pub pad_token_id: Option<u32>,
    /// What a decoder has besides; `None` for an encoder.
    pub decoder: Option<DecoderConfig>,
}

impl Default for StudentConfig {
    /// The published DistilBERT (base, uncased).
    fn default() -> Self {
        Self {
            task: Task::MaskedLm,
            classes: 0,
            problem: None,
            class_names: Vec::new(),
            pooling: Pooling::Mean,
            normalized: false,
            embedding_output: 0,
            family: Family::DistilBert,
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 6,
            num_attention_heads: 12,
            intermediate_size: 3072,
            embedding_size: 768,
            max_position_embeddings: 512,
            type_vocab_size: 0,
            activation: Activation::Gelu,
            layer_norm_eps: LAYER_NORM_EPSILON,
            dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            pad_token_id: Some(0),
            decoder: None,
        }
    }
}

/// What a user changes of the teacher's shape; `None` keeps the teacher's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// The student's family; DistilBERT where nothing is said, whatever the teacher's.
    pub family: Family,
    /// Transformer blocks. `None`: half of the teacher's, rounded up.
    pub num_hidden_layers: Option<usize>,
    /// Width of a hidden state.
    pub hidden_size: Option<usize>,
    /// Attention heads.
    pub num_attention_heads: Option<usize>,
    /// Width inside the feed-forward part.
    pub intermediate_size: Option<usize>,
    /// Width of an ALBERT's embeddings. `None`: the hidden size where `wide_embedding`, else an ALBERT teacher's, else 128 or the hidden size,
    /// whichever is less.
    pub embedding_size: Option<usize>,
    /// Whether first weights are taken that an ALBERT's narrower embeddings could not take.
    pub wide_embedding: bool,
    /// A Llama's heads of keys and values. `None`: the teacher's where they divide the heads, else as many as there are heads.
    pub key_value_heads: Option<usize>,
    /// The activation.
    pub activation: Option<Activation>,
    /// Share of activations dropped.
    pub dropout: Option<f64>,
    /// Share of attention probabilities dropped.
    pub attention_dropout: Option<f64>,
}

impl StudentConfig {
    /// The student of the teacher whose `config.json` this is, with half of its layers, then the overrides. It takes sequences as long as
    /// the teacher's.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or malformed key, an activation that is not among [`Activation::ALL`] and not overridden, or a
    /// shape that [`check`](Self::check) refuses.
    pub fn from_teacher(path: &Path, overrides: &Overrides) -> Result<Self> {
        let teacher = Self::read_teachers(path, overrides.activation)?;
        let family = overrides.family;
        if family.is_decoder() {
            return settings::from_teacher(teacher, overrides, path);
        }
        if teacher.decoder.is_some() {
            let (expected, remedy) = ("an encoder, to teach one", "choose --family llama or gpt2");
            return Err(Error::data(path, "model_type", expected, teacher.family.name(), remedy));
        }
        let hidden_size = overrides.hidden_size.unwrap_or(teacher.hidden_size);
        let teachers_embedding = (teacher.family == Family::Albert).then_some(teacher.embedding_size);
        let default_embedding = match family {
            Family::Albert if !overrides.wide_embedding => teachers_embedding.unwrap_or(ALBERT_EMBEDDING_SIZE.min(hidden_size)),
            _ => hidden_size,
        };
        let config = Self {
            family,
            num_hidden_layers: overrides.num_hidden_layers.unwrap_or(teacher.num_hidden_layers.div_ceil(2)),
            hidden_size,
            num_attention_heads: overrides.num_attention_heads.unwrap_or(teacher.num_attention_heads),
            intermediate_size: overrides.intermediate_size.unwrap_or(teacher.intermediate_size),
            embedding_size: overrides.embedding_size.unwrap_or(default_embedding),
            max_position_embeddings: teacher.longest_sequence() + family.first_position(teacher.pad_token_id),
            type_vocab_size: if family.has_token_types() { teacher.type_vocab_size.max(1) } else { 0 },
            layer_norm_eps: if family == Family::DistilBert { LAYER_NORM_EPSILON } else { teacher.layer_norm_eps },
            dropout: overrides.dropout.unwrap_or(teacher.dropout),
            attention_dropout: overrides.attention_dropout.unwrap_or(teacher.attention_dropout),
            ..teacher
        };
        config.check()?;
        Ok(config)
    }

    /// A teacher's own shape, whatever its activation.
    ///
    /// # Errors
    /// A file that cannot be read, a missing or malformed key.
    pub fn read_teacher(path: &Path) -> Result<Self> {
        Self::read_teachers(path, Some(Activation::Gelu))
    }

    /// The family that a `config.json` names; `None` for a model of another kind.
    ///
    /// # Errors
    /// A file that cannot be read, or whose `model_type` is no text.
    pub fn family_in(path: &Path) -> Result<Option<Family>> {
        Ok(Family::of_model_type(&Keys::open(path)?.model_type()?))
    }

    /// By id, the names that a classifier's `config.json` gives its `classes` classes; `LABEL_0`, `LABEL_1`, ... where it has no `id2label`.
    ///
    /// # Errors
    /// A file that cannot be read, or that names other classes than those.
    pub fn class_names_in(path: &Path, classes: usize) -> Result<Vec<String>> {
        Keys::open(path)?.class_names(Some(classes))
    }

    fn read_teachers(path: &Path, activation: Option<Activation>) -> Result<Self> {
        let keys = Keys::open(path)?;
        keys.config(Family::of_model_type(&keys.model_type()?).unwrap_or(Family::Bert), activation)
    }

    /// A student's own `config.json`, of the family that its `model_type` names and for the task of its `architectures`; a sentence encoder's
    /// further files lie beside it.
    ///
    /// # Errors
    /// As [`from_teacher`](Self::from_teacher); a `model_type` that is no family's.
    pub fn read(path: &Path) -> Result<Self> {
        let keys = Keys::open(path)?;
        let refuse =
            |field: &str, expected: &str, found: &str| Error::data(path, field, expected, found, "give a directory written by train");
        let model_type = keys.model_type()?;
        let family = model_type.parse().map_err(|expected: String| refuse("model_type", &expected, &model_type))?;
        let mut config = keys.config(family, None)?;
        keys.read_task(&mut config)?;
        config.check().map_err(|error| match error {
            Error::Invalid { field, expected, found } => refuse(&field, &expected, &found),
            other => other,
        })?;
        Ok(config)
    }

    /// Whether a student can be built in this shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first field that cannot be: a count of 0, heads that do not divide the width, a dropout outside [0, 1), an
    /// initializer range that is not positive, a padding token outside the vocabulary.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("embedding_size", self.embedding_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, count) in counts {
            // Token ids and row numbers are 32 bits wide, and so must every product of two counts fit into 64.
            if count == 0 || count > u32::MAX as usize {
                return Err(Error::invalid(field, "1 to 4294967295", count.to_string()));
            }
        }
        if self.decoder.is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", self.hidden_size);
            return Err(Error::invalid("num_attention_heads", expected, self.num_attention_heads.to_string()));
        }
        self.check_family()?;
        self.check_task()?;
        for (field, share) in [("dropout", self.dropout), ("attention_dropout", self.attention_dropout)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::invalid(field, "a share of at least 0 and below 1", share.to_string()));
            }
        }
        if !(self.initializer_range.is_finite() && self.initializer_range > 0.0) {
            return Err(Error::invalid("initializer_range", "a finite value above 0", self.initializer_range.to_string()));
        }
        match self.pad_token_id {
            Some(id) if id as usize >= self.vocab_size => {
                Err(Error::invalid("pad_token_id", format!("an id below vocab_size = {}", self.vocab_size), id.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// What one family asks and another does not.
    fn check_family(&self) -> Result<()> {
        let family = self.family;
        if family.is_decoder() || self.decoder.is_some() {
            return self.check_decoder();
        }
        if self.task == Task::CausalLm {
            return Err(Error::invalid("task", format!("another for the family {family}, whose tokens see those after them"), "causal-lm"));
        }
        if family != Family::Albert && self.embedding_size != self.hidden_size {
            let expected = format!("hidden_size = {} for the family {family}", self.hidden_size);
            return Err(Error::invalid("embedding_size", expected, self.embedding_size.to_string()));
        }
        if family.has_token_types() != (self.type_vocab_size > 0) || self.type_vocab_size > u32::MAX as usize {
            let expected = if family.has_token_types() { "1 to 4294967295" } else { "0 for a DistilBERT" };
            return Err(Error::invalid("type_vocab_size", expected, self.type_vocab_size.to_string()));
        }
        let epsilon = self.layer_norm_eps;
        if !(epsilon.is_finite() && epsilon > 0.0) || (family == Family::DistilBert && epsilon != LAYER_NORM_EPSILON) {
            let expected = if family == Family::DistilBert { "1e-12 for a DistilBERT" } else { "a finite value above 0" };
            return Err(Error::invalid("layer_norm_eps", expected, epsilon.to_string()));
        }
        if family == Family::Roberta && self.pad_token_id.is_none() {
            return Err(Error::invalid("pad_token_id", "an id, from which a RoBERTa's positions count", "null"));
        }
        if self.max_position_embeddings <= family.first_position(self.pad_token_id) {
            let expected = format!("more than the {} rows that no token takes", family.first_position(self.pad_token_id));
            return Err(Error::invalid("max_position_embeddings", expected, self.max_position_embeddings.to_string()));
        }
        Ok(())
    }

    /// What one task asks and another does not.
    fn check_task(&self) -> Result<()> {
        let task = self.task;
        let classifies = matches!(task, Task::SequenceClassification | Task::TokenClassification);
        if classifies != (self.classes > 0) || self.class_names.len() != self.classes || self.classes > u32::MAX as usize {
            let expected = if classifies { "1 to 4294967295, each with a name," } else { "0" };
            let found = format!("{} with {} names", self.classes, self.class_names.len());
            return Err(Error::invalid("classes", format!("{expected} for {task}"), found));
        }
        if self.problem.is_some() != (task == Task::SequenceClassification) {
            let expected = format!("one exactly for {}", Task::SequenceClassification);
            return Err(Error::invalid("problem", expected, format!("{:?} for {task}", self.problem)));
        }
        let of_vectors = self.embedding_output > 0 || self.normalized || self.pooling != Pooling::Mean;
        if (of_vectors && task != Task::SentenceEmbedding) || self.embedding_output > u32::MAX as usize {
            let found = format!("{} for {task}", self.embedding_output);
            return Err(Error::invalid("embedding_output", format!("a pooled vector only for {}", Task::SentenceEmbedding), found));
        }
        Ok(())
    }

    /// Length of a row of its answers: of logits, or a sentence encoder's vector.
    pub fn output_size(&self) -> usize {
        match self.task {
            Task::MaskedLm | Task::CausalLm => self.vocab_size,
            Task::SequenceClassification | Task::TokenClassification => self.classes,
            Task::SentenceEmbedding if self.embedding_output == 0 => self.hidden_size,
            Task::SentenceEmbedding => self.embedding_output,
        }
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.decoder.as_ref().map_or(self.hidden_size / self.num_attention_heads, |decoder| decoder.head_width)
    }

    /// Layers that have parameters of their own: one for an ALBERT, all for the others.
    pub fn layers_with_parameters(&self) -> usize {
        if self.family == Family::Albert { 1 } else { self.num_hidden_layers }
    }

    /// The longest sequence that has a position for each token.
    pub fn longest_sequence(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.family.first_position(self.pad_token_id))
    }

    /// What the head applies: a RoBERTa's GELU is not a setting.
    pub fn head_activation(&self) -> Activation {
        if self.family == Family::Roberta { Activation::Gelu } else { self.activation }
    }
}

#[cfg(test)]
mod tests;
