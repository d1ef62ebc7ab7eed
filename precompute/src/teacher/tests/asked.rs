//! Fewer positions asked, and targets made in the graph: the same answers as those of the whole graph and of the kernels outside it.

use super::*;
use crate::teacher::Reduction;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};
use logitcache::onnx::{GraphBuilder, write_model};
use logitcache::target::Task;
use serde_json::Value;

/// Exports of a language model or a tagger, with what their answers may differ by: the rounding of a float16 graph, of a matrix product in another
/// order elsewhere.
pub(super) fn exports_by_position() -> Vec<(String, TeacherFiles, f32)> {
    let here = exports().into_iter().filter(|export| export.refuse.is_none());
    let mut found: Vec<(String, TeacherFiles, f32)> =
        here.map(|export| (export.name, files(root().join(&export.model)), export.tolerance)).collect();
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(root().join("../teachers/index.json")).unwrap()).unwrap();
    for teacher in index {
        let text = |key: &str| teacher[key].as_str().unwrap().to_owned();
        let task: Task = serde_json::from_value(teacher["task"].clone()).unwrap();
        if task.is_of_sequences() {
            continue;
        }
        let model = root().join("../teachers").join(text("model"));
        let half = text("model").contains("half");
        found.push((text("name"), files(model), if half { 2e-3 } else { 1e-5 }));
    }
    found
}

pub(super) fn prepared(files: &TeacherFiles, layers: &HiddenLayers) -> Prepared {
    prepare(files, layers, &BTreeMap::new()).unwrap_or_else(|error| panic!("{}: {error}", files.model.display()))
}

pub(super) fn opened(prepared: Prepared) -> Teacher {
    Teacher::open(&runtime::load(None).unwrap(), prepared, 1, "cpu").unwrap()
}

/// 4 sequences of 7 tokens, two of them shorter, that every fixture knows.
pub(super) fn batch(segments: bool) -> TeacherBatch {
    let lengths = [7, 7, 5, 2];
    let tokens = |value: fn(usize) -> i64| (0..4 * 7).map(value).collect::<Vec<i64>>();
    let attention_mask = (0..4 * 7).map(|index| i64::from(index % 7 < lengths[index / 7])).collect();
    let token_type_ids = if segments { tokens(|index| i64::from(index % 7 > 3)) } else { Vec::new() };
    TeacherBatch { rows: 4, length: 7, input_ids: tokens(|index| (5 + index * 11 % 50) as i64), attention_mask, token_type_ids }
}

pub(super) const ASKED: [&[u16]; 4] = [&[0, 3, 6], &[5], &[], &[1]];

fn asked() -> impl Iterator<Item = (usize, usize)> {
    ASKED.into_iter().enumerate().flat_map(|(row, positions)| positions.iter().map(move |position| (row, usize::from(*position))))
}

pub(super) fn every_logit(teacher: &mut Teacher, batch: &TeacherBatch) -> Vec<Vec<f32>> {
    teacher.run(batch, |answer| Ok(asked().map(|(row, position)| answer.logits(row, position).to_vec()).collect())).unwrap()
}

pub(super) fn furthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, |most, next| if next <= most { most } else { next })
}

/// Where the whole graph is in the branches of an If.
const WHOLE: [&str; 1] = ["gpt2/merged"];

