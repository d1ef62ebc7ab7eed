//! Normalisations over the last dimension in a graph, in the forms in which exporters and optimisers leave them.

use super::graph::Graph;
use super::messages::NodeProto;

/// A layer normalisation (Ba, Kiros and Hinton 2016): scale * (x - mean) / deviation + bias over the last dimension; or without mean and bias
/// (RMSNorm, Zhang and Sennrich 2019).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNorm<'a> {
    /// The number of the node that gives the output.
    pub node: usize,
    /// That node's name; may be empty.
    pub node_name: &'a str,
    /// The normalised tensor.
    pub output: &'a str,
    /// The name of the scale: for an exported module its path, such as `encoder.layer.0.output.LayerNorm.weight`.
    pub scale: &'a str,
    /// The length of the scale, which is the width of the output, where the file says so.
    pub width: Option<u64>,
    /// The tensor that is normalised, copies seen through; none where a fused node keeps it to itself.
    pub input: Option<&'a str>,
    /// The non-constant tensors whose sum is normalised, copies seen through: two where a residual was added; none where the sum is inside the node.
    pub addends: Vec<&'a str>,
}

impl<'a> LayerNorm<'a> {
    /// The residual: the one of two addends that the other one is computed from.
    pub fn residual(&self, graph: &Graph<'a>) -> Option<&'a str> {
        let [a, b] = self.addends[..] else { return None };
        if graph.depends_on(a, b) {
            return Some(b);
        }
        graph.depends_on(b, a).then_some(a)
    }

    /// Whether the tensor that is normalised is the one `earlier` normalised, with something added that was computed from `earlier`'s output: the two
    /// halves of a pre-norm block.
    pub fn follows(&self, earlier: &Self, graph: &Graph<'a>) -> bool {
        let (Some(stream), [a, b]) = (earlier.input, &self.addends[..]) else { return false };
        let added = if *a == stream { b } else { a };
        (*a == stream || *b == stream) && (*added == earlier.output || graph.depends_on(added, earlier.output))
    }
}

/// Every normalisation, in node order.
///
/// - `LayerNormalization` (opset 17, and ONNX Runtime's own before that), `RMSNormalization` (opset 23), `SimplifiedLayerNormalization`,
/// - `SkipLayerNormalization`, `SkipSimplifiedLayerNormalization` and `EmbedLayerNormalization`, into which ONNX Runtime fuses it with the sum in
///   front of it,
/// - the sub-graph `Add(Mul(Div(Sub(x, ReduceMean(x)), deviation), scale), bias)` of exports below opset 17,
/// - the sub-graph `Mul(scale, Mul(x, 1 / Sqrt(ReduceMean(x^2) + epsilon)))` of RMSNorm, or with a `Div` by the root.
pub fn find_layer_norms<'a>(graph: &Graph<'a>) -> Vec<LayerNorm<'a>> {
    graph.nodes().iter().enumerate().filter_map(|(index, node)| layer_norm(graph, index, node)).collect()
}

fn layer_norm<'a>(graph: &Graph<'a>, index: usize, node: &'a NodeProto) -> Option<LayerNorm<'a>> {
    let named = |name: &'a String| if name.is_empty() { None } else { Some(name.as_str()) };
    let input = |position: usize| node.inputs.get(position).and_then(named);
    let (scale, normalised, addends) = match node.op_type.as_str() {
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
            (input(1)?, Some(graph.origin(input(0)?)), addends(graph, input(0)?))
        }
        // Where someone else wants the sum, it is the fourth output.
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
            (input(2)?, node.outputs.get(3).and_then(named), vec![graph.origin(input(0)?), graph.origin(input(1)?)])
        }
        "EmbedLayerNormalization" => (input(5)?, None, Vec::new()),
        "Add" | "Mul" => {
            let spelled_out = if node.op_type == "Add" { spelled_out } else { spelled_out_without_mean };
            let (x, scale) = spelled_out(graph, node)?;
            (scale, Some(graph.origin(x)), addends(graph, x))
        }
        _ => return None,
    };
    let width = graph.stored(scale).and_then(|tensor| u64::try_from(*tensor.dims.last()?).ok());
    let output = node.outputs.first()?;
    Some(LayerNorm { node: index, node_name: &node.name, output, scale, width, input: normalised, addends })
}

