//! Attention as one operation: the answers and hidden states that transformers gives, as those of the graph that spells it out.

use super::asked::{ASKED, batch, every_logit, exports_by_position, furthest, opened, prepared};
use super::*;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};
use logitcache::onnx::{GraphBuilder, write_model};

/// Parts of the names of exports that are left as they are: projections that are packed or rotated, quantised or half-precision products, attention that
/// is fused already in part or whole, a graph inside an If.
const SPELLED_OUT: [&str; 5] = ["gpt2", "llama", "int8", "runtime-fused", "runtime-extended"];

fn fuses(name: &str) -> bool {
    name != "bert-half" && !SPELLED_OUT.iter().any(|part| name.contains(part))
}

#[test]
fn every_export_that_spells_attention_out_gives_what_transformers_gives() {
    for export in exports().iter().filter(|export| export.refuse.is_none()) {
        let mut fusing = prepared(&files(root().join(&export.model)), &HiddenLayers::All);
        fusing.fuse_attention("1.32.0");
        assert_eq!(fusing.fuses, fuses(&export.name), "{}", export.name);
        let mut teacher = opened(fusing);
        assert_eq!(teacher.notes(), [""; 0], "{}", export.name);
        check(&export.name, &mut teacher, &Expected::read(&export.expected), export.tolerance);
    }
}

#[test]
fn asked_positions_and_a_bias_left_out_go_together_with_it() {
    for (name, files, tolerance) in exports_by_position().into_iter().filter(|(name, ..)| fuses(name)) {
        for layers in [HiddenLayers::None, HiddenLayers::Last] {
            let mut asking = prepared(&files, &layers);
            asking.leave_bias();
            let mut fusing = asking.clone();
            [&mut asking, &mut fusing].into_iter().for_each(Prepared::gather_asked);
            fusing.fuse_attention("1.32.0");
            assert!(fusing.fuses, "{name}");
            let (mut plain, mut teacher) = (opened(asking), opened(fusing));
            assert!(teacher.gathers() && teacher.notes().is_empty() && teacher.bias() == plain.bias(), "{name}: {:?}", teacher.notes());
            let batch = batch(plain.has_token_type_ids());
            let [found, expected] = [&mut teacher, &mut plain].map(|teacher| {
                let states = |answer: &Answer<'_>| (0..usize::from(layers == HiddenLayers::Last)).flat_map(|_| hidden(answer, 0)).collect();
                let states: Vec<f32> = teacher.run_asked(&batch, &ASKED, |answer| Ok(states(answer))).unwrap();
                (every_logit(teacher, &batch).concat(), states)
            });
            let off = [furthest(&found.0, &expected.0), furthest(&found.1, &expected.1)];
            assert!(off.iter().all(|off| *off <= tolerance), "{name} with {layers:?}: {off:?} off");
        }
    }
}

/// A model whose attention reads its states as `[batch * length, hidden]`, which the one operation does not take.
fn model_of_flat_states(directory: &Path) -> TeacherFiles {
    let mut graph = GraphBuilder::new("flat");
    let tokens = || vec![Dimension::open("batch"), Dimension::open("sequence")];
    let (ids, mask) = (graph.input("input_ids", INT64, tokens()), graph.input("attention_mask", INT64, tokens()));
    let mut node = |op_type: &str, inputs: &[&str], attributes: Vec<Attribute>| graph.node("/m", op_type, inputs, attributes);
    let axis = || vec![Attribute::of_int("axis", 0)];
    let order = |order: [i64; 4]| vec![Attribute::of_ints("perm", &order)];
    let rows = node("Gather", &["table", &ids], axis());
    let states = node("Reshape", &[&rows, "flat"], vec![]);
    let sizes = node("Shape", &[&ids], vec![]);
    let [batch, length] = ["first", "second"].map(|index| node("Gather", &[&sizes, index], axis()));
    let heads = node("Concat", &[&batch, &length, "two", "eight"], axis());
    let merged = node("Concat", &[&batch, &length, "sixteen"], axis());
    let [query, key, value] = ["query", "key", "value"].map(|part| {
        let product = node("MatMul", &[&states, part], vec![]);
        let biased = node("Add", &[&product, "bias"], vec![]);
        node("Reshape", &[&biased, &heads], vec![])
    });
    let (query, value) = (node("Transpose", &[&query], order([0, 2, 1, 3])), node("Transpose", &[&value], order([0, 2, 1, 3])));
    let key = node("Transpose", &[&key], order([0, 2, 3, 1]));
    let scores = node("MatMul", &[&query, &key], vec![]);
    let probabilities = node("Softmax", &[&scores], vec![Attribute::of_int("axis", -1)]);
    let weighted = node("MatMul", &[&probabilities, &value], vec![]);
    let side_by_side = node("Transpose", &[&weighted], order([0, 2, 1, 3]));
    let attended = node("Reshape", &[&side_by_side, &merged], vec![]);
    graph.named_node("/m", "MatMul", &[&attended, "projection"], vec![], "logits");
    graph.named_node("/m", "Identity", &[&mask], vec![], "unused");
    for (name, values) in [("flat", &[-1, 16][..]), ("first", &[0]), ("second", &[1]), ("two", &[2]), ("eight", &[8]), ("sixteen", &[16])] {
        graph.integers(name, values);
    }
    for (name, shape) in [("table", &[64, 16][..]), ("query", &[16, 16]), ("key", &[16, 16]), ("value", &[16, 16]), ("bias", &[16])] {
        graph.weight(name, shape);
    }
    graph.weight("projection", &[16, 64]);
    graph.output("logits", FLOAT32, [tokens(), vec![Dimension::fixed(64)]].concat());
    let path = directory.join("model.onnx");
    let values = |weight: usize| Ok((0..graph.weights()[weight].elements()).map(|index| (index % 37) as f32 / 37.0).collect());
    write_model(&path, &graph, u64::MAX, values).unwrap();
    files(path)
}

#[test]
fn what_only_a_run_can_show_is_computed_as_it_is_spelled_out_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let files = model_of_flat_states(directory.path());
    let mut fusing = prepared(&files, &HiddenLayers::None);
    fusing.fuse_attention("1.32.0");
    assert!(fusing.fuses, "the graph alone does not say that the states have two dimensions");
    let mut teacher = opened(fusing);
    assert!(teacher.notes().len() == 1 && teacher.notes()[0].contains("spells it out"), "{:?}", teacher.notes());
    let expected = every_logit(&mut opened(prepared(&files, &HiddenLayers::None)), &batch(false));
    assert_eq!(every_logit(&mut teacher, &batch(false)), expected);
}
