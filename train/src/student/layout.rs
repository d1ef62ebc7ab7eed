//! Every parameter's name and shape, in the one order that the student, its file and the optimiser share.

use super::config::StudentConfig;
use super::decoder::add_decoder;
use super::family::Family;
use super::names::{LayerPart, Role};
use logitcache::target::Task;

/// What a parameter is, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Its place in the order.
    pub number: usize,
    /// As `transformers` names it.
    pub name: String,
    /// `[rows, columns]` for a matrix (a linear layer's are `[output, input]`), `[width]` for a bias or a LayerNorm's weight.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// Whether it is the bias of its role, not the weight.
    pub bias: bool,
}

/// The parameters of the family's model with the task's head, the tied decoder weight once: embeddings, layers from the first to the last (an
/// ALBERT's one layer once), head. A sentence encoder is the family's model itself, whose names have no prefix.
pub fn layout(config: &StudentConfig) -> Vec<ParameterSpec> {
    let (hidden, embedding, between) = (config.hidden_size, config.embedding_size, config.intermediate_size);
    let mut specs = Specs { family: config.family, bare: config.task == Task::SentenceEmbedding, list: Vec::new() };
    if let Some(decoder) = &config.decoder {
        add_decoder(&mut specs, config, decoder);
        return specs.list;
    }
    specs.weight(Role::WordEmbeddings, &[config.vocab_size, embedding]);
    specs.weight(Role::PositionEmbeddings, &[config.max_position_embeddings, embedding]);
    if config.family.has_token_types() {
        specs.weight(Role::TokenTypeEmbeddings, &[config.type_vocab_size, embedding]);
    }
    specs.pair(Role::EmbeddingNorm, &[embedding]);
    if config.family == Family::Albert {
        specs.pair(Role::EmbeddingMapping, &[hidden, embedding]);
    }
    for layer in 0..config.layers_with_parameters() {
        for part in LayerPart::ALL {
            let shape: &[usize] = match part {
                LayerPart::Query | LayerPart::Key | LayerPart::Value | LayerPart::AttentionOutput => &[hidden, hidden],
                LayerPart::AttentionNorm | LayerPart::OutputNorm => &[hidden],
                LayerPart::Widen => &[between, hidden],
                LayerPart::Narrow => &[hidden, between],
            };
            specs.pair(Role::Layer(layer, part), shape);
        }
    }
    match config.task {
        Task::MaskedLm | Task::CausalLm => {
            specs.pair(Role::HeadDense, &[embedding, hidden]);
            specs.pair(Role::HeadNorm, &[embedding]);
            specs.add(Role::DecoderBias, true, &[config.vocab_size]);
        }
        Task::SequenceClassification => {
            specs.pair(Role::Pooler, &[hidden, hidden]);
            specs.pair(Role::SequenceClassifier, &[config.classes, hidden]);
        }
        Task::TokenClassification => specs.pair(Role::TokenClassifier, &[config.classes, hidden]),
        Task::SentenceEmbedding if config.embedding_output > 0 => specs.pair(Role::Projection, &[config.embedding_output, hidden]),
        Task::SentenceEmbedding => {}
    }
    specs.list
}

/// Parameters in the making.
pub(super) struct Specs {
    family: Family,
    /// Whether names are those of the model without a head.
    bare: bool,
    list: Vec<ParameterSpec>,
}

impl Specs {
    pub(super) fn add(&mut self, role: Role, bias: bool, shape: &[usize]) {
        let role_name = role.name(self.family);
        let prefix = format!("{}.", self.family);
        let role_name = if self.bare { role_name.strip_prefix(&prefix).unwrap_or(&role_name) } else { &role_name };
        let name = format!("{role_name}.{}", if bias { "bias" } else { "weight" });
        self.list.push(ParameterSpec { number: self.list.len(), name, shape: shape.to_owned(), role, bias });
    }

    pub(super) fn weight(&mut self, role: Role, shape: &[usize]) {
        self.add(role, false, shape);
    }

    fn pair(&mut self, role: Role, weight: &[usize]) {
        self.add(role, false, weight);
        self.add(role, true, &weight[..1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sum(p.numel() for p in model.parameters()) of each family's masked language model in transformers 5.24.0, on a base shape.
    #[test]
    fn every_family_has_its_published_parameters() {
        let base = StudentConfig::default();
        let of = |family, type_vocab_size| StudentConfig { family, type_vocab_size, pad_token_id: Some(0), ..base.clone() };
        let albert = StudentConfig { embedding_size: 128, ..of(Family::Albert, 2) };
        let cases = [
            (base.clone(), 66_985_530, 4 + 6 * 16 + 5),
            (of(Family::Bert, 2), 66_987_066, 5 + 6 * 16 + 5),
            (of(Family::Roberta, 2), 66_987_066, 5 + 6 * 16 + 5),
            (albert, 11_289_018, 7 + 16 + 5),
        ];
        for (config, numbers, tensors) in cases {
            let specs = layout(&config);
            assert_eq!(specs.iter().map(|spec| spec.shape.iter().product::<usize>()).sum::<usize>(), numbers, "{}", config.family);
            assert_eq!(specs.len(), tensors, "{}", config.family);
            assert!(specs.iter().enumerate().all(|(number, spec)| spec.number == number));
            let mut names: Vec<_> = specs.iter().map(|spec| &spec.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), specs.len(), "names are distinct");
        }
    }
}
