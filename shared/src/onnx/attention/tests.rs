//! Small graphs that spell attention out, and some that nearly do.

use super::super::graph::tests::parse;
use super::super::messages::{AttributeProto, GraphProto};
use super::*;

/// Two heads of four. Names say what `graph` makes of the rest: `c_w`, matrices; `c_heads` and `c_merged`, shapes; `c_scale`, a number;
/// `.0213`, the order of a transposition.
const SPELLED_OUT: &str = "\
    MatMul: x c_wq -> q
    Add: c_bq q -> q_biased
    Reshape: q_biased c_heads -> q_split
    Transpose: q_split -> q.0213
    MatMul: x c_wk -> k
    Add: k c_bk -> k_biased
    Reshape: k_biased c_heads -> k_split
    MatMul: x c_wv -> v
    Add: c_bv v -> v_biased
    Reshape: v_biased c_heads -> v_split
    Transpose: v_split -> v.0213
    Transpose: k_split -> k.0231
    MatMul: q.0213 k.0231 -> product
    Mul: product c_scale -> scaled
    Add: scaled mask -> scores
    Softmax: scores -> probabilities
    MatMul: probabilities v.0213 -> weighted
    Transpose: weighted -> merged.0213
    Reshape: merged.0213 c_merged -> out";

/// A reshape that changes nothing.
const RESHAPED: &str = "\
    Shape: weighted -> sizes
    Gather: sizes c_i0 -> batch
    Shape: q.0213 -> query_sizes
    Gather: query_sizes c_i2 -> length
    Shape: v.0213 -> value_sizes
    Gather: value_sizes c_i3 -> head
    Concat: batch c_i9 length head -> same
    Reshape: weighted same -> again
    Transpose: again";

fn graph(text: &str) -> GraphProto {
    let mut message = parse(text);
    for tensor in &mut message.initializers {
        match &tensor.name[..3] {
            "c_w" => tensor.dims = vec![8, 8],
            "c_h" => (tensor.data_type, tensor.dims, tensor.int64_data) = (7, vec![4], vec![0, 0, 2, 4]),
            "c_m" => (tensor.data_type, tensor.dims, tensor.int64_data) = (7, vec![3], vec![0, 0, 8]),
            "c_i" => {
                let digit = i64::from(tensor.name.as_bytes()[3] - b'0');
                (tensor.data_type, tensor.dims, tensor.int64_data) = (7, vec![1], vec![if digit == 9 { -1 } else { digit }]);
            }
            "c_j" => (tensor.data_type, tensor.dims, tensor.int64_data) = (7, vec![4], vec![-1, 3, 2, 4]),
            "c_k" => (tensor.data_type, tensor.dims, tensor.int64_data) = (7, vec![3], vec![-1, 3, 8]),
            "c_z" => (tensor.dims, tensor.float_data) = (Vec::new(), vec![0.0]),
            "c_s" => (tensor.dims, tensor.float_data) = (Vec::new(), vec![0.5]),
            _ => {}
        }
    }
    for node in &mut message.nodes {
        if let Some((_, order)) = node.outputs[0].split_once('.') {
            let ints = order.bytes().map(|digit| i64::from(digit - b'0')).collect();
            node.attributes.push(AttributeProto { name: "perm".to_owned(), ints, ..AttributeProto::default() });
        }
    }
    message
}

fn found(text: &str) -> Vec<Attention> {
    let message = graph(text);
    find_attentions(&Graph::new(&message), 17)
}

#[test]
fn one_that_is_spelled_out_is_found() {
    let owned = |names: [&str; 3]| names.map(str::to_owned);
    let expected = Attention {
        last: 18,
        products: [12, 16],
        output: "out".to_owned(),
        input: "x".to_owned(),
        weights: owned(["c_wq", "c_wk", "c_wv"]),
        biases: owned(["c_bq", "c_bk", "c_bv"]),
        heads: 2,
        scale: 0.5,
        added: vec!["mask".to_owned()],
    };
    assert_eq!(found(SPELLED_OUT), [expected]);
    let message = graph(SPELLED_OUT);
    assert!(find_attentions(&Graph::new(&message), 12).is_empty(), "before version 13 a softmax without an axis is over all but the first");
}

