//! Small exports of random models, made by PyTorch and its exporters, against the hidden states and logits that transformers gives.

use super::*;
use crate::topk::{Targets, TopK};
use logitcache::error::{Error, Result};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod asked;
mod bias;
mod families;
mod fused;
mod head;

#[derive(Deserialize)]
struct Export {
    name: String,
    model: String,
    expected: String,
    tolerance: f32,
    finite: bool,
    refuse: Option<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/onnx")
}

fn exports() -> Vec<Export> {
    serde_json::from_slice(&std::fs::read(root().join("index.json")).unwrap()).unwrap()
}

fn files(model: PathBuf) -> TeacherFiles {
    let config = Some(model.with_file_name("config.json")).filter(|path| path.is_file());
    TeacherFiles { model, config, modules: None, tokenizer: PathBuf::new(), companions: Vec::new() }
}

fn open(files: &TeacherFiles, layers: &HiddenLayers, by_hand: &BTreeMap<u32, String>) -> Result<Teacher> {
    Teacher::open(&runtime::load(None)?, prepare(files, layers, by_hand)?, 1, "cpu")
}

fn open_golden(model: &str, layers: HiddenLayers) -> Result<Teacher> {
    open(&files(root().join(model)), &layers, &BTreeMap::new())
}

/// The expected tensors of a family.
struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    fn read(path: &str) -> Self {
        Self { bytes: std::fs::read(root().join(path)).unwrap() }
    }

    fn values<const SIZE: usize, T>(&self, name: &str, convert: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        tensors.tensor(name).unwrap().data().as_chunks::<SIZE>().0.iter().map(|bytes| convert(*bytes)).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.values(name, f32::from_le_bytes)
    }

    fn batch(&self) -> TeacherBatch {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let shape = tensors.tensor("input_ids").unwrap().shape().to_vec();
        let token_type_ids =
            if tensors.tensor("token_type_ids").is_ok() { self.values("token_type_ids", i64::from_le_bytes) } else { Vec::new() };
        let (input_ids, attention_mask) = (self.values("input_ids", i64::from_le_bytes), self.values("attention_mask", i64::from_le_bytes));
        TeacherBatch { rows: shape[0], length: shape[1], input_ids, attention_mask, token_type_ids }
    }
}

/// Compares `[rows, length, width]` where the mask is 1.
fn compare(place: &str, batch: &TeacherBatch, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{place}");
    let width = expected.len() / batch.attention_mask.len();
    for (token, _) in batch.attention_mask.iter().enumerate().filter(|(_, mask)| **mask == 1) {
        for index in token * width..(token + 1) * width {
            let difference = (found[index] - expected[index]).abs();
            assert!(difference <= tolerance, "{place}: {} at token {token}, not {}: {difference:e} off", found[index], expected[index]);
        }
    }
}

fn logits(answer: &Answer<'_>) -> Vec<f32> {
    (0..answer.rows()).flat_map(|row| (0..answer.length()).flat_map(move |position| answer.logits(row, position).to_vec())).collect()
}

fn hidden(answer: &Answer<'_>, index: usize) -> Vec<f32> {
    (0..answer.rows()).flat_map(|row| answer.hidden(index, row).to_vec()).collect()
}

