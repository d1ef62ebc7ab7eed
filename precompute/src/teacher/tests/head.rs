//! A head that is left to whoever makes targets: those of the whole graph's logits.

use super::asked::{ASKED, batch, exports_by_position, furthest, opened, prepared};
use super::*;
use crate::topk::Head;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::{Attribute, Dimension};
use logitcache::onnx::{GraphBuilder, write_model};

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
    let directory = tempfile::tempdir().unwrap();
    let tied = model_that_ends_in(directory.path(), "tied");
    let golden = ["bert/torchscript-17.onnx", "bert/dynamo.onnx"].map(|model| (files(root().join(model)), 64 * 16 + 64));
    // Weights that are a table of embeddings too stay.
    for (files, gone) in golden.into_iter().chain([(tied, 0)]) {
        let mut leaving = prepared(&files, &HiddenLayers::None);
        let whole = leaving.graph.as_ref().unwrap().weight_elements();
        assert!(leaving.leave_head_where(|_| true), "{}", files.model.display());
        let bytes = leaving.take_changed().unwrap().unwrap();
        let without = logitcache::onnx::Model::from_bytes(&files.model, bytes).unwrap().weight_elements();
        assert_eq!(whole - without, gone, "{}", files.model.display());
    }
}

#[test]
fn a_head_is_left_where_it_ends_the_graph_and_nothing_else_reads_it() {
    for (kind, leaves) in [
        ("no bias", true),
        ("a bias", true),
        ("a bias of one row", true),
        ("tied", true),
        ("a bias for all", false),
        ("a bias of one", false),
        ("computed weights", false),
        ("a factor", false),
        ("another reader", false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let plain = prepared(&model_that_ends_in(directory.path(), kind), &HiddenLayers::None);
        let mut leaving = plain.clone();
        assert_eq!(leaving.leave_head_where(|_| true), leaves, "{kind}");
        let [found, expected] = [leaving, plain].map(|prepared| answers(&mut opened(prepared)).0);
        assert_eq!(found.top_ids, expected.top_ids, "{kind}");
        assert!(furthest(&found.log_z, &expected.log_z) <= 1e-5 && furthest(&found.max_logit, &expected.max_logit) <= 1e-5, "{kind}");
    }
}

/// A model of 64 ids and 16 dimensions whose graph ends as `kind` says.
fn model_that_ends_in(directory: &Path, kind: &str) -> TeacherFiles {
    let mut graph = GraphBuilder::new(kind);
    let tokens = || vec![Dimension::open("batch"), Dimension::open("sequence")];
    let (ids, mask) = (graph.input("input_ids", INT64, tokens()), graph.input("attention_mask", INT64, tokens()));
    let table = graph.weight("table", &[64, 16]);
    let rows = graph.node("/m", "Gather", &[&table, &ids], vec![]);
    let states = graph.node("/m", "Tanh", &[&rows], vec![]);
    let weights = match kind {
        "tied" => graph.node("/m", "Transpose", &[&table], vec![Attribute::of_ints("perm", &[1, 0])]),
        "computed weights" => {
            let weights = graph.weight("projection", &[16, 64]);
            graph.node("/m", "Tanh", &[&weights], vec![])
        }
        _ => graph.weight("projection", &[16, 64]),
    };
    let bias_shape = match kind {
        "a bias" => Some(&[64][..]),
        "a bias of one row" => Some(&[1, 64][..]),
        "a bias for all" => Some(&[][..]),
        "a bias of one" => Some(&[1][..]),
        _ => None,
    };
    if let Some(shape) = bias_shape {
        let (bias, product) = (graph.weight("bias", shape), graph.node("/m", "MatMul", &[&states, &weights], vec![]));
        graph.named_node("/m", "Add", &[&bias, &product], vec![], "logits");
    } else if kind == "a factor" {
        let (factor, product) = (graph.scalar("factor", 0.5), graph.node("/m", "MatMul", &[&states, &weights], vec![]));
        graph.named_node("/m", "Mul", &[&product, &factor], vec![], "logits");
    } else {
        graph.named_node("/m", "MatMul", &[&states, &weights], vec![], "logits");
    }
    if kind == "another reader" {
        graph.named_node("/m", "Softmax", &["logits"], vec![], "probabilities");
        graph.output("probabilities", FLOAT32, [tokens(), vec![Dimension::fixed(64)]].concat());
    }
    graph.named_node("/m", "Identity", &[&mask], vec![], "unused");
    graph.output("logits", FLOAT32, [tokens(), vec![Dimension::fixed(64)]].concat());
    let path = directory.join("model.onnx");
    let values = |weight: usize| Ok((0..graph.weights()[weight].elements()).map(|index| (index % 37) as f32 / 37.0 - 0.4).collect());
    write_model(&path, &graph, u64::MAX, values).unwrap();
    files(path)
}
