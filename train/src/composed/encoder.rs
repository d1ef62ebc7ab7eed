//! An encoder's states: embeddings, then blocks in which every token sees every other of its sequence.

use super::attention::{Heads, attention};
use super::dropout::{Factors, dropped};
use super::operations::activate;
use super::place::Place;
use super::values::Values;
use crate::kernels::DropoutSite;
use crate::student::family::Family;
use crate::student::{LayerPart, Role, StudentConfig};
use candle_core::{Result, Tensor};

/// `[tokens, hidden]` after the embeddings and after each layer.
pub(super) fn states(config: &StudentConfig, values: &Values, place: &Place, factors: &Factors<'_>) -> Result<Vec<Tensor>> {
    let mut states = vec![embedded(config, values, place, factors)?];
    for layer in 0..config.num_hidden_layers {
        states.push(block(config, values, place, layer, &states[layer], factors)?);
    }
    Ok(states)
}

fn embedded(config: &StudentConfig, values: &Values, place: &Place, factors: &Factors<'_>) -> Result<Tensor> {
    let mut sum = place.ids.of(values.weight(Role::WordEmbeddings)?)?;
    for (lookup, role) in [(&place.types, Role::TokenTypeEmbeddings), (&place.positions, Role::PositionEmbeddings)] {
        if let Some(lookup) = lookup {
            sum = (sum + lookup.of(values.weight(role)?)?)?;
        }
    }
    let normalised = values.norm(&sum, Role::EmbeddingNorm, config.layer_norm_eps)?;
    let embedded = dropped(&normalised, DropoutSite::Embeddings, factors)?;
    if config.family == Family::Albert { values.linear(&embedded, Role::EmbeddingMapping) } else { Ok(embedded) }
}

/// Layer `layer`, counted as the layers are run. Where dropout stands is the family's, as in the kernels' block.
fn block(config: &StudentConfig, values: &Values, place: &Place, layer: usize, x: &Tensor, factors: &Factors<'_>) -> Result<Tensor> {
    let own = layer.min(config.layers_with_parameters() - 1);
    let role = |part| Role::Layer(own, part);
    let (site, epsilon) = (layer as u32, config.layer_norm_eps);
    let heads = Heads { queries: config.num_attention_heads, keys: config.num_attention_heads, width: config.head_size() };
    let map = |part| values.linear(x, role(part));
    let (query, key, value) = (map(LayerPart::Query)?, map(LayerPart::Key)?, map(LayerPart::Value)?);
    let context = attention([&query, &key, &value], heads, None, place, site, factors)?;
    let mut attended = values.linear(&context, role(LayerPart::AttentionOutput))?;
    if config.family != Family::DistilBert {
        attended = dropped(&attended, DropoutSite::AttentionOutput(site), factors)?;
    }
    let hidden = values.norm(&(attended + x)?, role(LayerPart::AttentionNorm), epsilon)?;
    let widened = activate(&values.linear(&hidden, role(LayerPart::Widen))?, config.activation)?;
    let mut narrowed = values.linear(&widened, role(LayerPart::Narrow))?;
    if config.family != Family::Albert {
        narrowed = dropped(&narrowed, DropoutSite::FeedForward(site), factors)?;
    }
    values.norm(&(narrowed + hidden)?, role(LayerPart::OutputNorm), epsilon)
}
