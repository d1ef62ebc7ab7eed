//! A decoder's settings: what its `config.json` says beyond the shape, read and written for `transformers`.

use super::super::config::{Overrides, StudentConfig};
use super::super::config_file::Keys;
use super::super::family::Family;
use crate::kernels::{Activation, Rotary};
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use serde_json::{Value, json};
use std::f64::consts::TAU;

/// The base of the rotary frequencies where nothing is said (Su et al. 2021).
pub const ROTARY_BASE: f64 = 10_000.0;

/// What a decoder has beside the shape of every student.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Heads of keys and of values; divides the query heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// How positions turn queries and keys; none where they are learned embeddings, as in a GPT-2.
    pub rotary: Option<RotaryConfig>,
    /// Whether the head's weight is the word embeddings'.
    pub tied: bool,
    /// Whether a Llama's attention maps have biases.
    pub attention_bias: bool,
    /// Whether a Llama's feed-forward maps have biases.
    pub mlp_bias: bool,
    /// Where a text begins.
    pub bos_token_id: Option<u32>,
    /// Where a text ends: one id, or any of several.
    pub eos_token_ids: Vec<u32>,
}

/// Rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryConfig {
    /// The base.
    pub theta: f64,
    /// What stretches them.
    pub scaling: RotaryScaling,
}

/// How frequencies are lowered so that longer texts fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    Default,
    /// All by a factor.
    Linear {
        /// Divides every frequency.
        factor: f64,
    },
    /// Llama 3.1's: the low ones by a factor, the high ones not at all, those between by degrees.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original` over this are scaled in full.
        low: f64,
        /// Wavelengths below `original` over this are not scaled.
        high: f64,
        /// Positions the model was first trained on.
        original: f64,
    },
}

impl RotaryConfig {
    /// `[head_width / 2]`, in radians per position.
    pub fn frequencies(&self, head_width: usize) -> Vec<f64> {
        let scaled = |frequency: f64| match self.scaling {
            RotaryScaling::Default => frequency,
            RotaryScaling::Linear { factor } => frequency / factor,
            RotaryScaling::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                share * frequency + (1.0 - share) * frequency / factor
            }
        };
        Rotary::frequencies(head_width, self.theta).into_iter().map(scaled).collect()
    }

    fn to_json(self) -> Value {
        let theta = self.theta;
        match self.scaling {
            RotaryScaling::Default => json!({"rope_theta": theta, "rope_type": "default"}),
            RotaryScaling::Linear { factor } => json!({"factor": factor, "rope_theta": theta, "rope_type": "linear"}),
            RotaryScaling::Llama3 { factor, low, high, original } => json!({
                "factor": factor,
                "high_freq_factor": high,
                "low_freq_factor": low,
                "original_max_position_embeddings": original as u64,
                "rope_theta": theta,
                "rope_type": "llama3",
            }),
        }
    }
}

/// A decoder's `config.json`; `activation` replaces the file's.
///
/// # Errors
/// A key that is missing or malformed, or says what no kernel computes.
pub(in crate::student) fn read(keys: &Keys<'_>, family: Family, activation: Option<Activation>) -> Result<StudentConfig> {
    let gpt2 = family == Family::Gpt2;
    let hidden_size = keys.count(&["n_embd", "hidden_size"])?;
    let heads = keys.count(&["n_head", "num_attention_heads"])?;
    let default = if gpt2 { Activation::GeluNew } else { Activation::Silu };
    let activation = match activation {
        Some(activation) => activation,
        None => keys.activation(&["activation_function", "hidden_act"], default)?,
    };
    let intermediate_size = match (gpt2, keys.has("n_inner")) {
        (true, false) => 4 * hidden_size,
        _ => keys.count(&["n_inner", "intermediate_size"])?,
    };
    for (key, usual) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)] {
        if keys.flag(key, usual)? != usual {
            return Err(keys.refuse_setting(key, &usual.to_string()));
        }
    }
    let decoder = DecoderConfig {
        key_value_heads: if keys.has("num_key_value_heads") { keys.count(&["num_key_value_heads"])? } else { heads },
        head_width: if keys.has("head_dim") { keys.count(&["head_dim"])? } else { hidden_size / heads },
        rotary: if gpt2 { None } else { Some(rotary(keys)?) },
        tied: keys.flag("tie_word_embeddings", gpt2)?,
        attention_bias: keys.flag("attention_bias", false)?,
        mlp_bias: keys.flag("mlp_bias", false)?,
        bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: keys.tokens("eos_token_id")?,
    };
    Ok(StudentConfig {
        task: Task::CausalLm,
        family,
        vocab_size: keys.count(&["vocab_size"])?,
        hidden_size,
        embedding_size: hidden_size,
        num_hidden_layers: keys.count(&["n_layer", "num_hidden_layers"])?,
        num_attention_heads: heads,
        intermediate_size,
        max_position_embeddings: keys.count(&["n_positions", "max_position_embeddings"])?,
        type_vocab_size: 0,
        activation,
        layer_norm_eps: keys.real(&["layer_norm_epsilon", "rms_norm_eps"], if gpt2 { 1e-5 } else { 1e-6 })?,
        dropout: if gpt2 { keys.real(&["resid_pdrop"], 0.1)? } else { 0.0 },
        attention_dropout: keys.real(&["attn_pdrop", "attention_dropout"], if gpt2 { 0.1 } else { 0.0 })?,
        initializer_range: keys.real(&["initializer_range"], 0.02)?,
        pad_token_id: keys.tokens("pad_token_id")?.first().copied(),
        decoder: Some(decoder),
        ..StudentConfig::default()
    })
}

