//! What a decoder's parameters are for, what each family calls them, and their order.
//!
//! Names are those of `LlamaForCausalLM` and `GPT2LMHeadModel`. A GPT-2's maps lie `[in, out]` in its files, and so they do here.

use super::super::config::StudentConfig;
use super::super::family::Family;
use super::super::layout::Specs;
use super::super::names::Role;
use super::settings::DecoderConfig;

/// The place of a parameter in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecoderRole {
    /// `[vocabulary, hidden]`; the head's weight too where they are tied.
    Words,
    /// `[positions, hidden]`; a Llama has none.
    Positions,
    /// A part of a layer, counted from 0.
    Layer(usize, DecoderPart),
    /// The norm of the last state, `[hidden]`.
    FinalNorm,
    /// `[vocabulary, hidden]`, where it is not tied to the words.
    Head,
}

/// A part of a decoder's layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecoderPart {
    /// A Llama's `[heads * head width, hidden]`.
    Query,
    /// A Llama's `[key-value heads * head width, hidden]`.
    Key,
    /// A Llama's `[key-value heads * head width, hidden]`.
    Value,
    /// A GPT-2's queries, keys and values side by side, `[hidden, 3 * hidden]`.
    QueryKeyValue,
    /// `[hidden, heads * head width]`, the other way round in a GPT-2.
    AttentionOutput,
    /// Before the attention, `[hidden]`.
    AttentionNorm,
    /// Before the feed-forward part, `[hidden]`.
    FeedForwardNorm,
    /// A Llama's `[between, hidden]`, through the activation.
    Gate,
    /// `[between, hidden]`, the other way round in a GPT-2.
    Up,
    /// `[hidden, between]`, the other way round in a GPT-2.
    Down,
}

impl DecoderRole {
    /// What `transformers` calls it, without `.weight` or `.bias`.
    pub fn name(self, family: Family) -> String {
        let gpt2 = family == Family::Gpt2;
        match self {
            Self::Words => if gpt2 { "transformer.wte" } else { "model.embed_tokens" }.to_owned(),
            Self::Positions => "transformer.wpe".to_owned(),
            Self::Layer(layer, part) if gpt2 => format!("transformer.h.{layer}.{}", part.gpt2_name()),
            Self::Layer(layer, part) => format!("model.layers.{layer}.{}", part.llama_name()),
            Self::FinalNorm => if gpt2 { "transformer.ln_f" } else { "model.norm" }.to_owned(),
            Self::Head => "lm_head".to_owned(),
        }
    }
}

impl DecoderPart {
    fn llama_name(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::QueryKeyValue => "self_attn.qkv_proj",
            Self::AttentionOutput => "self_attn.o_proj",
            Self::AttentionNorm => "input_layernorm",
            Self::FeedForwardNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    fn gpt2_name(self) -> &'static str {
        match self {
            Self::Query => "attn.c_query",
            Self::Key => "attn.c_key",
            Self::Value => "attn.c_value",
            Self::QueryKeyValue => "attn.c_attn",
            Self::AttentionOutput => "attn.c_proj",
            Self::AttentionNorm => "ln_1",
            Self::FeedForwardNorm => "ln_2",
            Self::Gate => "mlp.c_gate",
            Self::Up => "mlp.c_fc",
            Self::Down => "mlp.c_proj",
        }
    }

    /// The parts of a family's layer.
    pub fn of(family: Family) -> &'static [Self] {
        match family {
            Family::Gpt2 => &[Self::AttentionNorm, Self::QueryKeyValue, Self::AttentionOutput, Self::FeedForwardNorm, Self::Up, Self::Down],
            _ => &[
                Self::Query,
                Self::Key,
                Self::Value,
                Self::AttentionOutput,
                Self::Gate,
                Self::Up,
                Self::Down,
                Self::AttentionNorm,
                Self::FeedForwardNorm,
            ],
        }
    }

    /// Whether it is a norm, whose weight is a vector.
    pub fn is_norm(self) -> bool {
        matches!(self, Self::AttentionNorm | Self::FeedForwardNorm)
    }

    /// Inputs and outputs of a map, or the width of a norm twice.
    pub fn sizes(self, config: &StudentConfig, decoder: &DecoderConfig) -> (usize, usize) {
        let (hidden, between) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.num_attention_heads * decoder.head_width, decoder.key_value_heads * decoder.head_width);
        match self {
            Self::Query => (hidden, queries),
            Self::Key | Self::Value => (hidden, keys),
            Self::QueryKeyValue => (hidden, queries + 2 * keys),
            Self::AttentionOutput => (queries, hidden),
            Self::AttentionNorm | Self::FeedForwardNorm => (hidden, hidden),
            Self::Gate | Self::Up => (hidden, between),
            Self::Down => (between, hidden),
        }
    }

    /// Whether the part has a bias.
    pub fn has_bias(self, family: Family, decoder: &DecoderConfig) -> bool {
        match self {
            _ if family == Family::Gpt2 => true,
            Self::AttentionNorm | Self::FeedForwardNorm => false,
            Self::Gate | Self::Up | Self::Down => decoder.mlp_bias,
            _ => decoder.attention_bias,
        }
    }
}

/// Adds every parameter of a decoder, a tied head's weight once: embeddings, layers from the first to the last, final norm, head.
pub(in crate::student) fn add_decoder(specs: &mut Specs, config: &StudentConfig, decoder: &DecoderConfig) {
    let (family, hidden) = (config.family, config.hidden_size);
    let role = Role::Decoder;
    specs.weight(role(DecoderRole::Words), &[config.vocab_size, hidden]);
    if decoder.rotary.is_none() {
        specs.weight(role(DecoderRole::Positions), &[config.max_position_embeddings, hidden]);
    }
    for layer in 0..config.num_hidden_layers {
        for part in DecoderPart::of(family) {
            let (inputs, outputs) = part.sizes(config, decoder);
            let shape: &[usize] = match (part.is_norm(), family == Family::Gpt2) {
                (true, _) => &[hidden],
                (false, true) => &[inputs, outputs],
                (false, false) => &[outputs, inputs],
            };
            let role = role(DecoderRole::Layer(layer, *part));
            specs.weight(role, shape);
            if part.has_bias(family, decoder) {
                specs.add(role, true, &[outputs]);
            }
        }
    }
    specs.weight(role(DecoderRole::FinalNorm), &[hidden]);
    if family == Family::Gpt2 {
        specs.add(role(DecoderRole::FinalNorm), true, &[hidden]);
    }
    if !decoder.tied {
        specs.weight(role(DecoderRole::Head), &[config.vocab_size, hidden]);
    }
}