#[test]
fn asked_positions_alone_have_the_answers_of_the_whole_graph() {
    let mut gathered = 0;
    for (name, files, tolerance) in exports_by_position() {
        for layers in [HiddenLayers::None, HiddenLayers::Last] {
            if WHOLE.contains(&name.as_str()) && layers == HiddenLayers::Last {
                continue;
            }
            let mut asking = prepared(&files, &layers);
            asking.gather_asked();
            let gathers = !WHOLE.contains(&name.as_str());
            assert_eq!(asking.notes().is_empty(), gathers, "{name}: {:?}", asking.notes());
            let (mut whole, mut teacher) = (opened(prepared(&files, &layers)), opened(asking));
            assert_eq!(teacher.gathers(), gathers, "{name}: {:?}", teacher.notes());
            let batch = batch(whole.has_token_type_ids());
            let expected = every_logit(&mut whole, &batch);
            let states = |answer: &Answer<'_>| (0..teacher_layers(&layers)).flat_map(|index| hidden(answer, index)).collect::<Vec<f32>>();
            let expected_states = whole.run(&batch, |answer| Ok(states(answer))).unwrap();
            let (found, found_states) = teacher
                .run_asked(&batch, &ASKED, |answer| {
                    assert!(!gathers || answer.states(0).len() == 3 * answer.width());
                    Ok((asked().map(|(row, position)| answer.logits(row, position).to_vec()).collect::<Vec<_>>(), states(answer)))
                })
                .unwrap();
            let off = found.iter().zip(&expected).map(|(found, expected)| furthest(found, expected)).fold(0.0, f32::max);
            assert!(off <= tolerance && found.len() == expected.len(), "{name} with {layers:?}: {off:e} off");
            assert_eq!(found_states.len(), expected_states.len());
            assert!(furthest(&found_states, &expected_states) <= tolerance, "{name}: hidden states");
            // Every position asked of the same graph.
            let off = every_logit(&mut teacher, &batch).iter().zip(&expected).map(|(a, b)| furthest(a, b)).fold(0.0, f32::max);
            assert!(off <= tolerance, "{name} with {layers:?}, all asked: {off:e} off");
            gathered += usize::from(gathers);
        }
    }
    assert!(gathered > 70, "{gathered}");
}

fn teacher_layers(layers: &HiddenLayers) -> usize {
    usize::from(*layers == HiddenLayers::Last)
}

#[test]
fn a_graph_inside_an_if_is_asked_as_a_whole_and_says_so() {
    let mut asking = prepared(&files(root().join("../teachers/gpt2/merged.onnx")), &HiddenLayers::None);
    asking.gather_asked();
    let teacher = opened(asking);
    assert!(!teacher.gathers() && teacher.notes().len() == 1);
    let note = &teacher.notes()[0];
    assert!(note.contains("computes every position") && note.contains("cannot be told apart"), "{note}");
}

/// A model without attention that adds to each token's row the mean over the batch's rows, `[1, length, width]`.
fn model_with_a_mean_over_rows(directory: &Path) -> TeacherFiles {
    let mut graph = GraphBuilder::new("means");
    let tokens = || vec![Dimension::open("batch"), Dimension::open("sequence")];
    let ids = graph.input("input_ids", INT64, tokens());
    let mask = graph.input("attention_mask", INT64, tokens());
    let (table, projection) = (graph.weight("table", &[64, 16]), graph.weight("projection", &[16, 64]));
    let rows = graph.node("/m", "Gather", &[&table, &ids], vec![]);
    let mean = graph.node("/m", "ReduceMean", &[&rows], vec![Attribute::of_ints("axes", &[0])]);
    let sum = graph.node("/m", "Add", &[&rows, &mean], vec![]);
    graph.named_node("/m", "MatMul", &[&sum, &projection], vec![], "logits");
    graph.named_node("/m", "Identity", &[&mask], vec![], "unused");
    graph.output("logits", FLOAT32, [tokens(), vec![Dimension::fixed(64)]].concat());
    let path = directory.join("model.onnx");
    write_model(&path, &graph, u64::MAX, |_| Ok((0..1024).map(|index| (index % 37) as f32 / 37.0).collect())).unwrap();
    files(path)
}

#[test]
fn what_only_a_run_can_show_is_asked_as_a_whole_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let files = model_with_a_mean_over_rows(directory.path());
    let mut asking = prepared(&files, &HiddenLayers::None);
    asking.gather_asked();
    assert_eq!(asking.notes(), [""; 0], "the graph alone does not say that a mean is the same for every row");
    let mut teacher = opened(asking);
    assert!(!teacher.gathers() && teacher.notes().len() == 1, "{:?}", teacher.notes());
    let expected = every_logit(&mut opened(prepared(&files, &HiddenLayers::None)), &batch(false));
    assert_eq!(every_logit(&mut teacher, &batch(false)), expected);
}

