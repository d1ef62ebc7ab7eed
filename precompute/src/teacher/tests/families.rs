//! Every family and task, from both exporters, quantised, in half precision and with a decoder's earlier keys and values, against transformers.

use super::*;
use crate::pooling::{normalize, pool};
use crate::task::TeacherTask;
use logitcache::target::{Pooling, Problem, Task};
use serde_json::Value;

#[derive(Deserialize)]
struct Family {
    name: String,
    model: String,
    expected: String,
    task: Task,
    outputs: BTreeMap<String, String>,
    tolerance: f32,
    hidden: bool,
}

fn teachers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/teachers")
}

/// As `locate` finds them, but for another graph of the same directory.
fn located(model: &str) -> TeacherFiles {
    let path = teachers().join(model);
    let files = locate(path.parent().unwrap(), None).unwrap();
    TeacherFiles { model: path, ..files }
}

fn open_as(purpose: Purpose, files: &TeacherFiles, layers: &HiddenLayers) -> Result<(Teacher, TeacherTask)> {
    open_prepared(prepare_for(purpose, files, layers, &BTreeMap::new())?)
}

fn open_prepared(prepared: Prepared) -> Result<(Teacher, TeacherTask)> {
    let task = prepared.task().clone();
    Ok((Teacher::open(&runtime::load(None)?, prepared, 1, "cpu")?, task))
}

fn open_fused(files: &TeacherFiles, layers: &HiddenLayers) -> Result<(Teacher, TeacherTask)> {
    let mut prepared = prepare(files, layers, &BTreeMap::new())?;
    prepared.fuse_attention("1.32.0");
    open_prepared(prepared)
}

/// The largest difference of `[rows, length, width]` where the mask is 1, or of `[rows, width]`.
fn difference(batch: &TeacherBatch, found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let width = expected.len() / batch.attention_mask.len();
    let counted =
        |index: &usize| !expected.len().is_multiple_of(batch.attention_mask.len()) || batch.attention_mask[index / width.max(1)] == 1;
    (0..found.len()).filter(counted).map(|index| (found[index] - expected[index]).abs()).fold(0.0, |a: f32, b| if b <= a { a } else { b })
}

fn vectors(answer: &Answer<'_>, batch: &TeacherBatch, task: &TeacherTask) -> Vec<f32> {
    let vector = |row: usize| {
        let tokens = batch.attention_mask[row * batch.length..(row + 1) * batch.length].iter().sum::<i64>() as usize;
        let states = answer.states(row);
        let mut vector = match task.pooling {
            Some(pooling) if !answer.is_of_sequences() => pool(&states[..tokens * answer.width()], answer.width(), pooling),
            _ => states.to_vec(),
        };
        if task.normalized {
            normalize(&mut vector);
        }
        vector
    };
    (0..answer.rows()).flat_map(vector).collect()
}

#[test]
fn every_family_gives_the_answers_and_hidden_states_of_transformers() {
    every_family_agrees(|files, layers| open_as(Purpose::default(), files, layers));
}

#[test]
fn every_family_gives_them_with_attention_as_one_operation() {
    every_family_agrees(open_fused);
}