/// Opens with every layer and compares everything.
fn check(place: &str, teacher: &mut Teacher, expected: &Expected, tolerance: f32) {
    let batch = expected.batch();
    let layers = teacher.hidden_layers().to_vec();
    assert_eq!(teacher.has_token_type_ids(), !batch.token_type_ids.is_empty(), "{place}");
    assert_eq!((teacher.vocabulary_size(), teacher.hidden_size()), (64, 16), "{place}");
    teacher
        .run(&batch, |answer| {
            compare(&format!("{place}, logits"), &batch, &logits(answer), &expected.floats("logits"), tolerance);
            for (index, layer) in layers.iter().enumerate() {
                compare(
                    &format!("{place}, layer {layer}"),
                    &batch,
                    &hidden(answer, index),
                    &expected.floats(&format!("hidden_{layer}")),
                    tolerance,
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn every_export_gives_the_hidden_states_and_logits_of_transformers() {
    for export in exports().iter().filter(|export| export.refuse.is_none()) {
        let mut teacher = open_golden(&export.model, HiddenLayers::All).unwrap_or_else(|error| panic!("{}: {error}", export.name));
        let summary = teacher.summary().clone();
        let layers = if export.name.starts_with("roberta") { 2 } else { 3 };
        assert_eq!((summary.layers, summary.hidden_size), (layers, 16), "{}", export.name);
        assert_eq!(summary.hidden_tensors.keys().copied().collect::<Vec<_>>(), (0..=layers).collect::<Vec<_>>(), "{}", export.name);
        assert!(summary.parameters > 5_000 && summary.provider == "cpu", "{}: {summary:?}", export.name);
        check(&export.name, &mut teacher, &Expected::read(&export.expected), export.tolerance);
    }
}

#[test]
fn what_cannot_teach_is_refused_with_the_reason() {
    for export in exports().iter().filter(|export| export.refuse.is_some()) {
        let opened = open_golden(&export.model, HiddenLayers::Last);
        if export.finite {
            let message = opened.err().unwrap_or_else(|| panic!("{} was not refused", export.name)).to_string();
            let reason = if export.name.contains("no-logits") { "last_hidden_state" } else { "Dropout in training mode" };
            assert!(message.contains(reason) && message.contains(".onnx"), "{}: {message}", export.name);
        } else {
            let (mut teacher, batch) = (opened.unwrap(), Expected::read(&export.expected).batch());
            let refused =
                teacher.run(&batch, |answer| Ok(TopK::new(4, &[1.0]).append(answer.logits(0, 0), &mut Targets::default()).is_err()));
            assert!(refused.unwrap(), "{}: logits that are no numbers are passed on, and the top-k refuses them", export.name);
        }
    }
}

/// A copy of an export in a directory of its own, every `from` in its bytes replaced by a `to` of the same length.
fn renamed(model: &str, replacements: &[(&str, &str)]) -> (tempfile::TempDir, TeacherFiles) {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(root().join(model)).unwrap();
    for (from, to) in replacements {
        assert_eq!(from.len(), to.len());
        let starts: Vec<usize> =
            bytes.windows(from.len()).enumerate().filter(|(_, window)| *window == from.as_bytes()).map(|(start, _)| start).collect();
        assert!(!starts.is_empty(), "{from} is in {model}");
        starts.into_iter().for_each(|start| bytes[start..start + to.len()].copy_from_slice(to.as_bytes()));
    }
    let path = directory.path().join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    std::fs::copy(root().join(model).with_file_name("config.json"), directory.path().join("config.json")).unwrap();
    (directory, files(path))
}

#[test]
fn layers_are_found_where_names_are_lost() {
    for model in ["torchscript-17", "torchscript-14", "dynamo", "runtime-fused"] {
        let replacements: &[_] =
            if model == "dynamo" { &[("layer.", "laxer.")] } else { &[("layer.", "laxer."), ("embeddings.", "embxddings.")] };
        let (_directory, files) = renamed(&format!("bert/{model}.onnx"), replacements);
        let mut teacher = open(&files, &HiddenLayers::All, &BTreeMap::new()).unwrap();
        check(&format!("{model} without names"), &mut teacher, &Expected::read("bert/expected.safetensors"), 1e-5);
    }
}

#[test]
fn names_that_contradict_the_structure_are_not_believed_silently() {
    let (_directory, files) =
        renamed("bert/torchscript-17.onnx", &[("layer.0", "layer.X"), ("layer.1", "layer.0"), ("layer.X", "layer.1")]);
    let error = prepare(&files, &HiddenLayers::List(vec![1]), &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("by the graph's structure") && error.contains("--hidden-tensor 1=NAME"), "{error}");
}

#[test]
fn a_tensor_named_by_hand_is_taken_and_a_wrong_one_refused() {
    let files = files(root().join("bert/torchscript-17.onnx"));
    let found = prepare(&files, &HiddenLayers::All, &BTreeMap::new()).unwrap().hidden_tensors().clone();
    let by_hand = BTreeMap::from([(1, found[&2].clone())]);
    let mut teacher = open(&files, &HiddenLayers::List(vec![2, 1]), &by_hand).unwrap();
    assert_eq!(teacher.hidden_layers(), [1, 2]);
    let batch = Expected::read("bert/expected.safetensors").batch();
    assert!(teacher.run(&batch, |answer| Ok(hidden(answer, 0) == hidden(answer, 1))).unwrap());

    let refused = |layers: HiddenLayers, layer: u32, name: &str| {
        open(&files, &layers, &BTreeMap::from([(layer, name.to_owned())])).err().unwrap().to_string()
    };
    let error = refused(HiddenLayers::Last, 3, "LayerNorm");
    assert!(error.starts_with("--hidden-tensor") && error.contains("3=LayerNorm") && error.contains(found[&0].as_str()), "{error}");
    let error = refused(HiddenLayers::Last, 1, &found[&1]);
    assert!(error.contains("layers that --hidden-layers asks for: [3]"), "{error}");
    let error = refused(HiddenLayers::Last, 3, "logits");
    assert!(error.contains("hidden size of config.json, 16") && error.contains("64"), "{error}");
}

#[test]
fn a_layer_the_teacher_does_not_have_is_refused() {
    let error = open_golden("bert/dynamo.onnx", HiddenLayers::List(vec![0, 4])).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("layers 0 to 3"), "{error}");
}

#[test]
fn a_config_of_another_model_is_refused_by_field() {
    for (from, to, field) in [
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "num_hidden_layers"),
        ("\"vocab_size\": 64", "\"vocab_size\": 65", "vocab_size"),
        ("\"hidden_size\": 16", "\"hidden_size\": 17", "hidden size"),
    ] {
        let (directory, files) = renamed("bert/torchscript-17.onnx", &[]);
        let path = directory.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = open(&files, &HiddenLayers::Last, &BTreeMap::new()).err().unwrap().to_string();
        assert!(error.contains(field), "{error}");
        std::fs::remove_file(&path).unwrap();
        let bare = TeacherFiles { config: None, ..files };
        assert_eq!(open(&bare, &HiddenLayers::Last, &BTreeMap::new()).unwrap().hidden_layers(), [3], "without a config the graph tells");
    }
}

#[test]
fn inputs_that_cannot_be_filled_and_unknown_providers_are_refused() {
    for (from, to) in [("token_type_ids", "token_type_idx"), ("attention_mask", "attention_mosk")] {
        let (_directory, files) = renamed("bert/torchscript-17.onnx", &[(from, to)]);
        let error = open(&files, &HiddenLayers::None, &BTreeMap::new()).err().unwrap().to_string();
        assert!(error.contains(to) && error.contains("input_ids"), "{error}");
    }
    let prepared = prepare(&files(root().join("bert/dynamo.onnx")), &HiddenLayers::None, &BTreeMap::new()).unwrap();
    let error = Teacher::open(&runtime::load(None).unwrap(), prepared, 1, "abacus").err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("--provider") && error.to_string().contains("cpu"), "{error}");
}

#[test]
fn a_batch_whose_parts_differ_in_length_is_refused() {
    let mut teacher = open_golden("bert/dynamo.onnx", HiddenLayers::None).unwrap();
    let whole = Expected::read("bert/expected.safetensors").batch();
    for batch in [TeacherBatch { token_type_ids: Vec::new(), ..whole.clone() }, TeacherBatch { rows: 2, ..whole }, TeacherBatch::default()]
    {
        assert!(matches!(teacher.run(&batch, |_| Ok(())), Err(Error::Invalid { .. })));
    }
}

#[test]
fn external_weights_belong_to_the_model_and_are_found_wherever_the_program_runs() {
    let files = files(root().join("bert/external.onnx"));
    let prepared = prepare(&files, &HiddenLayers::None, &BTreeMap::new()).unwrap();
    let names: Vec<_> = prepared.model_files().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["external.onnx", "external.onnx_data"]);
}

/// Protobuf by hand: a field that holds bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(content.len() < 16_384);
    let length = [(content.len() & 127) as u8 | 128, (content.len() >> 7) as u8];
    [&[number << 3 | 2][..], &length, content].concat()
}