/// `rope_parameters`, or the keys that `transformers` had before version 5.
fn rotary(keys: &Keys<'_>) -> Result<RotaryConfig> {
    let newer = keys.object("rope_parameters")?;
    let object = newer.or(keys.object("rope_scaling")?);
    let theta = match newer {
        Some(newer) if newer.contains_key("rope_theta") => newer["rope_theta"].as_f64(),
        _ => Some(keys.real(&["rope_theta"], ROTARY_BASE)?),
    };
    let Some(theta) = theta.filter(|theta| theta.is_finite() && *theta > 0.0) else {
        return Err(keys.refuse_setting("rope_theta", "a number above 0"));
    };
    let kind = object.and_then(|object| object.get("rope_type").or(object.get("type"))).and_then(Value::as_str).unwrap_or("default");
    let number = |name: &str| {
        let value = object.and_then(|object| object.get(name)).and_then(Value::as_f64).filter(|value| *value > 0.0);
        value.ok_or_else(|| keys.refuse_setting("rope_parameters", &format!("a number above 0 as {name}")))
    };
    let scaling = match kind {
        "default" => RotaryScaling::Default,
        "linear" => RotaryScaling::Linear { factor: number("factor")? },
        "llama3" => RotaryScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        },
        _ => return Err(keys.refuse_setting("rope_parameters", "rope_type default, linear or llama3")),
    };
    Ok(RotaryConfig { theta, scaling })
}

/// The decoder that a teacher's shape gives with what the user changed.
///
/// # Errors
/// A teacher that is no decoder.
pub(in crate::student) fn from_teacher(teacher: StudentConfig, overrides: &Overrides, path: &std::path::Path) -> Result<StudentConfig> {
    let family = overrides.family;
    let Some(decoder) = teacher.decoder.clone() else {
        let expected = "llama or gpt2: students of these families are taught by decoders";
        return Err(Error::data(path, "model_type", expected, teacher.family.name(), "choose another --family"));
    };
    let (hidden_size, heads) =
        (overrides.hidden_size.unwrap_or(teacher.hidden_size), overrides.num_attention_heads.unwrap_or(teacher.num_attention_heads));
    let same_heads = hidden_size == teacher.hidden_size && heads == teacher.num_attention_heads && family == teacher.family;
    let shared = decoder.key_value_heads;
    let other = family != teacher.family;
    let activation = if family == Family::Gpt2 { Activation::GeluNew } else { Activation::Silu };
    let decoder = DecoderConfig {
        key_value_heads: overrides.key_value_heads.unwrap_or(match family == Family::Gpt2 || !heads.is_multiple_of(shared) {
            true => heads,
            false => shared,
        }),
        head_width: if same_heads { decoder.head_width } else { hidden_size / heads.max(1) },
        rotary: match family {
            Family::Gpt2 => None,
            _ => Some(decoder.rotary.unwrap_or(RotaryConfig { theta: ROTARY_BASE, scaling: RotaryScaling::Default })),
        },
        attention_bias: decoder.attention_bias && !other,
        mlp_bias: decoder.mlp_bias && !other,
        ..decoder
    };
    let config = StudentConfig {
        family,
        num_hidden_layers: overrides.num_hidden_layers.unwrap_or(teacher.num_hidden_layers.div_ceil(2)),
        hidden_size,
        embedding_size: hidden_size,
        num_attention_heads: heads,
        intermediate_size: overrides.intermediate_size.unwrap_or(teacher.intermediate_size),
        activation: overrides.activation.unwrap_or(if other { activation } else { teacher.activation }),
        // A Llama has dropout in its attention alone.
        dropout: if family == Family::Gpt2 { overrides.dropout.unwrap_or(teacher.dropout) } else { 0.0 },
        attention_dropout: overrides.attention_dropout.unwrap_or(teacher.attention_dropout),
        decoder: Some(decoder),
        ..teacher
    };
    config.check()?;
    Ok(config)
}

