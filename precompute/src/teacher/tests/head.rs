//! A head that is left to whoever makes targets: those of the whole graph's logits.

use super::asked::{ASKED, batch, exports_by_position, furthest, opened, prepared};
use super::*;
use crate::topk::Head;

const TEMPERATURES: [f32; 2] = [2.0, 1.0];
const K: usize = 5;

/// Parts of the names of exports whose head stays: a graph in an If, products of other types, weights in another file, heads of classes.
const STAYS: [&str; 5] = ["merged", "int8", "half", "external", "tagger"];

fn places() -> impl Iterator<Item = (usize, usize)> {
    ASKED.into_iter().enumerate().flat_map(|(row, positions)| positions.iter().map(move |position| (row, usize::from(*position))))
}

/// The targets of the asked positions and the hidden states, from the head's own or from the graph's logits.
fn answers(teacher: &mut Teacher) -> (Targets, Vec<f32>) {
    let head = teacher.head();
    let layers = teacher.hidden_layers().len();
    let batch = batch(teacher.has_token_type_ids());
    let read = |answer: &Answer<'_>| {
        let rows: Vec<&[f32]> = places().map(|(row, position)| answer.logits(row, position)).collect();
        let mut targets = Targets::default();
        match &head {
            Some(head) => head.targets(&rows, K, &TEMPERATURES).iter().for_each(|made| targets.extend(made.as_ref().unwrap())),
            None => rows.iter().for_each(|row| TopK::new(K, &TEMPERATURES).append(row, &mut targets).unwrap()),
        }
        Ok((targets, (0..layers).flat_map(|index| hidden(answer, index)).collect()))
    };
    teacher.run_asked(&batch, &ASKED, read).unwrap()
}

#[test]
fn targets_of_a_head_that_is_left_are_those_of_the_whole_graph() {
    let mut left = 0;
    for (name, files, _) in exports_by_position() {
        for layers in [HiddenLayers::None, HiddenLayers::Last] {
            if name.contains("merged") && layers == HiddenLayers::Last {
                continue;
            }
            let plain = prepared(&files, &layers);
            for (gathers, fuses) in [(false, false), (true, false), (true, true)] {
                let mut leaving = plain.clone();
                if gathers {
                    leaving.gather_asked();
                }
                let leaves = leaving.leave_head_where(|_| true);
                assert_eq!(leaves, !STAYS.iter().any(|part| name.contains(part)), "{name}");
                leaving.leave_bias();
                assert!(!leaves || leaving.bias.is_none(), "{name}: the bias is the head's");
                if !leaves {
                    continue;
                }
                if fuses {
                    leaving.fuse_attention("1.32.0");
                }
                let (mut whole, mut teacher) = (opened(plain.clone()), opened(leaving));
                let at = format!("{name} with {layers:?}, gathered {gathers}, fused {fuses}");
                assert_eq!((teacher.width(), teacher.vocabulary_size()), (whole.width(), whole.vocabulary_size()), "{at}");
                assert_eq!((teacher.gathers(), teacher.notes()), (gathers, &[][..]), "{at}");
                assert_eq!(teacher.summary(), whole.summary(), "{at}");
                let ((found, states), (expected, whole_states)) = (answers(&mut teacher), answers(&mut whole));
                assert_eq!(found.max_logit.len(), 5, "{at}");
                assert_eq!(found.top_ids, expected.top_ids, "{at}");
                for (found, expected) in
                    [(&found.top_logits, &expected.top_logits), (&found.max_logit, &expected.max_logit), (&found.log_z, &expected.log_z)]
                {
                    let off = furthest(found, expected);
                    assert!(off <= 1e-5, "{at}: {off:e} off");
                }
                assert!(furthest(&states, &whole_states) <= 1e-5, "{at}: hidden states");
                left += 1;
            }
        }
    }
    assert!(left > 100, "{left}");
}

#[test]
fn a_small_vocabulary_stays_in_the_graph() {
    let files = files(root().join("bert/torchscript-17.onnx"));
    let mut asking = prepared(&files, &HiddenLayers::None);
    assert!(!Head::pays(K, 64) && !asking.leave_head(K));
    assert!(opened(asking).head().is_none());
}

#[test]
fn the_weights_of_a_head_that_is_left_are_not_in_the_changed_graph() {
    for (model, tied) in [("bert/torchscript-17.onnx", false), ("bert/dynamo.onnx", false)] {
        let mut leaving = prepared(&files(root().join(model)), &HiddenLayers::None);
        let whole = leaving.graph.as_ref().unwrap().weight_elements();
        assert!(leaving.leave_head_where(|_| true), "{model}");
        let bytes = leaving.take_changed().unwrap().unwrap();
        let without = logitcache::onnx::Model::from_bytes(Path::new(model), bytes).unwrap().weight_elements();
        let gone = if tied { 64 } else { 64 * 16 + 64 };
        assert_eq!(whole - without, gone, "{model}");
    }
}