/// Protobuf by hand: a field that holds a small number.
fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// A model whose one logit per token is its position: Cast to `element` (1 float32, 10 float16) and Unsqueeze, with int32 or int64 inputs.
fn model_of_positions(input_type: u8, element: u8) -> Vec<u8> {
    let dimension = |name: &str| field(1, &field(2, name.as_bytes()));
    let value = |name: &str, element: u8, shape: Vec<u8>| {
        let tensor = [number(1, element), field(2, &shape)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let open = || [dimension("batch"), dimension("sequence")].concat();
    // Field 20 (the attribute's type, 2: a number) has a two-byte key.
    let to = [field(1, b"to"), number(3, element), vec![0xa0, 1, 2]].concat();
    let cast = [field(1, b"position_ids"), field(2, b"cast"), field(4, b"Cast"), field(5, &to)].concat();
    let unsqueeze = [field(1, b"cast"), field(1, b"axes"), field(2, b"logits"), field(4, b"Unsqueeze")].concat();
    let axes = [number(1, 1), number(2, 7), field(8, b"axes"), field(9, &2i64.to_le_bytes())].concat();
    let inputs = ["input_ids", "attention_mask", "position_ids"].map(|name| field(11, &value(name, input_type, open())));
    let graph = [
        field(1, &cast),
        field(1, &unsqueeze),
        field(2, b"positions"),
        field(5, &axes),
        inputs.concat(),
        field(12, &value("logits", element, [open(), field(1, &number(1, 1))].concat())),
    ];
    [number(1, 8), field(7, &graph.concat()), field(8, &[field(1, b""), number(2, 13)].concat())].concat()
}

#[test]
fn position_ids_are_filled_as_the_family_counts_them() {
    for (input_type, element) in [(7, 1), (6, 1), (7, 10)] {
        for (model_type, first) in [("bert", 0.0), ("roberta", 2.0)] {
            let directory = tempfile::tempdir().unwrap();
            let model = directory.path().join("model.onnx");
            std::fs::write(&model, model_of_positions(input_type, element)).unwrap();
            std::fs::write(directory.path().join("config.json"), format!(r#"{{"model_type": "{model_type}", "pad_token_id": 1}}"#))
                .unwrap();
            let mut teacher = open(&files(model), &HiddenLayers::None, &BTreeMap::new()).unwrap();
            assert!(!teacher.has_token_type_ids());
            let batch = TeacherBatch { rows: 2, length: 4, input_ids: vec![5; 8], attention_mask: vec![1; 8], token_type_ids: Vec::new() };
            let positions = teacher.run(&batch, |answer| Ok(logits(answer))).unwrap();
            assert_eq!(positions, [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0].map(|position| position + first), "{model_type}");
        }
    }
}
