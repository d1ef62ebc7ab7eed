//! The demo teacher's answers: largest logits, normalisers and hidden states.

use super::{Golden, close};
use e2e::{data, onnxruntime};
use precompute::teacher::{HiddenLayers, Runtime, Teacher, TeacherBatch, locate, prepare, runtime};
use precompute::topk::{Targets, TopK};
use std::collections::BTreeMap;

fn open_teacher(model: &std::path::Path, layers: &HiddenLayers) -> Teacher {
    let runtime: Runtime = runtime::load(Some(&onnxruntime())).expect("the pinned runtime loads");
    let files = locate(model, Some(&data("teacher/tokenizer.json"))).expect("a teacher of the repository");
    let prepared = prepare(&files, layers, &BTreeMap::new()).expect("its hidden states are found");
    Teacher::open(&runtime, prepared, 2, "cpu").expect("it opens")
}

#[test]
fn the_teachers_answers_are_those_of_transformers() {
    let golden = Golden::open("teacher.safetensors");
    let (offsets, ids, asked) = (golden.integers("offsets"), golden.integers("input_ids"), golden.integers("asked"));
    let mut teacher = open_teacher(&data("teacher"), &HiddenLayers::List(vec![0, 6, 12]));
    let mut topk = TopK::new(64, &[1.0, 2.0, 4.0]);
    let mut targets = Targets::default();
    let mut hidden = vec![Vec::new(); 3];
    let (rows, length) = (offsets.len() - 1, offsets.windows(2).map(|pair| pair[1] - pair[0]).max().expect("sequences") as usize);
    let mut batch = TeacherBatch { rows, length, ..TeacherBatch::default() };
    for pair in offsets.windows(2) {
        let own = &ids[pair[0] as usize..pair[1] as usize];
        let padding = length - own.len();
        batch.input_ids.extend(own.iter().copied().chain(std::iter::repeat_n(0, padding)));
        batch.attention_mask.extend(own.iter().map(|_| 1).chain(std::iter::repeat_n(0, padding)));
        batch.token_type_ids.extend(std::iter::repeat_n(0, length));
    }
    let answered = teacher.run(&batch, |answer| {
        for (row, pair) in offsets.windows(2).enumerate() {
            for position in asked.iter().filter(|position| (pair[0]..pair[1]).contains(*position)) {
                let logits = answer.logits(row, (position - pair[0]) as usize);
                topk.append(logits, &mut targets).expect("finite logits");
            }
            for (layer, states) in hidden.iter_mut().enumerate() {
                let own = &answer.hidden(layer, row)[..(pair[1] - pair[0]) as usize * 256];
                states.extend(own.iter().map(|value| f64::from(*value)));
            }
        }
        Ok(())
    });
    answered.expect("the teacher answers");
    let as_f64 = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    close("max_logit", &as_f64(&targets.max_logit), &golden.floats("max_logit"), (1e-5, 1e-4));
    close("top_logits", &as_f64(&targets.top_logits), &golden.floats("top_logits"), (1e-5, 1e-4));
    close("log_z", &as_f64(&targets.log_z), &golden.floats("log_z"), (1e-5, 2e-5));
    for (states, layer) in hidden.iter().zip([0, 6, 12]) {
        let expected = golden.floats(&format!("hidden_{layer}"));
        close(&format!("hidden_{layer}"), &states[..expected.len()], &expected, (1e-4, 1e-4));
    }
    // Two ids whose logits lie closer than rounding may change places; no other difference is allowed.
    let expected = golden.integers("top_ids");
    let logits = golden.floats("top_logits");
    for (i, (found, expected)) in targets.top_ids.iter().zip(&expected).enumerate() {
        if i64::from(*found) != *expected {
            let neighbours = [i.checked_sub(1), Some(i + 1)].into_iter().flatten().filter(|j| *j < logits.len());
            let nearest = neighbours.map(|j| (logits[i] - logits[j]).abs()).fold(f64::INFINITY, f64::min);
            assert!(nearest < 1e-4 || i % 64 == 63, "top_ids[{i}] is {found}, not {expected}, and no neighbour is within rounding");
        }
    }
}
