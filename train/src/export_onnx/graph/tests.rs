//! Names of modules, and that no parameter is forgotten.

use super::*;
use logitcache::target::Task;

#[test]
fn modules_have_paths() {
    assert_eq!(module_path("bert.encoder.layer.10.attention.self.query"), "/bert/encoder/layer.10/attention/self/query");
    assert_eq!(parent("/bert/encoder/layer.10/output"), "/bert/encoder/layer.10");
    assert_eq!(parent("/vocab_transform"), "");
}

#[test]
fn every_parameter_of_a_decoder_is_in_the_graph_once() {
    for config in crate::student::decoder::tests::decoders() {
        let (graph, specs) = (build(&config), layout(&config));
        let mut found: Vec<&str> = graph.weights().iter().map(|weight| parameter_of(&weight.name)).collect();
        let mut expected: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{}", config.family);
    }
}

#[test]
fn every_parameter_is_in_the_graph_once() {
    for family in Family::ENCODERS {
        for task in [Task::MaskedLm, Task::SequenceClassification, Task::TokenClassification, Task::SentenceEmbedding] {
            let config = StudentConfig {
                family,
                task,
                classes: 3,
                embedding_output: if task == Task::SentenceEmbedding { 96 } else { 0 },
                normalized: true,
                num_hidden_layers: 2,
                type_vocab_size: usize::from(family.has_token_types()),
                embedding_size: if family == Family::Albert { 128 } else { 768 },
                ..StudentConfig::default()
            };
            let graph = build(&config);
            let mut found: Vec<&str> = graph.weights().iter().map(|weight| parameter_of(&weight.name)).collect();
            let specs = layout(&config);
            let mut expected: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{family} {task}");
        }
    }
}
