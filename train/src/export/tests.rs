//! Students written and loaded again, and what is refused.

use super::*;
use crate::student::Family;
use crate::student::at_random;
use candle_core::Tensor;
use logitcache::target::{Pooling, Problem};
use safetensors::SafeTensors;

fn config() -> StudentConfig {
    StudentConfig {
        vocab_size: 13,
        hidden_size: 8,
        embedding_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 7,
        dropout: 0.1,
        attention_dropout: 0.0,
        initializer_range: 0.02,
        pad_token_id: None,
        ..StudentConfig::default()
    }
}

fn student(dtype: DType) -> Student {
    Student::new(config(), dtype, &mut |spec: &ParameterSpec| Ok(at_random(&config(), 1, spec))).unwrap()
}

fn teacher_files() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", ".vocab.txt.partial"] {
        std::fs::write(directory.path().join(name), format!("the teacher's {name}")).unwrap();
    }
    directory
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn values(student: &Student) -> Vec<(String, Vec<f32>)> {
    student.parameters().iter().map(|parameter| (parameter.name().to_owned(), with_f32(parameter, <[f32]>::to_vec).unwrap())).collect()
}

#[test]
fn a_saved_student_loads_as_it_was() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    let directory = out.path().join("new/student");
    for dtype in [DType::F64, DType::F32] {
        let student = student(dtype);
        save(&student, teacher.path(), &directory).unwrap();
        let loaded = load(&directory).unwrap();
        assert_eq!(loaded.config(), student.config());
        assert_eq!(values(&loaded), values(&student));
    }
    assert_eq!(names(&directory), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(std::fs::read_to_string(directory.join("tokenizer.json")).unwrap(), "the teacher's tokenizer.json");
    assert!(std::fs::read_to_string(directory.join("config.json")).unwrap().contains("DistilBertForMaskedLM"));
}

#[test]
fn the_file_is_what_other_readers_expect() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    save(&student(DType::F32), teacher.path(), out.path()).unwrap();
    let bytes = std::fs::read(out.path().join(MODEL_FILE)).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 4 + 2 * 16 + 5);
    assert_eq!(tensors.tensor("distilbert.transformer.layer.1.ffn.lin1.weight").unwrap().shape(), [12, 8]);
    // The tied weight is stored once, under the name of the word embeddings.
    assert!(tensors.tensor("vocab_projector.weight").is_err() && tensors.tensor("vocab_projector.bias").is_ok());
}

#[test]
fn a_diverged_student_does_not_replace_a_good_one() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    let student = student(DType::F32);
    save(&student, teacher.path(), out.path()).unwrap();
    let before = std::fs::read(out.path().join(MODEL_FILE)).unwrap();
    student.parameters()[3]
        .set_value(&Tensor::new(&[0f32, 1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0], &candle_core::Device::Cpu).unwrap())
        .unwrap();
    let message = save(&student, teacher.path(), out.path()).unwrap_err().to_string();
    assert!(message.contains("LayerNorm.bias: expected finite values, found NaN at element 2"), "{message}");
    assert_eq!(std::fs::read(out.path().join(MODEL_FILE)).unwrap(), before);
}

#[test]
fn what_is_missing_is_named() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    std::fs::remove_file(teacher.path().join("tokenizer.json")).unwrap();
    let message = save(&student(DType::F32), teacher.path(), out.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json: expected the teacher's tokenizer, found 1 other files"), "{message}");
    let message = load(out.path()).err().unwrap().to_string();
    assert!(message.contains("cannot read") && message.contains("config.json"), "{message}");
}

#[test]
fn tensors_of_more_layers_than_the_settings_say_are_refused() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    save(&student(DType::F32), teacher.path(), out.path()).unwrap();
    let fewer = StudentConfig { num_hidden_layers: 1, ..config() };
    std::fs::write(out.path().join(CONFIG_FILE), fewer.to_json()).unwrap();
    let message = load(out.path()).err().unwrap().to_string();
    assert!(message.contains("model.safetensors: tensor distilbert.transformer.layer.1.") && message.contains("only the 25"), "{message}");
}

#[test]
fn settings_of_another_student_are_refused() {
    let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
    save(&student(DType::F32), teacher.path(), out.path()).unwrap();
    let other = StudentConfig { intermediate_size: 16, ..config() };
    std::fs::write(out.path().join(CONFIG_FILE), other.to_json()).unwrap();
    let message = load(out.path()).err().unwrap().to_string();
    assert!(message.contains("ffn.lin1.weight: expected shape [16, 8], found shape [12, 8]"), "{message}");
}

#[test]
fn a_configuration_of_another_student_is_refused_with_a_remedy_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    save(&student(DType::F32), teacher_files().path(), directory.path()).unwrap();
    let other = StudentConfig { intermediate_size: 16, ..config() };
    std::fs::write(directory.path().join(CONFIG_FILE), other.to_json()).unwrap();
    let Err(error) = load(directory.path()) else { panic!("the shapes differ") };
    assert!(error.to_string().contains("are of two students") && !error.to_string().contains("start from"), "{error}");
}

fn with_head(family: Family, task: Task) -> StudentConfig {
    let classes = if matches!(task, Task::SequenceClassification | Task::TokenClassification) { 3 } else { 0 };
    let embeds = task == Task::SentenceEmbedding;
    StudentConfig {
        family,
        task,
        classes,
        class_names: ["O", "B-X", "I-X"][..classes].iter().map(|name| (*name).to_owned()).collect(),
        problem: (task == Task::SequenceClassification).then_some(Problem::MultiLabel),
        pooling: if embeds { Pooling::Max } else { Pooling::Mean },
        normalized: embeds,
        embedding_output: if embeds { 6 } else { 0 },
        type_vocab_size: usize::from(family.has_token_types()),
        pad_token_id: Some(1),
        ..config()
    }
}

#[test]
fn a_student_of_every_task_loads_as_it_was() {
    for family in Family::ENCODERS {
        for task in [Task::SequenceClassification, Task::TokenClassification, Task::SentenceEmbedding] {
            let (teacher, out) = (teacher_files(), tempfile::tempdir().unwrap());
            for foreign in ["modules.json", "sentence_bert_config.json"] {
                std::fs::write(teacher.path().join(foreign), r#"{"max_seq_length": 4}"#).unwrap();
            }
            let config = with_head(family, task);
            let student = Student::new(config.clone(), DType::F32, &mut |spec: &ParameterSpec| Ok(at_random(&config, 1, spec))).unwrap();
            save(&student, teacher.path(), out.path()).unwrap();
            let loaded = load(out.path()).unwrap();
            assert_eq!(loaded.config(), &config, "{family} {task}");
            assert_eq!(values(&loaded), values(&student));
            let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
            let text = read(CONFIG_FILE);
            match task {
                Task::SentenceEmbedding => {
                    assert!(text.contains("Model\"") && read("modules.json").contains("3_Normalize"), "{text}");
                    assert!(read("sentence_bert_config.json").contains("\"max_seq_length\": 4"));
                    let bytes = std::fs::read(out.path().join("2_Dense").join(MODEL_FILE)).unwrap();
                    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("linear.weight").unwrap().shape(), [6, 8]);
                }
                _ => assert!(text.contains("\"B-X\": 1") && text.contains("\"2\": \"I-X\""), "{text}"),
            }
            assert_eq!(text.contains("multi_label_classification"), task == Task::SequenceClassification);
        }
    }
}
