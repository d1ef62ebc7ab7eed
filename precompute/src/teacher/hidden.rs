//! Which tensor of a graph leaves each encoder layer.
//!
//! Two independent readings, which must not contradict each other:
//!
//! - By structure. In a post-norm encoder (BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, MPNet) every layer normalises twice, each time the sum of the
//!   sub-layer's output and its input. These normalisations form a chain in which each one's residual is the output of the one before. Layer 0 is the
//!   residual of the first, layer i the output of the 2i-th. The embeddings' and the head's normalisations have no residual and so are not in it.
//!   In a pre-norm decoder (GPT-2, Llama) every layer normalises twice too, but what it adds to is the tensor before the normalisation, and one more
//!   normalisation follows the last layer. So a chain of 2 L + 1 in which each one normalises what the one before did, and what that led to: layer i
//!   is what the 2i-th (from 0) normalises, the last layer is the output of the last one, as `transformers` counts.
//! - By name. Exporters keep the module's path in the name of the LayerNorm's scale, or of its node.
//!
//! What neither finds (other orders of norms, layers inside one fused node) is not guessed: the error lists the candidates.

use logitcache::onnx::{Graph, LayerNorm, find_layer_norms};
use std::collections::BTreeMap;

/// What the graph's encoder looks like.
pub(super) struct Encoder<'a> {
    norms: Vec<LayerNorm<'a>>,
    by_structure: Vec<&'a str>,
    by_name: BTreeMap<u32, &'a str>,
}

/// Why a layer's tensor is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Nothing looks like it.
    NotFound,
    /// The two readings differ: the tensor by structure, the one by name.
    Contradiction(String, String),
}

impl<'a> Encoder<'a> {
    /// Reads a graph.
    pub(super) fn of(graph: &Graph<'a>) -> Self {
        let norms = find_layer_norms(graph);
        let mut by_structure = chain(graph, &norms);
        let post_norm = !by_structure.is_empty();
        if !post_norm {
            by_structure = pre_norm_chain(graph, &norms);
        }
        let pre_norm = !post_norm && !by_structure.is_empty();
        let mut by_name = names(&norms, pre_norm);
        // Where a projection follows the embeddings, their LayerNorm is not what enters layer 1.
        if graph.nodes().iter().flat_map(|node| &node.inputs).any(|name| is_projection(name)) {
            by_name.remove(&0);
        }
        Self { norms, by_structure, by_name }
    }

    /// Layers found, the embeddings not counted; 0 where none is.
    pub(super) fn layers(&self) -> u32 {
        match self.by_structure.len() {
            0 => self.by_name.keys().max().copied().unwrap_or(0),
            states => states as u32 - 1,
        }
    }

    /// The tensor that leaves `layer`; 0 is what enters the first.
    pub(super) fn state(&self, layer: u32) -> Result<&'a str, Unknown> {
        match (self.by_structure.get(layer as usize), self.by_name.get(&layer)) {
            (Some(structure), Some(name)) if structure != name => Err(Unknown::Contradiction((*structure).to_owned(), (*name).to_owned())),
            (Some(tensor), _) | (None, Some(tensor)) => Ok(tensor),
            (None, None) => Err(Unknown::NotFound),
        }
    }

    /// Width of the normalised tensors, where the file says.
    pub(super) fn width(&self) -> Option<u32> {
        let last = self.norms.iter().rfind(|norm| self.by_structure.last() == Some(&norm.output));
        u32::try_from(last.or(self.norms.last())?.width?).ok()
    }

    /// For messages: every normalised tensor with the scale that tells which module it belongs to.
    pub(super) fn candidates(&self) -> String {
        let describe = |norm: &LayerNorm<'_>| format!("{} (scale {})", norm.output, norm.scale);
        match self.norms.is_empty() {
            true => "no layer normalisation".to_owned(),
            false => self.norms.iter().map(describe).collect::<Vec<_>>().join(", "),
        }
    }
}

