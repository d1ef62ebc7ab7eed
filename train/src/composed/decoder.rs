//! A decoder's states: embeddings, then blocks in which a token sees those before it, then the final norm.

use super::attention::{Angles, Heads, attention};
use super::dropout::{Factors, dropped};
use super::operations::{activate, rms_norm};
use super::place::Place;
use super::values::Values;
use crate::kernels::{DropoutSite, Rotary};
use crate::student::decoder::{DecoderConfig, DecoderPart, DecoderRole};
use crate::student::family::Family;
use crate::student::{Role, StudentConfig};
use candle_core::{D, Result, Tensor};

/// `[tokens, hidden]`: what each block reads, then the normalised result.
pub(super) fn states(
    config: &StudentConfig,
    decoder: &DecoderConfig,
    values: &Values,
    place: &Place,
    factors: &Factors<'_>,
) -> Result<Vec<Tensor>> {
    let rotary = decoder.rotary.map(|rotary| Rotary::new(rotary.frequencies(decoder.head_width), config.max_position_embeddings));
    let angles = rotary.map(|rotary| Angles::new(&rotary, place)).transpose()?;
    let mut state = place.ids.of(values.weight(Role::Decoder(DecoderRole::Words))?)?;
    if let Some(positions) = &place.positions {
        state = (state + positions.of(values.weight(Role::Decoder(DecoderRole::Positions))?)?)?;
    }
    state = dropped(&state, DropoutSite::Embeddings, factors)?;
    let mut states = Vec::with_capacity(config.num_hidden_layers + 1);
    for layer in 0..config.num_hidden_layers {
        let block = Block { config, decoder, values, place, layer, factors };
        let next = block.forward(&state, angles.as_ref())?;
        states.push(std::mem::replace(&mut state, next));
    }
    states.push(norm(config, values, DecoderRole::FinalNorm, &state)?);
    Ok(states)
}

fn norm(config: &StudentConfig, values: &Values, role: DecoderRole, x: &Tensor) -> Result<Tensor> {
    let (role, epsilon) = (Role::Decoder(role), config.layer_norm_eps);
    match config.family {
        Family::Gpt2 => values.norm(x, role, epsilon),
        _ => rms_norm(x, values.weight(role)?, epsilon),
    }
}

struct Block<'a> {
    config: &'a StudentConfig,
    decoder: &'a DecoderConfig,
    values: &'a Values,
    place: &'a Place,
    layer: usize,
    factors: &'a Factors<'a>,
}

impl Block<'_> {
    /// A GPT-2's weights lie `[in, out]`.
    fn map(&self, x: &Tensor, part: DecoderPart) -> Result<Tensor> {
        self.values.map(x, Role::Decoder(DecoderRole::Layer(self.layer, part)), self.config.family == Family::Gpt2)
    }

    fn normalised(&self, x: &Tensor, part: DecoderPart) -> Result<Tensor> {
        norm(self.config, self.values, DecoderRole::Layer(self.layer, part), x)
    }

    /// `[tokens, hidden]` both.
    fn forward(&self, x: &Tensor, angles: Option<&Angles>) -> Result<Tensor> {
        let site = self.layer as u32;
        let attended = self.attended(&self.normalised(x, DecoderPart::AttentionNorm)?, angles)?;
        let x = (x + dropped(&attended, DropoutSite::AttentionOutput(site), self.factors)?)?;
        let narrowed = self.fed_forward(&self.normalised(&x, DecoderPart::FeedForwardNorm)?)?;
        &x + dropped(&narrowed, DropoutSite::FeedForward(site), self.factors)?
    }

    fn attended(&self, x: &Tensor, angles: Option<&Angles>) -> Result<Tensor> {
        let DecoderConfig { key_value_heads, head_width, .. } = *self.decoder;
        let heads = Heads { queries: self.config.num_attention_heads, keys: key_value_heads, width: head_width };
        let [query, key, value] = match self.config.family {
            Family::Gpt2 => {
                let (all, wide, narrow) = (self.map(x, DecoderPart::QueryKeyValue)?, heads.queries * head_width, heads.keys * head_width);
                let columns = |first, count| all.narrow(D::Minus1, first, count);
                [columns(0, wide)?, columns(wide, narrow)?, columns(wide + narrow, narrow)?]
            }
            _ => [self.map(x, DecoderPart::Query)?, self.map(x, DecoderPart::Key)?, self.map(x, DecoderPart::Value)?],
        };
        let context = attention([&query, &key, &value], heads, angles, self.place, self.layer as u32, self.factors)?;
        self.map(&context, DecoderPart::AttentionOutput)
    }

    fn fed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let (up, activation) = (self.map(x, DecoderPart::Up)?, self.config.activation);
        let between = match self.config.family {
            Family::Gpt2 => activate(&up, activation)?,
            _ => (activate(&self.map(x, DecoderPart::Gate)?, activation)? * up)?,
        };
        self.map(&between, DecoderPart::Down)
    }
}
