//! Shapes out of a teacher's configuration, overrides, and what is refused.

use super::*;

const TEACHER: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "vocab_size": 591, "hidden_size": 256, "num_hidden_layers": 12,
    "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 512, "hidden_dropout_prob": 0.2, "pad_token_id": 3}"#;

fn teacher(text: &str, overrides: &Overrides) -> Result<StudentConfig> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    StudentConfig::from_teacher(&path, overrides)
}

#[test]
fn a_teacher_gives_its_shape_and_half_its_layers() {
    let config = teacher(TEACHER, &Overrides::default()).unwrap();
    assert_eq!(
        (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size),
        (591, 256, 6, 4, 512)
    );
    assert_eq!((config.dropout, config.attention_dropout, config.initializer_range, config.pad_token_id), (0.2, 0.1, 0.02, Some(3)));
    assert_eq!(config.head_size(), 64);
}

#[test]
fn overrides_win() {
    let overrides = Overrides {
        num_hidden_layers: Some(3),
        hidden_size: Some(96),
        num_attention_heads: Some(6),
        intermediate_size: Some(100),
        dropout: Some(0.0),
        attention_dropout: Some(0.3),
        ..Overrides::default()
    };
    let config = teacher(TEACHER, &overrides).unwrap();
    assert_eq!((config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size), (3, 96, 6, 100));
    assert_eq!((config.dropout, config.attention_dropout), (0.0, 0.3));
}

#[test]
fn a_written_configuration_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    for family in Family::ENCODERS {
        let overrides = Overrides { family, dropout: Some(0.0), activation: Some(Activation::Silu), ..Default::default() };
        let config = teacher(&TEACHER.replace("\"pad", "\"layer_norm_eps\": 1e-5, \"pad"), &overrides).unwrap();
        assert_eq!(config.layer_norm_eps, if family == Family::DistilBert { 1e-12 } else { 1e-5 });
        let padless = StudentConfig { pad_token_id: None, ..config.clone() };
        for config in [config, padless].into_iter().filter(|config| config.check().is_ok()) {
            std::fs::write(&path, config.to_json()).unwrap();
            assert_eq!(StudentConfig::read(&path).unwrap(), config);
        }
    }
    std::fs::write(&path, TEACHER.replace("bert", "electra")).unwrap();
    let message = StudentConfig::read(&path).unwrap_err().to_string();
    assert!(message.contains("model_type: expected one of distilbert, bert, roberta, albert, llama, gpt2, found electra"), "{message}");
}

#[test]
fn a_student_of_another_family_takes_sequences_as_long_as_the_teachers() {
    let rows = |text: &str, family| teacher(text, &Overrides { family, ..Default::default() }).unwrap().max_position_embeddings;
    let roberta =
        TEACHER.replace("\"bert\"", "\"xlm-roberta\"").replace("512, \"hidden_d", "514, \"hidden_d").replace("_id\": 3", "_id\": 1");
    assert_eq!((rows(TEACHER, Family::Bert), rows(TEACHER, Family::Roberta)), (512, 516));
    assert_eq!((rows(&roberta, Family::DistilBert), rows(&roberta, Family::Roberta)), (512, 514));
}

#[test]
fn an_alberts_embeddings_are_as_wide_as_its_teachers_or_the_published_ones() {
    let width = |text: &str, overrides: Overrides| teacher(text, &overrides).map(|config| config.embedding_size);
    let albert = TEACHER.replace("\"bert\"", "\"albert\"").replace("\"vocab", "\"embedding_size\": 32, \"vocab");
    let of = |family| Overrides { family, ..Default::default() };
    assert_eq!(width(&albert, of(Family::Albert)).unwrap(), 32);
    assert_eq!(width(TEACHER, of(Family::Albert)).unwrap(), ALBERT_EMBEDDING_SIZE);
    assert_eq!(width(TEACHER, Overrides { wide_embedding: true, ..of(Family::Albert) }).unwrap(), 256);
    let narrow = Overrides { hidden_size: Some(64), ..of(Family::Albert) };
    assert_eq!(width(TEACHER, narrow).unwrap(), 64);
    let bert = Overrides { embedding_size: Some(32), ..of(Family::Bert) };
    assert!(width(TEACHER, bert).unwrap_err().to_string().contains("embedding_size: expected hidden_size = 256 for the family bert"));
}

#[test]
fn another_activation_is_refused_by_name() {
    let message = teacher(&TEACHER.replace("\"gelu\"", "\"gelu_10\""), &Overrides::default()).unwrap_err().to_string();
    assert!(message.contains("hidden_act: expected one of gelu, gelu_new, relu, silu, found \"gelu_10\""), "{message}");
}

#[test]
fn keys_that_are_missing_or_of_another_kind_are_named() {
    let message = |from: &str, to: &str| teacher(&TEACHER.replace(from, to), &Overrides::default()).unwrap_err().to_string();
    assert!(message("\"vocab_size\": 591,", "").contains("vocab_size: expected a whole number above 0, found no such key"));
    assert!(message("\"hidden_size\": 256", "\"hidden_size\": \"wide\"").contains("hidden_size: expected a whole number above 0"));
    assert!(message("\"pad_token_id\": 3", "\"pad_token_id\": 591").contains("pad_token_id: expected an id below vocab_size = 591"));
    assert!(message("\"hidden_dropout_prob\": 0.2", "\"hidden_dropout_prob\": 1").contains("dropout: expected a share"));
}

#[test]
fn heads_must_divide_the_width() {
    let message = teacher(TEACHER, &Overrides { num_attention_heads: Some(5), ..Default::default() }).unwrap_err().to_string();
    assert!(message.contains("num_attention_heads: expected a divisor of hidden_size = 256, found 5"), "{message}");
}