/// The tensors that are summed into `tensor`, less the constant ones.
fn addends<'a>(graph: &Graph<'a>, tensor: &'a str) -> Vec<&'a str> {
    let tensor = graph.origin(tensor);
    let Some(("Add", [a, b])) = made_by(graph, tensor) else { return vec![tensor] };
    match (graph.stored(a), graph.stored(b)) {
        (None, None) => vec![graph.origin(a), graph.origin(b)],
        (Some(_), None) => addends(graph, b),
        (None, Some(_)) => addends(graph, a),
        (Some(_), Some(_)) => Vec::new(),
    }
}

/// For the last node of a layer normalisation that is spelled out: what is normalised, and the scale.
fn spelled_out<'a>(graph: &Graph<'a>, add: &'a NodeProto) -> Option<(&'a str, &'a str)> {
    let [a, b] = &add.inputs[..] else { return None };
    let (scaled, _) = other_than_constant(graph, a, b)?;
    let ("Mul", [a, b]) = made_by(graph, graph.origin(scaled))? else { return None };
    let (normalised, scale) = other_than_constant(graph, a, b)?;
    let ("Div", [centred, _]) = made_by(graph, graph.origin(normalised))? else { return None };
    let ("Sub", [x, mean]) = made_by(graph, graph.origin(centred))? else { return None };
    // The axes are an attribute below opset 18 and an input from then on.
    let ("ReduceMean", [averaged, ..]) = made_by(graph, graph.origin(mean))? else { return None };
    (graph.origin(averaged) == graph.origin(x)).then_some((x, scale))
}

/// The same for one without mean and bias.
fn spelled_out_without_mean<'a>(graph: &Graph<'a>, mul: &'a NodeProto) -> Option<(&'a str, &'a str)> {
    let [a, b] = &mul.inputs[..] else { return None };
    let (normalised, scale) = other_than_constant(graph, a, b)?;
    let (x, root) = match made_by(graph, graph.origin(normalised))? {
        ("Div", [x, root]) => (x, graph.origin(root)),
        ("Mul", [a, b]) => [(a, b), (b, a)].into_iter().find_map(|(x, inverse)| Some((x, inverted(graph, inverse)?)))?,
        _ => return None,
    };
    let ("Sqrt", [sum]) = made_by(graph, root)? else { return None };
    let ("Add", [a, b]) = made_by(graph, graph.origin(sum))? else { return None };
    let (mean, _) = other_than_constant(graph, a, b)?;
    let ("ReduceMean", [square, ..]) = made_by(graph, graph.origin(mean))? else { return None };
    let squared = match made_by(graph, graph.origin(square))? {
        ("Pow", [base, _]) => base,
        ("Mul", [a, b]) if a == b => a,
        _ => return None,
    };
    (graph.origin(squared) == graph.origin(x)).then_some((x, scale))
}

/// What `tensor` is 1 divided by.
fn inverted<'a>(graph: &Graph<'a>, tensor: &'a str) -> Option<&'a str> {
    match made_by(graph, graph.origin(tensor))? {
        ("Reciprocal", [root]) => Some(graph.origin(root)),
        ("Div", [one, root]) if graph.stored(one).is_some() => Some(graph.origin(root)),
        _ => None,
    }
}

fn made_by<'a>(graph: &Graph<'a>, tensor: &str) -> Option<(&'a str, &'a [String])> {
    graph.producer(tensor).map(|(_, node)| (node.op_type.as_str(), &node.inputs[..]))
}