/// Hidden states 0 to L by structure; empty where the residuals are no such chain.
fn chain<'a>(graph: &Graph<'a>, norms: &[LayerNorm<'a>]) -> Vec<&'a str> {
    let links: Vec<(&str, &str)> = norms.iter().filter_map(|norm| Some((norm.residual(graph)?, norm.output))).collect();
    let linked = links.windows(2).all(|pair| pair[1].0 == pair[0].1);
    if links.is_empty() || links.len() % 2 == 1 || !linked {
        return Vec::new();
    }
    std::iter::once(links[0].0).chain(links.iter().skip(1).step_by(2).map(|link| link.1)).collect()
}

/// The same where the norms stand before the sub-layers; empty where the longest chain is of no whole number of layers and a last norm.
fn pre_norm_chain<'a>(graph: &Graph<'a>, norms: &[LayerNorm<'a>]) -> Vec<&'a str> {
    // longest[j]: (norms of the longest chain that ends with norm j, the one before it).
    let mut longest: Vec<(usize, Option<usize>)> = Vec::with_capacity(norms.len());
    for (place, norm) in norms.iter().enumerate() {
        let before = (0..place).filter(|earlier| norm.follows(&norms[*earlier], graph)).max_by_key(|earlier| longest[*earlier].0);
        longest.push((before.map_or(1, |earlier| longest[earlier].0 + 1), before));
    }
    let mut place = (0..norms.len()).max_by_key(|place| longest[*place].0);
    let mut along = Vec::new();
    while let Some(norm) = place {
        along.push(&norms[norm]);
        place = longest[norm].1;
    }
    if along.len() < 3 || along.len().is_multiple_of(2) {
        return Vec::new();
    }
    let last = along[0].output;
    along.reverse();
    let entering = along[..along.len() - 1].iter().step_by(2).map(|norm| norm.input);
    entering.chain([Some(last)]).collect::<Option<Vec<&str>>>().unwrap_or_default()
}

/// Hidden states by the module path in a name; a number that two tensors claim is left out.
fn names<'a>(norms: &[LayerNorm<'a>], pre_norm: bool) -> BTreeMap<u32, &'a str> {
    let mut found: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for norm in norms {
        if let Some(layer) = layer_in(norm.scale).or_else(|| layer_in(norm.node_name)) {
            found.entry(layer).or_default().push(norm.output);
        } else if let (Some(layer), Some(input)) = (entered(norm.scale).or_else(|| entered(norm.node_name)), norm.input)
            && pre_norm
        {
            found.entry(layer).or_default().push(input);
        }
    }
    found.into_iter().filter_map(|(layer, tensors)| matches!(tensors[..], [_]).then(|| (layer, tensors[0]))).collect()
}

/// The layer that a module path such as `model.layers.3.input_layernorm.weight` stands at the entrance of: the tensor before it is that state.
fn entered(path: &str) -> Option<u32> {
    let parts: Vec<&str> = path.split(['.', '/']).filter(|part| !part.is_empty()).collect();
    (0..parts.len()).find_map(|start| match parts[start..] {
        ["layers", number, "input_layernorm", ..] | ["h", number, "ln_1", ..] => number.parse().ok(),
        _ => None,
    })
}

/// The layer whose last LayerNorm a module path such as `encoder.layer.3.output.LayerNorm.weight` is: 4; 0 for that of the embeddings.
fn layer_in(path: &str) -> Option<u32> {
    let parts: Vec<&str> = path.split(['.', '/']).filter(|part| !part.is_empty()).collect();
    (0..parts.len()).find_map(|start| match parts[start..] {
        ["embeddings", "LayerNorm", ..] => Some(0),
        ["layer", number, "output", "LayerNorm", ..] | ["layer", number, "output_layer_norm", ..] => {
            number.parse::<u32>().ok()?.checked_add(1)
        }
        _ => None,
    })
}

fn is_projection(name: &str) -> bool {
    name.contains("embeddings_project") || name.contains("embedding_hidden_mapping_in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_path_tells_the_layer_it_is_the_entrance_of() {
        for (path, layer) in [
            ("model.model.layers.0.input_layernorm.weight", Some(0)),
            ("/model/transformer/h.11/ln_1/LayerNormalization", Some(11)),
            ("model.transformer.h.11.ln_1.weight", Some(11)),
            ("model.layers.3.post_attention_layernorm.weight", None),
            ("model.norm.weight", None),
        ] {
            assert_eq!(entered(path), layer, "{path}");
        }
    }

    #[test]
    fn a_module_path_tells_the_layer() {
        for (path, layer) in [
            ("bert.encoder.layer.0.output.LayerNorm.weight", Some(1)),
            ("/m/bert/encoder/layer.11/output/LayerNorm/LayerNormalization", Some(12)),
            ("m.distilbert.transformer.layer.5.output_layer_norm.weight", Some(6)),
            ("bert.embeddings.LayerNorm.weight", Some(0)),
            ("bert.encoder.layer.0.attention.output.LayerNorm.weight", None),
            ("distilbert.transformer.layer.0.sa_layer_norm.weight", None),
            ("cls.predictions.transform.LayerNorm.weight", None),
            ("encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm.weight", None),
            ("onnx::Mul_417", None),
            ("layer.4294967295.output.LayerNorm", None),
            ("", None),
        ] {
            assert_eq!(layer_in(path), layer, "{path}");
        }
    }
}
