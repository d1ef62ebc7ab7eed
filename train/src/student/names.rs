//! What a parameter is for, and what each family calls it.

use super::decoder::DecoderRole;
use super::family::Family;

/// The folder of a sentence encoder's directory that holds its projection, as sentence-transformers numbers its modules.
pub const PROJECTION_FOLDER: &str = "2_Dense";

/// The place of a parameter in a student, whichever family it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `[vocabulary, embedding]`; the decoder's weight too.
    WordEmbeddings,
    /// `[positions, embedding]`.
    PositionEmbeddings,
    /// `[types, embedding]`; not in a DistilBERT.
    TokenTypeEmbeddings,
    /// The LayerNorm of the summed embeddings.
    EmbeddingNorm,
    /// ALBERT's map from the embeddings to the hidden states, `[hidden, embedding]`.
    EmbeddingMapping,
    /// A part of a layer, counted from 0; an ALBERT has parameters for layer 0 alone.
    Layer(usize, LayerPart),
    /// The head's linear map, `[embedding, hidden]`.
    HeadDense,
    /// The head's LayerNorm.
    HeadNorm,
    /// The decoder's bias, `[vocabulary]`.
    DecoderBias,
    /// A sequence classifier's map of the first token's state, `[hidden, hidden]`: the pooler of a BERT or ALBERT.
    Pooler,
    /// A sequence classifier's last map, `[classes, hidden]`.
    SequenceClassifier,
    /// A token classifier's map, `[classes, hidden]`.
    TokenClassifier,
    /// A sentence encoder's map of the pooled state, `[embedding, hidden]`.
    Projection,
    /// Of a causal language model.
    Decoder(DecoderRole),
}

/// A part of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerPart {
    /// `[hidden, hidden]`, a head's rows together.
    Query,
    /// `[hidden, hidden]`.
    Key,
    /// `[hidden, hidden]`.
    Value,
    /// `[hidden, hidden]`, a head's columns together.
    AttentionOutput,
    /// After the attention.
    AttentionNorm,
    /// `[between, hidden]`.
    Widen,
    /// `[hidden, between]`.
    Narrow,
    /// After the feed-forward part.
    OutputNorm,
}

impl LayerPart {
    /// All of them, in the order of the layout.
    pub const ALL: [Self; 8] =
        [Self::Query, Self::Key, Self::Value, Self::AttentionOutput, Self::AttentionNorm, Self::Widen, Self::Narrow, Self::OutputNorm];

    fn name(self, family: Family) -> &'static str {
        let [distilbert, bert, albert] = match self {
            Self::Query => ["attention.q_lin", "attention.self.query", "attention.query"],
            Self::Key => ["attention.k_lin", "attention.self.key", "attention.key"],
            Self::Value => ["attention.v_lin", "attention.self.value", "attention.value"],
            Self::AttentionOutput => ["attention.out_lin", "attention.output.dense", "attention.dense"],
            Self::AttentionNorm => ["sa_layer_norm", "attention.output.LayerNorm", "attention.LayerNorm"],
            Self::Widen => ["ffn.lin1", "intermediate.dense", "ffn"],
            Self::Narrow => ["ffn.lin2", "output.dense", "ffn_output"],
            Self::OutputNorm => ["output_layer_norm", "output.LayerNorm", "full_layer_layer_norm"],
        };
        match family {
            Family::DistilBert => distilbert,
            Family::Albert => albert,
            _ => bert,
        }
    }
}

impl Role {
    /// What `transformers` calls it in the family's model with the task's head, without `.weight` or `.bias`; a projection's name begins with the
    /// folder that holds it.
    pub fn name(self, family: Family) -> String {
        let of_embeddings = |part: &str| format!("{family}.embeddings.{part}");
        let of_head = |[distilbert, bert, roberta, albert]: [&str; 4]| {
            let name = match family {
                Family::DistilBert => distilbert,
                Family::Roberta => roberta,
                Family::Albert => albert,
                _ => bert,
            };
            name.to_owned()
        };
        match self {
            Self::WordEmbeddings => of_embeddings("word_embeddings"),
            Self::PositionEmbeddings => of_embeddings("position_embeddings"),
            Self::TokenTypeEmbeddings => of_embeddings("token_type_embeddings"),
            Self::EmbeddingNorm => of_embeddings("LayerNorm"),
            Self::EmbeddingMapping => format!("{family}.encoder.embedding_hidden_mapping_in"),
            Self::Layer(layer, part) => format!("{}.{}", layer_prefix(family, layer), part.name(family)),
            Self::HeadDense => of_head(["vocab_transform", "cls.predictions.transform.dense", "lm_head.dense", "predictions.dense"]),
            Self::HeadNorm => {
                of_head(["vocab_layer_norm", "cls.predictions.transform.LayerNorm", "lm_head.layer_norm", "predictions.LayerNorm"])
            }
            Self::DecoderBias => of_head(["vocab_projector", "cls.predictions", "lm_head", "predictions"]),
            Self::Pooler => of_head(["pre_classifier", "bert.pooler.dense", "classifier.dense", "albert.pooler"]),
            Self::SequenceClassifier => of_head(["classifier", "classifier", "classifier.out_proj", "classifier"]),
            Self::TokenClassifier => "classifier".to_owned(),
            Self::Projection => format!("{PROJECTION_FOLDER}.linear"),
            Self::Decoder(role) => role.name(family),
        }
    }
}

/// What stands before the parts of a layer. An ALBERT's number is that of the group, whose one inner layer it is.
fn layer_prefix(family: Family, layer: usize) -> String {
    match family {
        Family::DistilBert => format!("distilbert.transformer.layer.{layer}"),
        Family::Albert => format!("albert.encoder.albert_layer_groups.{layer}.albert_layers.0"),
        _ => format!("{family}.encoder.layer.{layer}"),
    }
}
