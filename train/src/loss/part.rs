//! The parts that a loss can have: their names, their keys in the log, what each is computed from.

/// A named part of the loss, in the order of [`Part::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// T^2 KL(teacher || student) at the training temperature, over the asked rows.
    Ce,
    /// T^2 KL(student || teacher) at the training temperature, over the asked rows.
    ReverseKl,
    /// T^2 times the generalised Jensen-Shannon divergence at the training temperature, over the asked rows.
    Jsd,
    /// T times the total variation distance at the training temperature, over the asked rows.
    Tvd,
    /// Mean squared difference of the stored ids' logits, over the asked rows.
    LogitMse,
    /// Cross-entropy of the original ids at temperature 1, over the masked rows.
    Mlm,
    /// 1 - cos against the teacher's hidden states, over all rows.
    Cos,
    /// Mean squared difference of the hidden states, over all rows.
    HiddenMse,
    /// The gold answers that the corpus gives, at temperature 1: cross-entropy of a class or the next token, binary cross-entropy of classes that
    /// are each for themselves, squared error of numbers (means over the classes), over what has one.
    Gold,
    /// 1 - cos against the teacher's vectors, over the sequences.
    EmbeddingCos,
    /// Mean squared difference from the teacher's vectors, over the sequences.
    EmbeddingMse,
}

/// Number of parts.
pub const PARTS: usize = Part::ALL.len();

impl Part {
    /// Every part, in the order in which they are written.
    pub const ALL: [Self; 11] = [
        Self::Ce,
        Self::ReverseKl,
        Self::Jsd,
        Self::Tvd,
        Self::LogitMse,
        Self::Mlm,
        Self::Cos,
        Self::HiddenMse,
        Self::Gold,
        Self::EmbeddingCos,
        Self::EmbeddingMse,
    ];

    /// The name in `--loss`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::ReverseKl => "reverse-kl",
            Self::Jsd => "jsd",
            Self::Tvd => "tvd",
            Self::LogitMse => "logit-mse",
            Self::Mlm => "mlm",
            Self::Cos => "cos",
            Self::HiddenMse => "hidden-mse",
            Self::Gold => "gold",
            Self::EmbeddingCos => "embedding-cos",
            Self::EmbeddingMse => "embedding-mse",
        }
    }

    /// The key of the unweighted value in `metrics.jsonl`, with its unit where it has one.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ce => "ce_nats",
            Self::ReverseKl => "reverse_kl_nats",
            Self::Jsd => "jsd_nats",
            Self::Tvd => "tvd",
            Self::LogitMse => "logit_mse",
            Self::Mlm => "mlm_nats",
            Self::Cos => "cos_distance",
            Self::HiddenMse => "hidden_mse",
            Self::Gold => "gold_nats",
            Self::EmbeddingCos => "embedding_cos_distance",
            Self::EmbeddingMse => "embedding_mse",
        }
    }

    /// The unit of the value: nats, or empty where there is none.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Ce | Self::ReverseKl | Self::Jsd | Self::Mlm | Self::Gold => "nats",
            Self::Tvd | Self::LogitMse | Self::Cos | Self::HiddenMse | Self::EmbeddingCos | Self::EmbeddingMse => "",
        }
    }

    /// What its value is multiplied by at the temperature T, so that the gradient with respect to the logits keeps its size as T grows: T^2 for
    /// the divergences, whose gradient falls as 1 / T^2, T for the distance, and 1 for what knows no temperature.
    pub fn temperature_factor(self, temperature: f64) -> f64 {
        match self {
            Self::Ce | Self::ReverseKl | Self::Jsd => temperature * temperature,
            Self::Tvd => temperature,
            _ => 1.0,
        }
    }

    /// Whether it is computed from the student's logits of the asked rows.
    pub fn is_of_logits(self) -> bool {
        !self.is_of_hidden() && !self.is_of_embeddings()
    }

    /// Whether it is computed from a sentence encoder's vectors.
    pub fn is_of_embeddings(self) -> bool {
        matches!(self, Self::EmbeddingCos | Self::EmbeddingMse)
    }

    /// Whether it is computed from the student's hidden states of all rows.
    pub fn is_of_hidden(self) -> bool {
        matches!(self, Self::Cos | Self::HiddenMse)
    }

    /// The part of a name in `--loss`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_are_distinct_and_in_order() {
        for (index, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
            assert_eq!(Part::from_name(part.name()), Some(part));
            assert_eq!(part.key().ends_with("_nats"), part.unit() == "nats");
            assert!(Part::ALL.into_iter().all(|other| other == part || (other.key() != part.key() && other.name() != part.name())));
        }
    }
}
