//! A student's first weights out of a seed.

use super::config::StudentConfig;
use super::family::Family;
use super::layout::ParameterSpec;
use super::names::Role;
use logitcache::seed::{Purpose, RandomStream};
use rayon::prelude::*;

/// The first values of one parameter drawn from a seed, as DistilBERT draws them: matrices from a normal distribution of standard deviation
/// `initializer_range` (a sentence encoder's projection 1 / sqrt(width)), biases 0, LayerNorm weights 1, the padding token's row 0.
pub fn at_random(config: &StudentConfig, seed: u64, parameter: &ParameterSpec) -> Vec<f32> {
    let length = parameter.shape.iter().product();
    if parameter.shape.len() == 1 {
        return vec![if parameter.name.ends_with(".bias") { 0.0 } else { 1.0 }; length];
    }
    // A projection keeps the variance of what it reads.
    let deviation = if parameter.role == Role::Projection { 1.0 / (parameter.shape[1] as f64).sqrt() } else { config.initializer_range };
    let mut values = vec![0.0; length];
    // A stream for each row, so that threads can share the work without changing what is drawn.
    values.par_chunks_mut(parameter.shape[1]).enumerate().for_each(|(row, values)| {
        let mut stream = RandomStream::new(seed, Purpose::Initialisation, &[parameter.number as u64, row as u64]);
        values.iter_mut().for_each(|value| *value = (deviation * stream.normal()) as f32);
    });
    let has_padding_row = match parameter.role {
        Role::WordEmbeddings => true,
        Role::PositionEmbeddings => config.family == Family::Roberta,
        _ => false,
    };
    if let (Some(pad), true) = (config.pad_token_id, has_padding_row) {
        let width = parameter.shape[1];
        values[pad as usize * width..][..width].fill(0.0);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::super::layout::layout;
    use super::*;

    #[test]
    fn random_values_have_their_moments_and_depend_on_the_seed() {
        let config = StudentConfig {
            vocab_size: 400,
            hidden_size: 64,
            embedding_size: 64,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 100,
            max_position_embeddings: 5,
            dropout: 0.1,
            attention_dropout: 0.1,
            initializer_range: 0.02,
            pad_token_id: Some(3),
            ..StudentConfig::default()
        };
        for parameter in layout(&config) {
            let values = at_random(&config, 5, &parameter);
            if parameter.shape.len() == 1 {
                let expected = if parameter.name.ends_with("bias") { 0.0 } else { 1.0 };
                assert!(values.iter().all(|value| *value == expected), "{}", parameter.name);
                continue;
            }
            let deviation = (values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            let tolerance = 4.0 * 0.02 / (2.0 * values.len() as f64).sqrt() + 0.02 / 400.0;
            assert!((deviation - 0.02).abs() < tolerance, "{}: standard deviation {deviation}", parameter.name);
            assert_eq!(values, at_random(&config, 5, &parameter));
            assert_ne!(values, at_random(&config, 6, &parameter));
        }
        let words = at_random(&config, 5, &layout(&config)[0]);
        assert!(words[3 * 64..4 * 64].iter().all(|value| *value == 0.0) && words[0] != 0.0);
    }
}