/// The one of two tensors that is no constant, then the one that is.
fn other_than_constant<'a>(graph: &Graph<'a>, a: &'a str, b: &'a str) -> Option<(&'a str, &'a str)> {
    match (graph.stored(a), graph.stored(b)) {
        (None, Some(_)) => Some((a, b)),
        (Some(_), None) => Some((b, a)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::parse;
    use super::*;

    const SPELLED_OUT: &str = "\
        Add: word position -> sum
        ReduceMean: sum -> mean
        Sub: sum mean -> centred
        Pow: centred c2 -> squares
        ReduceMean: squares -> variance
        Sqrt: variance -> deviation
        Div: centred deviation -> normalised
        Mul: normalised c_scale -> scaled
        Add: scaled c_bias -> out";

    #[test]
    fn a_spelled_out_one_is_found_whatever_the_order_of_factors() {
        for text in [
            SPELLED_OUT.to_owned(),
            SPELLED_OUT.replace("normalised c_scale", "c_scale normalised").replace("scaled c_bias", "c_bias scaled"),
        ] {
            let message = parse(&text);
            let graph = Graph::new(&message);
            let found = find_layer_norms(&graph);
            assert_eq!(found.len(), 1);
            let norm = &found[0];
            assert_eq!((norm.output, norm.scale, norm.width), ("out", "c_scale", Some(8)));
            assert_eq!(norm.addends, ["word", "position"]);
            assert_eq!(norm.residual(&graph), None, "neither embedding is computed from the other");
        }
    }

    #[test]
    fn a_near_miss_is_not_taken() {
        for (part, other) in [
            ("ReduceMean: sum -> mean", "ReduceMean: word -> mean"),
            ("Div: centred", "Div: sum"),
            ("normalised c_scale", "normalised word"),
        ] {
            let text = SPELLED_OUT.replace(part, other);
            assert_ne!(text, SPELLED_OUT);
            let message = parse(&text);
            assert!(find_layer_norms(&Graph::new(&message)).is_empty(), "{other}");
        }
    }

    #[test]
    fn fused_ones_and_their_residuals_are_found() {
        let text = "\
            EmbedLayerNormalization: ids _ c1 c2 _ c_scale c_bias -> embedded
            MatMul: embedded c3 -> attended
            SkipLayerNormalization: attended embedded c_first c_b c_dense -> first
            MatMul: first c4 -> dense
            Add: c5 dense -> biased
            Cast: first -> same
            Add: same biased -> sum
            LayerNormalization: sum c_second c_b -> second
            Gelu: second -> active
            LayerNormalization: active c_head c_b -> head";
        let message = parse(text);
        let graph = Graph::new(&message);
        let found = find_layer_norms(&graph);
        let summary: Vec<_> = found.iter().map(|norm| (norm.output, norm.scale, norm.residual(&graph))).collect();
        let expected = [
            ("embedded", "c_scale", None),
            ("first", "c_first", Some("embedded")),
            ("second", "c_second", Some("first")),
            ("head", "c_head", None),
        ];
        assert_eq!(summary, expected);
    }

    const WITHOUT_MEAN: &str = "\
        Pow: x c_two -> squares
        ReduceMean: squares -> mean
        Add: mean c_epsilon -> sum
        Sqrt: sum -> root
        Div: c_one root -> inverse
        Mul: x inverse -> normalised
        Cast: normalised -> narrow
        Mul: c_scale narrow -> out";

    #[test]
    fn one_without_a_mean_is_found_in_every_spelling() {
        for (part, other) in [
            ("", ""),
            ("Div: c_one root", "Reciprocal: root"),
            ("Mul: x inverse", "Mul: inverse x"),
            ("Mul: x inverse", "Div: x root"),
            ("Pow: x c_two", "Mul: x x"),
        ] {
            let message = parse(&WITHOUT_MEAN.replace(part, other));
            let found = find_layer_norms(&Graph::new(&message));
            assert_eq!(found.len(), 1, "{other}");
            assert_eq!((found[0].output, found[0].scale, found[0].input), ("out", "c_scale", Some("x")), "{other}");
        }
        for (part, other) in [("Pow: x", "Pow: y"), ("Sqrt", "Exp"), ("c_scale narrow", "y narrow"), ("Div: c_one root", "Div: y root")] {
            let message = parse(&WITHOUT_MEAN.replace(part, other));
            assert!(find_layer_norms(&Graph::new(&message)).is_empty(), "{other}");
        }
    }

    #[test]
    fn the_halves_of_a_block_follow_each_other() {
        let text = "\
            LayerNormalization: x c_s c_b -> first
            MatMul: first c1 -> attended
            SkipSimplifiedLayerNormalization: attended x c_second -> second _ _ stream
            MatMul: second c2 -> dense
            Add: stream dense -> sum
            SimplifiedLayerNormalization: sum c_third -> third
            LayerNormalization: dense c_other -> other";
        let message = parse(text);
        let graph = Graph::new(&message);
        let norms = find_layer_norms(&graph);
        let follows: Vec<(usize, usize)> = (0..4)
            .flat_map(|later| (0..later).map(move |earlier| (earlier, later)))
            .filter(|(earlier, later)| norms[*later].follows(&norms[*earlier], &graph))
            .collect();
        assert_eq!(follows, [(0, 1), (1, 2)]);
    }
}
