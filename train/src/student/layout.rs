//! Every parameter's name and shape, in the one order that the student, its file and the optimiser share.

use super::config::StudentConfig;

/// The word embeddings, which are the decoder's weight too.
pub const WORD_EMBEDDINGS: &str = "distilbert.embeddings.word_embeddings.weight";

/// The embeddings of the places in a sequence.
pub const POSITION_EMBEDDINGS: &str = "distilbert.embeddings.position_embeddings.weight";

/// What stands before a layer's number.
pub const LAYER_PREFIX: &str = "distilbert.transformer.layer.";

/// What a parameter is, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Its place in the order.
    pub number: usize,
    /// As `transformers` names it.
    pub name: String,
    /// `[rows, columns]` for a matrix (a linear layer's are `[output, input]`), `[width]` for a bias or a LayerNorm's weight.
    pub shape: Vec<usize>,
}

/// The parameters of a `DistilBertForMaskedLM`, the tied decoder weight once: embeddings, layers from the first to the last, head.
pub fn layout(config: &StudentConfig) -> Vec<ParameterSpec> {
    let (dim, hidden_dim) = (config.dim, config.hidden_dim);
    let mut specs = Specs(Vec::new());
    specs.add(WORD_EMBEDDINGS, &[config.vocab_size, dim]);
    specs.add(POSITION_EMBEDDINGS, &[config.max_position_embeddings, dim]);
    specs.pair("distilbert.embeddings.LayerNorm", &[dim]);
    for layer in 0..config.n_layers {
        let mut part = |name: &str, weight: &[usize]| specs.pair(&format!("{LAYER_PREFIX}{layer}.{name}"), weight);
        part("attention.q_lin", &[dim, dim]);
        part("attention.k_lin", &[dim, dim]);
        part("attention.v_lin", &[dim, dim]);
        part("attention.out_lin", &[dim, dim]);
        part("sa_layer_norm", &[dim]);
        part("ffn.lin1", &[hidden_dim, dim]);
        part("ffn.lin2", &[dim, hidden_dim]);
        part("output_layer_norm", &[dim]);
    }
    specs.pair("vocab_transform", &[dim, dim]);
    specs.pair("vocab_layer_norm", &[dim]);
    specs.add("vocab_projector.bias", &[config.vocab_size]);
    specs.0
}

struct Specs(Vec<ParameterSpec>);

impl Specs {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.0.push(ParameterSpec { number: self.0.len(), name: name.to_owned(), shape: shape.to_owned() });
    }

    fn pair(&mut self, name: &str, weight: &[usize]) {
        self.add(&format!("{name}.weight"), weight);
        self.add(&format!("{name}.bias"), &weight[..1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // sum(p.numel() for p in DistilBertForMaskedLM(DistilBertConfig()).parameters()) in transformers 5.24.0.
    #[test]
    fn the_default_distilbert_has_its_published_parameters() {
        let config = StudentConfig {
            vocab_size: 30_522,
            dim: 768,
            n_layers: 6,
            n_heads: 12,
            hidden_dim: 3072,
            max_position_embeddings: 512,
            dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            pad_token_id: Some(0),
        };
        let specs = layout(&config);
        assert_eq!(specs.iter().map(|spec| spec.shape.iter().product::<usize>()).sum::<usize>(), 66_985_530);
        assert_eq!(specs.len(), 4 + 6 * 16 + 5);
        assert!(specs.iter().enumerate().all(|(number, spec)| spec.number == number));
        let mut names: Vec<_> = specs.iter().map(|spec| &spec.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), specs.len(), "names are distinct");
    }
}