fn every_family_agrees(open: impl Fn(&TeacherFiles, &HiddenLayers) -> Result<(Teacher, TeacherTask)>) {
    let index: Vec<Family> = serde_json::from_slice(&std::fs::read(teachers().join("index.json")).unwrap()).unwrap();
    assert!(index.len() > 30);
    let mut complaints = Vec::new();
    for family in &index {
        let layers = if family.hidden { HiddenLayers::All } else { HiddenLayers::None };
        let (mut teacher, task) = match open(&located(&family.model), &layers) {
            Ok(opened) => opened,
            Err(error) => {
                complaints.push(format!("{}: {error}", family.name));
                continue;
            }
        };
        let expected = Expected::read(&format!("../teachers/{}", family.expected));
        let batch = expected.batch();
        let mut complain = |what: String, found: &[f32], wanted: &str| {
            let off = difference(&batch, found, &expected.floats(wanted));
            if off.is_nan() || off > family.tolerance {
                complaints.push(format!("{}: {what} is {off:e} off", family.name));
            }
        };
        let layers = teacher.hidden_layers().to_vec();
        assert_eq!(teacher.vocabulary_size(), 64, "{}", family.name);
        teacher
            .run(&batch, |answer| {
                match task.task {
                    Task::SentenceEmbedding => complain("the vector".to_owned(), &vectors(answer, &batch, &task), "sentence_embedding"),
                    _ => complain(
                        "logits".to_owned(),
                        &(0..3).flat_map(|row| answer.states(row).to_vec()).collect::<Vec<_>>(),
                        &family.outputs["logits"],
                    ),
                }
                for (place, layer) in layers.iter().enumerate() {
                    complain(format!("hidden state {layer}"), &hidden(answer, place), &format!("hidden_{layer}"));
                }
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{}: {error}", family.name));
        if task.task != family.task || (family.hidden && layers.len() < 3) {
            complaints.push(format!("{}: taken for {} with the layers {layers:?}", family.name, task.task));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn what_an_export_answers_is_read_from_its_files() {
    let task =
        |model: &str| prepare_for(Purpose::default(), &located(model), &HiddenLayers::ByTask, &BTreeMap::new()).unwrap().task().clone();
    let regression = task("distilbert-regression/model.onnx");
    assert_eq!((regression.problem, regression.class_names.len()), (Some(Problem::Regression), 1));
    let multi_label = task("roberta-multilabel/model.onnx");
    assert_eq!(
        (multi_label.problem, &multi_label.class_names[..2]),
        (Some(Problem::MultiLabel), &["joy".to_owned(), "anger".to_owned()][..])
    );
    let single_label = task("bert-classifier/dynamo.onnx");
    assert_eq!((single_label.problem, single_label.class_names.len()), (Some(Problem::SingleLabel), 3));
    let tagger = task("bert-tagger/model.onnx");
    assert!(tagger.problem.is_none() && tagger.class_names.iter().any(|name| name.starts_with("B-")));
    let sentence = task("bert-sentence/model.onnx");
    assert_eq!((sentence.pooling, sentence.normalized), (Some(Pooling::Mean), true));
    let classes: Vec<_> = ["distilbert-sentence", "mpnet-sentence"].map(|name| task(&format!("{name}/model.onnx")).pooling).to_vec();
    assert_eq!(classes, [Some(Pooling::Max), Some(Pooling::Cls)]);
}

/// A copy of a teacher's directory whose config.json has other values; a null removes the key.
fn reconfigured(model: &str, changes: Value) -> (tempfile::TempDir, TeacherFiles) {
    let directory = tempfile::tempdir().unwrap();
    let from = teachers().join(model);
    for name in ["model.onnx", "tokenizer.json", "modules.json"] {
        if from.parent().unwrap().join(name).is_file() {
            std::fs::copy(from.parent().unwrap().join(name), directory.path().join(name)).unwrap();
        }
    }
    let text = std::fs::read(from.with_file_name("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config.remove(key);
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
    std::fs::write(directory.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let files = locate(directory.path(), None).unwrap();
    (directory, files)
}

fn refusal(purpose: Purpose, files: &TeacherFiles) -> (u8, String) {
    let error = open_as(purpose, files, &HiddenLayers::ByTask).err().unwrap_or_else(|| panic!("{} is taken", files.model.display()));
    (error.exit_code(), error.to_string())
}

#[test]
fn a_task_that_is_not_the_exports_is_refused_by_flag() {
    let purpose = |task| Purpose { task: Some(task), ..Purpose::default() };
    for (model, task, part) in [
        ("bert-classifier", Task::MaskedLm, "logits [batch, sequence, width], which masked-lm is read from, found"),
        ("bert-classifier", Task::TokenClassification, "logits [?, 3]"),
        ("bert-tagger", Task::SequenceClassification, "logits [batch, classes]"),
        ("bert-tagger", Task::MaskedLm, "token-classification, the task of BertForTokenClassification in config.json"),
        ("gpt2", Task::MaskedLm, "causal-lm, the task of GPT2LMHeadModel"),
        ("electra", Task::CausalLm, "masked-lm, the task of ElectraForMaskedLM"),
        ("electra", Task::SentenceEmbedding, "an output sentence_embedding or last_hidden_state"),
        ("bert-sentence", Task::SequenceClassification, "last_hidden_state [?, ?, 16]"),
    ] {
        let (code, message) = refusal(purpose(task), &located(&format!("{model}/model.onnx")));
        assert!(code == 2 && message.starts_with("--task") && message.contains(part), "{model} as {task}: {message}");
    }
    let pooling = Purpose { pooling: Some(Pooling::Cls), ..Purpose::default() };
    for (model, part) in [
        ("bert-sentence", "expected mean, as the teacher's modules.json"),
        ("mpnet-sentence", "sentence_embedding"),
        ("gpt2", "a sentence encoder"),
    ] {
        let (code, message) = refusal(pooling, &located(&format!("{model}/model.onnx")));
        assert!(code == 2 && message.starts_with("--pooling") && message.contains(part), "{model}: {message}");
    }
}

#[test]
fn a_config_that_contradicts_the_graph_is_refused_by_field() {
    for (model, changes, part) in [
        (
            "bert-classifier",
            r#"{"architectures": ["BertForTokenClassification"]}"#,
            "architectures: expected a model whose outputs are logits [?, 3]",
        ),
        ("bert-tagger", r#"{"architectures": ["BertForSequenceClassification"]}"#, "whose task is sequence-classification"),
        ("bert-tagger", r#"{"architectures": ["BertForMaskedLM"]}"#, "vocab_size: expected 5"),
        (
            "electra",
            r#"{"architectures": ["ElectraForTokenClassification"], "id2label": {"0": "a", "1": "b"}}"#,
            "id2label: expected 64 classes",
        ),
        ("bert-classifier", r#"{"id2label": {"0": "a", "1": "b"}}"#, "id2label: expected 3 classes"),
        ("bert-classifier", r#"{"architectures": ["BertForQuestionAnswering"]}"#, "expected a model for one of masked-lm"),
        ("distilbert-regression", r#"{"problem_type": "single_label_classification"}"#, "problem_type"),
        ("bert-sentence", r#"{"hidden_size": 20}"#, "hidden_size"),
    ] {
        let (_directory, files) = reconfigured(&format!("{model}/model.onnx"), serde_json::from_str(changes).unwrap());
        let files = TeacherFiles { modules: None, ..files };
        let (code, message) = refusal(Purpose::default(), &files);
        assert!(code == 1 && message.contains("config.json") && message.contains(part), "{model} with {changes}: {message}");
    }
}

#[test]
fn what_the_config_does_not_say_the_graph_or_the_user_does() {
    let nameless = serde_json::json!({ "architectures": null, "id2label": null, "problem_type": null });
    for (model, task, names) in [
        ("bert-classifier", Task::SequenceClassification, 3),
        ("distilbert-regression", Task::SequenceClassification, 1),
        ("gpt2", Task::CausalLm, 0),
        ("electra", Task::MaskedLm, 0),
        ("mpnet-sentence", Task::SentenceEmbedding, 0),
    ] {
        let (_directory, files) = reconfigured(&format!("{model}/model.onnx"), nameless.clone());
        let (_, found) = open_as(Purpose::default(), &TeacherFiles { modules: None, ..files }, &HiddenLayers::ByTask).unwrap();
        assert_eq!((found.task, found.class_names.len()), (task, names), "{model}");
        assert!(found.class_names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}")), "{model}");
    }
    // Logits over classes and over a vocabulary look alike: the user says which.
    let (_directory, files) = reconfigured("bert-tagger/model.onnx", nameless);
    let purpose = Purpose { task: Some(Task::TokenClassification), ..Purpose::default() };
    assert_eq!(open_as(purpose, &files, &HiddenLayers::ByTask).unwrap().1.class_names.len(), 5);
    // Without config.json altogether.
    for (model, task) in
        [("bert-classifier", Task::SequenceClassification), ("gpt2", Task::MaskedLm), ("bert-sentence", Task::SentenceEmbedding)]
    {
        let bare = TeacherFiles { config: None, modules: None, ..located(&format!("{model}/model.onnx")) };
        let (teacher, found) = open_as(Purpose::default(), &bare, &HiddenLayers::ByTask).unwrap();
        assert_eq!((found.task, teacher.vocabulary_size()), (task, 64), "{model}");
    }
}

#[test]
fn a_way_to_pool_must_be_known() {
    let files = TeacherFiles { modules: None, ..located("bert-sentence/model.onnx") };
    let prepared =
        |pooling| prepare_for(Purpose { pooling, ..Purpose::default() }, &files, &HiddenLayers::ByTask, &BTreeMap::new()).unwrap();
    let error = prepared(None).require_pooling().unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().starts_with("--pooling: expected a way to make one vector"), "{error}");
    assert!(prepared(Some(Pooling::Max)).require_pooling().is_ok());
    // A module that is not understood matters where the graph does not compute it.
    let directory = tempfile::tempdir().unwrap();
    let modules = directory.path().join("modules.json");
    std::fs::write(
        &modules,
        r#"[{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#,
    )
    .unwrap();
    let with_dense = |model: &str| {
        prepare_for(
            Purpose::default(),
            &TeacherFiles { modules: Some(modules.clone()), ..located(model) },
            &HiddenLayers::ByTask,
            &BTreeMap::new(),
        )
    };
    let message = with_dense("bert-sentence/model.onnx").unwrap_err().to_string();
    assert!(message.contains("modules.json: type") && message.contains("sentence_transformers.models.Dense"), "{message}");
    assert!(with_dense("mpnet-sentence/model.onnx").is_ok());
}