#[test]
fn its_other_spellings_are_found_too() {
    let of = |text: &str| {
        assert_ne!(text, SPELLED_OUT);
        let mut found = found(text);
        assert_eq!(found.len(), 1, "{text}");
        found.remove(0)
    };
    let scaled_before = SPELLED_OUT.replace("MatMul: q.0213", "Mul: q.0213 c_scale -> less\nDiv: k.0231 c_scale -> more\nMatMul: q.0213");
    assert_eq!(of(&scaled_before.replace("MatMul: q.0213 k.0231", "MatMul: less k.0231")).scale, 0.25);
    assert_eq!(of(&scaled_before.replace("MatMul: q.0213 k.0231", "MatMul: less more")).scale, 0.5);
    let twice = SPELLED_OUT.replace("Transpose: k_split -> k.0231", "Transpose: k_split -> k.0213\nTranspose: k.0213 -> k.0132");
    of(&twice.replace("q.0213 k.0231", "q.0213 k.0132"));
    assert!(of(&SPELLED_OUT.replace("Softmax: scores", "Softmax: scaled")).added.is_empty());
    let guard = "Softmax: scores -> raw\n IsNaN: raw -> bad\n Where: bad c_zero raw -> probabilities";
    of(&SPELLED_OUT.replace("Softmax: scores -> probabilities", guard));
    of(&SPELLED_OUT.replace("Transpose: weighted", RESHAPED));
    let biased = SPELLED_OUT.replace("Add: scaled mask", "Add: bias scaled -> more\nAdd: more mask");
    assert_eq!(of(&biased).added, ["mask", "bias"]);
}

#[test]
fn sizes_may_be_those_of_a_tensor_in_the_same_place() {
    let read = |place: &str| {
        let parts =
            "Shape: x -> x_sizes\n Gather: x_sizes c_i0 -> rows\n Gather: x_sizes c_iP -> length\n Unsqueeze: length c_axis -> lengths";
        let shape = "Concat: rows lengths c_i2 c_i4 -> as_read\n Reshape: q_biased as_read";
        let text = format!("{parts}\n {shape}").replace('P', place);
        found(&SPELLED_OUT.replace("Reshape: q_biased c_heads", &text)).len()
    };
    assert_eq!([read("1"), read("0"), read("2")], [1, 0, 0]);
}

#[test]
fn a_reshape_that_changes_something_is_not_passed_over() {
    for (part, other) in
        [("sizes c_i0", "sizes c_i1"), ("c_i9 length", "c_i2 length"), ("Shape: q", "Shape: x"), ("c_i3 -> head", "c_i2 -> head")]
    {
        let text = SPELLED_OUT.replace("Transpose: weighted", &RESHAPED.replace(part, other));
        assert!(text.contains(other) && found(&text).is_empty(), "{other}");
    }
}

#[test]
fn a_near_miss_is_not_taken() {
    for (part, other) in [
        ("Add: scaled mask -> scores\n", "Add: scaled mask -> scores\nTanh: scores -> bent\n"),
        ("MatMul: x c_wk", "MatMul: y c_wk"),
        ("MatMul: x c_wv", "MatMul: x w"),
        ("MatMul: x c_wv", "Gemm: x c_wv"),
        ("q_split -> q.0213", "q_split -> q.0231"),
        ("weighted -> merged.0213", "weighted -> merged.0231"),
        ("merged.0213 c_merged", "merged.0213 sizes"),
        ("q_biased c_heads", "q_biased sizes"),
        ("Softmax: scores -> probabilities\n", "Softmax: scores -> raw\nMul: raw c_scale -> probabilities\n"),
        ("Softmax: scores -> probabilities", "Softmax: scores -> raw\n IsNaN: raw -> bad\n Where: bad c_scale raw -> probabilities"),
        ("probabilities v.0213", "v.0213 probabilities"),
        ("Mul: product c_scale", "Mul: product length"),
        ("Mul: product c_scale", "Mul: product c_zero"),
        // Windows of a fixed length, which are so many more rows.
        ("q_biased c_heads", "q_biased c_joined"),
        ("merged.0213 c_merged", "merged.0213 c_kept"),
    ] {
        // What a step in between gives is read in place of what it was given.
        let text = SPELLED_OUT
            .replace(part, other)
            .replace("Softmax: scores", if other.contains("bent") { "Softmax: bent" } else { "Softmax: scores" });
        let text = text.replace("q.0213 k.0231", if other.contains("q.0231") { "q.0231 k.0231" } else { "q.0213 k.0231" });
        let text = text.replace("merged.0213 c_", if other.contains("merged.0231") { "merged.0231 c_" } else { "merged.0213 c_" });
        assert_ne!(text, SPELLED_OUT, "{part}");
        assert!(found(&text).is_empty(), "{other}");
    }
}
