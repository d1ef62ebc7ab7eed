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

    fn read_teachers(path: &Path, activation: Option<Activation>) -> Result<Self> {
        let keys = Keys::open(path)?;
        keys.config(Family::of_model_type(&keys.model_type()?).unwrap_or(Family::Bert), activation)
    }

    /// A student's own `config.json`, of the family that its `model_type` names.
    ///
    /// # Errors
    /// As [`from_teacher`](Self::from_teacher); a `model_type` that is no family's.
    pub fn read(path: &Path) -> Result<Self> {
        let keys = Keys::open(path)?;
        let refuse =
            |field: &str, expected: &str, found: &str| Error::data(path, field, expected, found, "give a directory written by train");
        let model_type = keys.model_type()?;
        let family = model_type.parse().map_err(|expected: String| refuse("model_type", &expected, &model_type))?;
        let config = keys.config(family, None)?;
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
        if self.task != Task::MaskedLm {
            return Err(Error::invalid("task", format!("{} for the family {family}", Task::MaskedLm), self.task.to_string()));
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
mod tests {
    use super::*;

    const TEACHER: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "vocab_size": 591, "hidden_size": 256, "num_hidden_layers": 12,
        "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 512, "hidden_dropout_prob": 0.2, "pad_token_id": 3}"#;

    fn teacher(text: &str, overrides: &Overrides) -> Result<StudentConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        StudentConfig::from_teacher(&path, overrides)
    }

    #[test]
    fn a_teacher_gives_its_shape_and_half_its_layers() {
        let config = teacher(TEACHER, &Overrides::default()).unwrap();
        assert_eq!(
            (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size),
            (591, 256, 6, 4, 512)
        );
        assert_eq!((config.dropout, config.attention_dropout, config.initializer_range, config.pad_token_id), (0.2, 0.1, 0.02, Some(3)));
        assert_eq!(config.head_size(), 64);
    }

    #[test]
    fn overrides_win() {
        let overrides = Overrides {
            num_hidden_layers: Some(3),
            hidden_size: Some(96),
            num_attention_heads: Some(6),
            intermediate_size: Some(100),
            dropout: Some(0.0),
            attention_dropout: Some(0.3),
            ..Overrides::default()
        };
        let config = teacher(TEACHER, &overrides).unwrap();
        assert_eq!((config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size), (3, 96, 6, 100));
        assert_eq!((config.dropout, config.attention_dropout), (0.0, 0.3));
    }

    #[test]
    fn a_written_configuration_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        for family in Family::ENCODERS {
            let overrides = Overrides { family, dropout: Some(0.0), activation: Some(Activation::Silu), ..Default::default() };
            let config = teacher(&TEACHER.replace("\"pad", "\"layer_norm_eps\": 1e-5, \"pad"), &overrides).unwrap();
            assert_eq!(config.layer_norm_eps, if family == Family::DistilBert { 1e-12 } else { 1e-5 });
            let padless = StudentConfig { pad_token_id: None, ..config.clone() };
            for config in [config, padless].into_iter().filter(|config| config.check().is_ok()) {
                std::fs::write(&path, config.to_json()).unwrap();
                assert_eq!(StudentConfig::read(&path).unwrap(), config);
            }
        }
        std::fs::write(&path, TEACHER.replace("bert", "electra")).unwrap();
        let message = StudentConfig::read(&path).unwrap_err().to_string();
        assert!(message.contains("model_type: expected one of distilbert, bert, roberta, albert, llama, gpt2, found electra"), "{message}");
    }

    #[test]
    fn a_student_of_another_family_takes_sequences_as_long_as_the_teachers() {
        let rows = |text: &str, family| teacher(text, &Overrides { family, ..Default::default() }).unwrap().max_position_embeddings;
        let roberta =
            TEACHER.replace("\"bert\"", "\"xlm-roberta\"").replace("512, \"hidden_d", "514, \"hidden_d").replace("_id\": 3", "_id\": 1");
        assert_eq!((rows(TEACHER, Family::Bert), rows(TEACHER, Family::Roberta)), (512, 516));
        assert_eq!((rows(&roberta, Family::DistilBert), rows(&roberta, Family::Roberta)), (512, 514));
    }

    #[test]
    fn an_alberts_embeddings_are_as_wide_as_its_teachers_or_the_published_ones() {
        let width = |text: &str, overrides: Overrides| teacher(text, &overrides).map(|config| config.embedding_size);
        let albert = TEACHER.replace("\"bert\"", "\"albert\"").replace("\"vocab", "\"embedding_size\": 32, \"vocab");
        let of = |family| Overrides { family, ..Default::default() };
        assert_eq!(width(&albert, of(Family::Albert)).unwrap(), 32);
        assert_eq!(width(TEACHER, of(Family::Albert)).unwrap(), ALBERT_EMBEDDING_SIZE);
        assert_eq!(width(TEACHER, Overrides { wide_embedding: true, ..of(Family::Albert) }).unwrap(), 256);
        let narrow = Overrides { hidden_size: Some(64), ..of(Family::Albert) };
        assert_eq!(width(TEACHER, narrow).unwrap(), 64);
        let bert = Overrides { embedding_size: Some(32), ..of(Family::Bert) };
        assert!(width(TEACHER, bert).unwrap_err().to_string().contains("embedding_size: expected hidden_size = 256 for the family bert"));
    }

    #[test]
    fn another_activation_is_refused_by_name() {
        let message = teacher(&TEACHER.replace("\"gelu\"", "\"gelu_10\""), &Overrides::default()).unwrap_err().to_string();
        assert!(message.contains("hidden_act: expected one of gelu, gelu_new, relu, silu, found \"gelu_10\""), "{message}");
    }

    #[test]
    fn keys_that_are_missing_or_of_another_kind_are_named() {
        let message = |from: &str, to: &str| teacher(&TEACHER.replace(from, to), &Overrides::default()).unwrap_err().to_string();
        assert!(message("\"vocab_size\": 591,", "").contains("vocab_size: expected a whole number above 0, found no such key"));
        assert!(message("\"hidden_size\": 256", "\"hidden_size\": \"wide\"").contains("hidden_size: expected a whole number above 0"));
        assert!(message("\"pad_token_id\": 3", "\"pad_token_id\": 591").contains("pad_token_id: expected an id below vocab_size = 591"));
        assert!(message("\"hidden_dropout_prob\": 0.2", "\"hidden_dropout_prob\": 1").contains("dropout: expected a share"));
    }

    #[test]
    fn heads_must_divide_the_width() {
        let message = teacher(TEACHER, &Overrides { num_attention_heads: Some(5), ..Default::default() }).unwrap_err().to_string();
        assert!(message.contains("num_attention_heads: expected a divisor of hidden_size = 256, found 5"), "{message}");
    }
}
