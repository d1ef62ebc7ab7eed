//! The graphs of classifiers, taggers and sentence encoders: the runtime gives the logits and vectors that the student does, and `precompute`
//! recognises what they are for.

use crate::onnx_export::{batches, config, student_of};
use e2e::{data, onnxruntime};
use logitcache::onnx::write::LARGEST_MODEL_BYTES;
use logitcache::target::{Pooling, Problem, Task};
use precompute::teacher::{HiddenLayers, Teacher, locate, prepare, runtime};
use std::collections::BTreeMap;
use train::export_onnx::write_onnx;
use train::kernels::Activation;
use train::student::{Family, Student, StudentConfig, sentence_files};

/// Every head in a family.
fn students(family: Family) -> Vec<StudentConfig> {
    let base = config(family, Activation::Gelu);
    let class_names = ["O", "B-X", "I-X"].map(str::to_owned).to_vec();
    let problem = Some(Problem::SingleLabel);
    let sequence =
        StudentConfig { task: Task::SequenceClassification, classes: 3, class_names: class_names.clone(), problem, ..base.clone() };
    let token = StudentConfig { task: Task::TokenClassification, classes: 3, class_names, ..base.clone() };
    let vector = |pooling, embedding_output, normalized| {
        let task = Task::SentenceEmbedding;
        StudentConfig { task, pooling, embedding_output, normalized, ..base.clone() }
    };
    vec![sequence, token, vector(Pooling::Mean, 6, true), vector(Pooling::Cls, 0, false), vector(Pooling::Max, 0, true)]
}

#[test]
fn the_runtime_computes_what_every_head_does() {
    for family in Family::ENCODERS {
        for config in students(family) {
            let what = format!("{family}, {}, {:?}", config.task, config.pooling);
            let folder = tempfile::tempdir().expect("a temporary directory");
            let model = folder.path().join("model.onnx");
            std::fs::write(folder.path().join("config.json"), config.to_json()).expect("a temporary directory can be written");
            if config.task == Task::SentenceEmbedding {
                for (name, text) in sentence_files::texts(&config, 12) {
                    let path = folder.path().join(name);
                    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                    std::fs::write(path, text).expect("a temporary directory can be written");
                }
            }
            let student = student_of(config);
            write_onnx(&student, &model, LARGEST_MODEL_BYTES).expect("an export");
            let runtime = runtime::load(Some(&onnxruntime())).expect("the pinned runtime loads");
            let files = locate(&model, Some(&data("teacher/tokenizer.json"))).expect("an export");
            let prepared = prepare(&files, &HiddenLayers::None, &BTreeMap::new()).expect("its task is known");
            let found = prepared.task().clone();
            let mut teacher = Teacher::open(&runtime, prepared, 1, "cpu").expect("it opens");
            let config = student.config();
            assert_eq!((found.task, found.problem, &found.class_names), (config.task, config.problem, &config.class_names), "{what}");
            if config.task == Task::SentenceEmbedding {
                assert_eq!((found.pooling, found.normalized), (Some(config.pooling), config.normalized), "{what}");
            }
            compare(&what, &student, &mut teacher);
        }
    }
}

fn compare(what: &str, student: &Student, teacher: &mut Teacher) {
    let (mut packed, padded) = batches(student.config());
    let task = student.config().task;
    if task == Task::SequenceClassification {
        packed.asked = packed.offsets[..3].iter().map(|first| *first as u32).collect();
    }
    let answers = if task == Task::SentenceEmbedding { student.embeddings(&packed) } else { student.logits(&packed) };
    let expected = answers.and_then(|answers| answers.to_vec2::<f32>()).expect("a forward pass");
    let answered = teacher.run(&padded, |answer| {
        let mut rows = expected.iter();
        for row in 0..3 {
            let positions = if task == Task::TokenClassification { packed.offsets[row + 1] - packed.offsets[row] } else { 1 };
            for place in 0..positions {
                let (found, expected) = (answer.logits(row, place), rows.next().expect("an answer for each"));
                assert_eq!(found.len(), expected.len(), "{what}");
                let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-4, "{what}, row {row}, position {place}: off by {off}");
            }
        }
        Ok(())
    });
    answered.expect("the runtime answers");
}