impl StudentConfig {
    /// What one decoder asks and another does not.
    pub(in crate::student) fn check_decoder(&self) -> Result<()> {
        let Some(decoder) = &self.decoder else {
            return Err(Error::invalid("decoder", format!("the settings of a {}", self.family), "none"));
        };
        let refuse = |field: &str, expected: String, found: String| Err(Error::invalid(field, expected, found));
        if self.task != Task::CausalLm {
            return refuse("task", format!("{} for the family {}", Task::CausalLm, self.family), self.task.to_string());
        }
        if decoder.key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(decoder.key_value_heads) {
            let expected = format!("a divisor of num_attention_heads = {}", self.num_attention_heads);
            return refuse("num_key_value_heads", expected, decoder.key_value_heads.to_string());
        }
        let gpt2 = self.family == Family::Gpt2;
        let divided = !gpt2 || decoder.head_width * self.num_attention_heads == self.hidden_size;
        if decoder.head_width == 0 || decoder.head_width > u32::MAX as usize || !divided {
            let expected = format!("heads that divide hidden_size = {}", self.hidden_size);
            return refuse("num_attention_heads", expected, self.num_attention_heads.to_string());
        }
        if decoder.rotary.is_some() && !decoder.head_width.is_multiple_of(2) {
            return refuse("head_dim", "an even width, whose halves are turned".to_owned(), decoder.head_width.to_string());
        }
        if gpt2 != decoder.rotary.is_none() || (gpt2 && decoder.key_value_heads != self.num_attention_heads) {
            return refuse("model_type", "a GPT-2 with learned positions, or a Llama with turned ones".to_owned(), self.family.to_string());
        }
        let epsilon = self.layer_norm_eps;
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return refuse("layer_norm_eps", "a finite value above 0".to_owned(), epsilon.to_string());
        }
        if self.embedding_size != self.hidden_size || self.type_vocab_size != 0 {
            let found = format!("{} and {} token types", self.embedding_size, self.type_vocab_size);
            return refuse("embedding_size", format!("hidden_size = {}, and no token types", self.hidden_size), found);
        }
        Ok(())
    }

    /// The keys of a decoder's `config.json` that are not every student's.
    pub(in crate::student) fn decoder_json(&self, decoder: &DecoderConfig) -> Value {
        let eos = match &decoder.eos_token_ids[..] {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let mut value = json!({
            "bos_token_id": decoder.bos_token_id,
            "eos_token_id": eos,
            "tie_word_embeddings": decoder.tied,
            "use_cache": true,
        });
        let own = match &decoder.rotary {
            None => json!({
                "activation_function": self.activation.name(),
                "attn_pdrop": self.attention_dropout,
                "embd_pdrop": self.dropout,
                "layer_norm_epsilon": self.layer_norm_eps,
                "n_embd": self.hidden_size,
                "n_head": self.num_attention_heads,
                "n_inner": self.intermediate_size,
                "n_layer": self.num_hidden_layers,
                "n_positions": self.max_position_embeddings,
                "resid_pdrop": self.dropout,
            }),
            Some(rotary) => json!({
                "attention_bias": decoder.attention_bias,
                "attention_dropout": self.attention_dropout,
                "head_dim": decoder.head_width,
                "hidden_act": self.activation.name(),
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "max_position_embeddings": self.max_position_embeddings,
                "mlp_bias": decoder.mlp_bias,
                "num_attention_heads": self.num_attention_heads,
                "num_hidden_layers": self.num_hidden_layers,
                "num_key_value_heads": decoder.key_value_heads,
                "rms_norm_eps": self.layer_norm_eps,
                "rope_parameters": rotary.to_json(),
                "rope_theta": rotary.theta,
            }),
        };
        if let (Value::Object(value), Value::Object(own)) = (&mut value, own) {
            value.extend(own);
        }
        value
    }
}
