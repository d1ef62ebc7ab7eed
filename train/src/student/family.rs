//! The families of encoders a student can be: whose names its weights carry and how its layers are wired.
//!
//! | family | token types | positions | dropout besides embeddings and attention | head | layers |
//! | --- | --- | --- | --- | --- | --- |
//! | DistilBERT (Sanh et al. 2019) | none | from 0 | feed-forward | activation | own |
//! | BERT (Devlin et al. 2019) | a table | from 0 | attention output, feed-forward | activation | own |
//! | RoBERTa (Liu et al. 2019) | a table | from the padding id + 1 | attention output, feed-forward | always GELU | own |
//! | ALBERT (Lan et al. 2020) | a table | from 0 | attention output | activation | one set for all |
//!
//! and of causal language models, which [`decoder`](super::decoder) describes: Llama and GPT-2.

use logitcache::target::Task;
use std::fmt;
use std::str::FromStr;

/// Whose names and wiring a student has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// No token types, no dropout after the attention's output.
    #[default]
    DistilBert,
    /// The original.
    Bert,
    /// BERT whose positions count from the padding id + 1 and whose head always uses GELU.
    Roberta,
    /// One set of layer parameters used for every layer, embeddings narrower than the hidden states.
    Albert,
    /// A decoder with RMSNorms, turned positions, grouped heads and a gated feed-forward part.
    Llama,
    /// A decoder with LayerNorms and learned positions.
    Gpt2,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::DistilBert, Self::Bert, Self::Roberta, Self::Albert, Self::Llama, Self::Gpt2];

    /// Those whose tokens see the tokens after them too.
    pub const ENCODERS: [Self; 4] = [Self::DistilBert, Self::Bert, Self::Roberta, Self::Albert];

    /// The name that flags and a `config.json`'s `model_type` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::DistilBert => "distilbert",
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::Albert => "albert",
            Self::Llama => "llama",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The family of a teacher's `model_type`; XLM-RoBERTa and CamemBERT are RoBERTas under other names. `None` for a model of another kind.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "xlm-roberta" | "camembert" => Some(Self::Roberta),
            _ => model_type.parse().ok(),
        }
    }

    /// The class that `transformers` builds for a task.
    pub fn architecture(self, task: Task) -> String {
        let family = match self {
            Self::Llama => return "LlamaForCausalLM".to_owned(),
            Self::Gpt2 => return "GPT2LMHeadModel".to_owned(),
            Self::DistilBert => "DistilBert",
            Self::Bert => "Bert",
            Self::Roberta => "Roberta",
            Self::Albert => "Albert",
        };
        format!("{family}{}", class_suffix(task))
    }

    /// Whether the embeddings add a token-type row to every token.
    pub fn has_token_types(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta | Self::Albert)
    }

    /// Whether it is a causal language model, whose tokens see those before them alone.
    pub fn is_decoder(self) -> bool {
        matches!(self, Self::Llama | Self::Gpt2)
    }

    /// The row of the position embeddings that a sequence's first token takes.
    pub fn first_position(self, pad_token_id: Option<u32>) -> usize {
        match (self, pad_token_id) {
            (Self::Roberta, Some(pad)) => pad as usize + 1,
            _ => 0,
        }
    }
}

/// What the name of a task's class in `transformers` ends with.
pub fn class_suffix(task: Task) -> &'static str {
    match task {
        Task::MaskedLm => "ForMaskedLM",
        Task::SequenceClassification => "ForSequenceClassification",
        Task::TokenClassification => "ForTokenClassification",
        Task::SentenceEmbedding => "Model",
        Task::CausalLm => "ForCausalLM",
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|family| family.name() == text);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_relatives_are_known() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
            assert_eq!(Family::of_model_type(family.name()), Some(family));
        }
        assert_eq!(Family::of_model_type("camembert"), Some(Family::Roberta));
        assert_eq!(Family::of_model_type("electra"), None);
        assert!("gpt".parse::<Family>().unwrap_err().contains("distilbert, bert, roberta, albert, llama, gpt2"));
    }

    #[test]
    fn positions_begin_after_robertas_padding_id() {
        assert_eq!(Family::Roberta.first_position(Some(1)), 2);
        assert_eq!(Family::Bert.first_position(Some(1)), 0);
    }
}