#[test]
fn positions_outside_the_batch_are_refused() {
    let mut teacher = opened(prepared(&files(root().join("bert/dynamo.onnx")), &HiddenLayers::None));
    let batch = batch(true);
    for asked in [&[&[0_u16][..]; 3][..], &[&[0], &[7], &[], &[]]] {
        assert!(matches!(teacher.run_asked(&batch, asked, |_| Ok(())), Err(Error::Invalid { .. })));
    }
}

const TEMPERATURES: [f32; 3] = [2.0, 1.0, 0.5];

/// The targets of the asked positions.
fn targets(teacher: &mut Teacher, k: usize) -> Result<Targets> {
    let mut top_k = TopK::new(k, &TEMPERATURES);
    teacher.run_asked(&batch(teacher.has_token_type_ids()), &ASKED, |answer| {
        let mut targets = Targets::default();
        for (row, position) in asked() {
            let appended = answer.append_targets(row, position, &mut top_k, &mut targets);
            appended.map_err(|found| Error::invalid("logits", "finite values", found))?;
        }
        Ok(targets)
    })
}

#[test]
fn logits_that_are_no_numbers_are_refused_by_targets_made_in_the_graph() {
    let mut reducing = prepared(&files(root().join("bert/nan.onnx")), &HiddenLayers::None);
    reducing.reduce(Reduction { k: 4, temperatures: TEMPERATURES.to_vec(), half: true }).unwrap();
    let refused = targets(&mut opened(reducing), 4).unwrap_err().to_string();
    assert!(refused.contains("NaN"), "{refused}");
}

#[test]
fn targets_made_in_the_graph_are_those_made_outside() {
    for (name, files, _) in exports_by_position() {
        for (k, half, gathers) in [(5, false, false), (64, true, false), (200, false, true)] {
            let plain = prepared(&files, &HiddenLayers::None);
            let mut reducing = plain.clone();
            reducing.reduce(Reduction { k, temperatures: TEMPERATURES.to_vec(), half }).unwrap();
            if gathers {
                reducing.gather_asked();
            }
            let (mut whole, mut teacher) = (opened(plain), opened(reducing));
            assert_eq!((teacher.width(), teacher.vocabulary_size()), (whole.width(), whole.vocabulary_size()), "{name}");
            let (expected, found) = (targets(&mut whole, k).unwrap(), targets(&mut teacher, k).unwrap());
            // A graph of other nodes may round its logits otherwise.
            let exact = if name.contains("half") { 4e-3 } else { 2e-5 };
            let rounding = if half { 1.0 / 1024.0 } else { 0.0 };
            assert!(found.max_logit.len() == 5 && furthest(&found.max_logit, &expected.max_logit) <= exact, "{name}");
            assert!(furthest(&found.log_z, &expected.log_z) <= exact, "{name}: log Z");
            for (index, (found_logit, logit)) in found.top_logits.iter().zip(&expected.top_logits).enumerate() {
                assert!((found_logit - logit).abs() <= exact + rounding * logit.abs(), "{name}: {found_logit}, not {logit}");
                // Neighbours that are that close may change places.
                let alone = |other: Option<&f32>| other.is_none_or(|other| (other - logit).abs() > 2.0 * exact);
                let neighbours =
                    [index.checked_sub(1).and_then(|before| expected.top_logits.get(before)), expected.top_logits.get(index + 1)];
                assert!(found.top_ids[index] == expected.top_ids[index] || !neighbours.into_iter().all(alone), "{name}: id {index}");
            }
            assert_eq!(found.top_ids.len(), expected.top_ids.len(), "{name}");
        }
    }
}
